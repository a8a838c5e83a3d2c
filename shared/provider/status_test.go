package provider

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

func detailed(t testing.TB, code codes.Code, message string, details ...protoadapt.MessageV1) error {
	t.Helper()
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestAStatusOfTheTransportIsNotTheProvidersWord(t *testing.T) {
	t.Parallel()
	foreign := &errdetails.ErrorInfo{Reason: "RATE_LIMIT_EXCEEDED", Domain: "googleapis.com"}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		for what, err := range map[string]error{
			"bare":                    status.Error(code, "x"),
			"of another domain":       detailed(t, code, "x", foreign),
			"with other details":      detailed(t, code, "x", &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}),
			"with an empty ErrorInfo": detailed(t, code, "x", &errdetails.ErrorInfo{}),
		} {
			e := AsError(errorFromWire(t.Context(), "Create", err))
			byTransport := true
			switch code {
			case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition,
				codes.Aborted, codes.OutOfRange, codes.DataLoss: // gRPC never sends these by itself
				byTransport = false
			}
			if got := e.Reason == ReasonTransport && e.Code == CodeInternal; got != byTransport {
				t.Errorf("%s, %s: read as %s %s", code, what, e.Code, e.Reason)
			}
			if e.Retryable != (code == codes.Unavailable) {
				t.Errorf("%s, %s: retryable is %t", code, what, e.Retryable)
			}
			if !strings.Contains(e.Message, "x") {
				t.Errorf("%s, %s: the message is lost in %q", code, what, e.Message)
			}
		}
	}
}

func TestTheProvidersOwnWordIsReadByItsCode(t *testing.T) {
	t.Parallel()
	ours := &errdetails.ErrorInfo{Domain: errorDomain}
	for code, want := range map[codes.Code]Code{
		codes.ResourceExhausted: CodeExhausted, codes.Unavailable: CodeUnreachable, codes.Internal: CodeInternal,
		codes.Unknown: CodeFailed, codes.PermissionDenied: CodeDenied, codes.Unauthenticated: CodeDenied,
		codes.Canceled: CodeCanceled, codes.DeadlineExceeded: CodeTimeout, codes.Unimplemented: CodeUnsupported,
		codes.DataLoss: CodeFailed, 99: CodeFailed,
	} {
		e := AsError(errorFromWire(t.Context(), "Create", detailed(t, code, "x", &errdetails.ErrorInfo{Domain: "googleapis.com"}, ours)))
		equal(t, code.String(), []any{e.Code, e.Reason, e.Message}, []any{want, "", "x"})
	}
}

func TestWhatTheHostKnowsOfATransportErrorIsUsed(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	soon, cancelSoon := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancelSoon()
	late, cancelLate := context.WithTimeout(t.Context(), time.Minute)
	defer cancelLate()
	for _, test := range []struct {
		what   string
		ctx    context.Context
		method string
		code   codes.Code
		want   Code
	}{
		{"the call was given up", ended, "Create", codes.Canceled, CodeCanceled},
		{"nobody gave the call up", late, "Create", codes.Canceled, CodeInternal},
		{"the plugin noticed the deadline first", soon, "Create", codes.DeadlineExceeded, CodeTimeout},
		{"the deadline is far", late, "Create", codes.DeadlineExceeded, CodeInternal},
		{"there is no deadline", t.Context(), "Create", codes.DeadlineExceeded, CodeInternal},
		{"an optional call is not served", t.Context(), "List", codes.Unimplemented, CodeUnsupported},
		{"it is not our kind of plugin", t.Context(), "Describe", codes.Unimplemented, CodeUnsupported},
		{"a call that every plugin has is not served", t.Context(), "Create", codes.Unimplemented, CodeInternal},
	} {
		equal(t, test.what, CodeOf(errorFromWire(test.ctx, test.method, status.Error(test.code, "x"))), test.want)
	}
}

