package provider

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Keys of ErrorInfo.metadata, and its domain.
const (
	errorDomain       = "berth.dev"
	metadataSandboxID = "sandbox_id"
	metadataExitCode  = "exit_code"
	metadataRetryable = "retryable"
)

// Limits of what an error may carry: see tailBytes.
const (
	messageBytes  = 2 << 10
	fieldCount    = 100
	longestWaited = 24 * time.Hour
)

var codeTable = table[Code, codes.Code]{
	CodeInvalid:     codes.InvalidArgument,
	CodeDenied:      codes.PermissionDenied,
	CodeNotFound:    codes.NotFound,
	CodeConflict:    codes.AlreadyExists,
	CodeState:       codes.FailedPrecondition,
	CodeExhausted:   codes.ResourceExhausted,
	CodeUnreachable: codes.Unavailable,
	CodeUnsupported: codes.Unimplemented,
	CodeFailed:      codes.Unknown,
	CodeInternal:    codes.Internal,
	CodeCanceled:    codes.Canceled,
	CodeTimeout:     codes.DeadlineExceeded,
}

// errorToWire returns the gRPC error for err, nil for nil.
func errorToWire(err error) error {
	if err == nil {
		return nil
	}
	e := AsError(err)
	code, known := codeTable[e.Code]
	if !known {
		code = codes.Unknown
	}
	info := &errdetails.ErrorInfo{Reason: text(e.Reason), Domain: errorDomain, Metadata: map[string]string{}}
	if e.SandboxID != "" {
		info.Metadata[metadataSandboxID] = text(e.SandboxID)
	}
	if e.ExitCode != nil {
		info.Metadata[metadataExitCode] = strconv.Itoa(*e.ExitCode)
	}
	if e.Retryable {
		info.Metadata[metadataRetryable] = "true"
	}
	details := []protoadapt.MessageV1{info}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	if len(e.Fields) > 0 {
		refused := &errdetails.BadRequest{}
		for _, f := range e.Fields {
			refused.FieldViolations = append(refused.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Field: text(f.Field), Description: text(f.Message)})
		}
		details = append(details, refused)
	}
	if len(e.LogTail) > 0 {
		details = append(details, &errdetails.DebugInfo{Detail: text(strings.Join(Tail(e.LogTail), "\n"))})
	}
	st := status.New(code, Shorten(text(e.Message), messageBytes))
	if detailed, err := st.WithDetails(details...); err == nil {
		st = detailed
	}
	return st.Err()
}

// errorFromWire returns the *Error for the gRPC error with which a plugin's call ended, nil for nil. ctx is that of the
// call. The reasons that only the host gives are not believed.
func errorFromWire(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	e, spoken := readStatus(st)
	if !spoken {
		return transportError(ctx, method, st)
	}
	if slices.Contains(ofHost, e.Reason) {
		e.Reason = ""
	}
	return e
}

// readStatus returns the Error that a status stands for, and reports whether it is the provider's word. That is what
// carries an ErrorInfo of our domain, or has a code that gRPC never sends by itself. Anything else may come from the
// transport on either side, and tells nothing about the provider.
func readStatus(st *status.Status) (e *Error, spoken bool) {
	details := st.Details()
	i := slices.IndexFunc(details, func(d any) bool {
		info, is := d.(*errdetails.ErrorInfo)
		return is && info.GetDomain() == errorDomain
	})
	spoken = i >= 0 || slices.Contains(neverOfTransport, st.Code())
	e = &Error{Code: codeTable.domain(st.Code()), Message: Shorten(text(st.Message()), messageBytes)}
	switch {
	case st.Code() == codes.Unauthenticated:
		e.Code = CodeDenied
	case e.Code == "":
		e.Code = CodeFailed
	}
	if i >= 0 {
		e.readInfo(details[i].(*errdetails.ErrorInfo))
	}
	for _, detail := range details {
		switch d := detail.(type) {
		case *errdetails.RetryInfo:
			e.RetryAfter = min(max(d.GetRetryDelay().AsDuration(), 0), longestWaited)
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				if len(e.Fields) < fieldCount {
					e.Fields = append(e.Fields, FieldError{Field: Shorten(v.GetField(), nameBytes), Message: Shorten(v.GetDescription(), messageBytes)})
				}
			}
		case *errdetails.DebugInfo:
			e.LogTail = texts(Tail(strings.Split(d.GetDetail(), "\n")))
		}
	}
	return e, spoken
}

var (
	reasonForm = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,62}$`)
	// ofHost are the reasons that only the host gives: they decide what it does next.
	ofHost = []string{ReasonInvalidReply, ReasonTransport, ReasonListCut, ReasonPluginCrashed, ReasonPluginFailed}
)

// readInfo takes over what the ErrorInfo says in the form of the contract, and leaves out the rest.
func (e *Error) readInfo(info *errdetails.ErrorInfo) {
	if reason := info.GetReason(); reasonForm.MatchString(reason) {
		e.Reason = reason
	}
	if id := info.GetMetadata()[metadataSandboxID]; idProblem(id) == "" {
		e.SandboxID = id
	}
	e.Retryable = info.GetMetadata()[metadataRetryable] == "true"
	if code, err := strconv.Atoi(info.GetMetadata()[metadataExitCode]); err == nil {
		e.ExitCode = &code
	}
}

// neverOfTransport are the codes that no gRPC library sends by itself, as gRPC's own specification promises. A plugin in
// another language may send them without details.
var neverOfTransport = []codes.Code{
	codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition,
	codes.Aborted, codes.OutOfRange, codes.DataLoss,
}

// required are the calls that every plugin has.
var required = []string{"Create", "Attach", "StartServer", "Ping"}

// transportError returns the Error for a status that gRPC may have made itself: the answer was too large or malformed, the
// connection was lost, or the plugin ended the call in a way that the contract does not have. The call may have had its
// effect. Three cases are known for what they are: a call that was given up, one that took too long, and an optional call
// that the plugin does not serve.
func transportError(ctx context.Context, method string, st *status.Status) error {
	message := Shorten(text(st.Message()), messageBytes)
	switch code := st.Code(); {
	case code == codes.Canceled && ctx.Err() != nil:
		return &Error{Code: CodeCanceled, Message: message}
	case code == codes.DeadlineExceeded && deadlineNear(ctx):
		return &Error{Code: CodeTimeout, Message: message}
	case code == codes.Unimplemented && !slices.Contains(required, method):
		return &Error{Code: CodeUnsupported, Message: message}
	}
	return &Error{
		Code: CodeInternal, Reason: ReasonTransport, Retryable: st.Code() == codes.Unavailable,
		Message: fmt.Sprintf("%s ended without a word of the provider: the connection to the plugin says %s: %s", method, st.Code(), message),
	}
}

// deadlineNear reports whether ctx has ended or is about to: a plugin may notice the end of a call a moment before its host.
func deadlineNear(ctx context.Context) bool {
	deadline, limited := ctx.Deadline()
	return ctx.Err() != nil || limited && time.Until(deadline) < time.Second
}