func TestAnErrorOfAPluginSaysOnlyWhatAPluginMaySay(t *testing.T) {
	t.Parallel()
	read := func(info *errdetails.ErrorInfo, more ...protoadapt.MessageV1) *Error {
		info.Domain = errorDomain
		return AsError(errorFromWire(t.Context(), "Create", detailed(t, codes.Unknown, strings.Repeat("long ", 5000), append(more, info)...)))
	}
	for _, reason := range []string{
		ReasonPluginCrashed, ReasonPluginFailed, ReasonInvalidReply, ReasonTransport, ReasonListCut, "no reason", "A\nB", strings.Repeat("A", 64),
	} {
		equal(t, "reason "+reason, read(&errdetails.ErrorInfo{Reason: reason}).Reason, "")
	}
	equal(t, "a reason of its own", read(&errdetails.ErrorInfo{Reason: "OUT_OF_GPUS_2"}).Reason, "OUT_OF_GPUS_2")
	for _, id := range []string{"a b", "\x1b[31m", "-rf", strings.Repeat("x", 257), "sb\n1", "../x", "sb'1"} {
		equal(t, "sandbox id "+id, read(&errdetails.ErrorInfo{Metadata: map[string]string{metadataSandboxID: id}}).SandboxID, "")
	}
	equal(t, "exit code", read(&errdetails.ErrorInfo{Metadata: map[string]string{metadataExitCode: "many"}}).ExitCode, (*int)(nil))

	violations := &errdetails.BadRequest{}
	for range 1000 {
		violations.FieldViolations = append(violations.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: strings.Repeat("f", 10_000), Description: strings.Repeat("d", 10_000),
		})
	}
	e := read(&errdetails.ErrorInfo{}, violations, &errdetails.RetryInfo{RetryDelay: durationpb.New(-time.Hour)},
		&errdetails.DebugInfo{Detail: strings.Repeat("line\n", 100_000)})
	if len(e.Message) > messageBytes+len("…") || len(e.Fields) != fieldCount || len(e.Error()) > 2*fieldCount*messageBytes || len(e.LogTail) > tailLines {
		t.Errorf("a message of %d bytes, %d fields, a text of %d, %d lines of log", len(e.Message), len(e.Fields), len(e.Error()), len(e.LogTail))
	}
	equal(t, "a negative pause", e.RetryAfter, time.Duration(0))
	e = read(&errdetails.ErrorInfo{}, &errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: 1 << 50}})
	equal(t, "an endless pause", e.RetryAfter, longestWaited)
}

func TestAnyErrorOfACallIsRead(t *testing.T) {
	t.Parallel()
	e := AsError(errorFromWire(t.Context(), "Create", errors.New("plain")))
	equal(t, "code", e.Code, CodeInternal)
	equal(t, "reason", e.Reason, ReasonTransport)
}

func FuzzErrorFromWire(f *testing.F) {
	f.Add(uint32(2), "the provider failed", "QUOTA", errorDomain, "sb-1", "3", "true", "one\ntwo", int64(7))
	f.Add(uint32(8), "\xff\x1b[31m", "PLUGIN_CRASHED", "googleapis.com", "../../x\n", "-", "", "\xff\n", int64(-1))
	f.Fuzz(func(t *testing.T, code uint32, message, reason, domain, id, exit, retryable, log string, pause int64) {
		info := &errdetails.ErrorInfo{Reason: text(reason), Domain: text(domain), Metadata: map[string]string{
			metadataSandboxID: text(id), metadataExitCode: text(exit), metadataRetryable: text(retryable),
		}}
		if codes.Code(code) == codes.OK {
			return
		}
		err := detailed(t, codes.Code(code), message, info, &errdetails.DebugInfo{Detail: text(log)},
			&errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: pause}})
		e := AsError(errorFromWire(t.Context(), "Create", err))
		if domain != errorDomain && (e.Code == CodeExhausted || e.Code == CodeDenied || e.Code == CodeUnsupported || e.Code == CodeUnreachable) {
			t.Errorf("%s is believed of the domain %q", e.Code, domain)
		}
		if e.SandboxID != "" && !idForm.MatchString(e.SandboxID) || e.RetryAfter < 0 || e.RetryAfter > longestWaited {
			t.Errorf("id %q, pause %s", e.SandboxID, e.RetryAfter)
		}
		again := AsError(errorFromWire(t.Context(), "Create", errorToWire(e)))
		if again.Code != e.Code || again.SandboxID != e.SandboxID || again.Retryable != e.Retryable {
			t.Errorf("%+v became %+v on its way", e, again)
		}
	})
}
