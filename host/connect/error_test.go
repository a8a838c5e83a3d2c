package connect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

func TestEveryClassOfAProvidersErrorHasItsCode(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  *provider.Error
		want Code
	}{
		{&provider.Error{Code: provider.CodeInvalid}, CodeInvalidConfig},
		{&provider.Error{Code: provider.CodeDenied}, CodeDenied},
		{&provider.Error{Code: provider.CodeNotFound}, CodeNotFound},
		{&provider.Error{Code: provider.CodeConflict}, CodeAlreadyExists},
		{&provider.Error{Code: provider.CodeExhausted}, CodeRateLimited},
		{&provider.Error{Code: provider.CodeExhausted, Reason: provider.ReasonQuota}, CodeQuota},
		{&provider.Error{Code: provider.CodeFailed, Reason: provider.ReasonQuota}, CodeInternal},
		{&provider.Error{Code: provider.CodeUnreachable}, CodeUnreachable},
		{&provider.Error{Code: provider.CodeUnsupported}, CodeUnsupported},
		{&provider.Error{Code: provider.CodeInternal}, CodeInternal},
		{&provider.Error{Code: provider.CodeFailed}, CodeInternal},
		{&provider.Error{Code: provider.CodeTimeout}, CodeDeadline},
		{&provider.Error{Code: provider.CodeFailed, Reason: provider.ReasonServerExited}, CodeServerExited},
		{&provider.Error{Code: provider.CodeUnreachable, Reason: provider.ReasonPluginCrashed}, CodePluginFailed},
		{&provider.Error{Code: provider.CodeUnreachable, Reason: provider.ReasonPluginFailed}, CodePluginFailed},
		{&provider.Error{Code: provider.CodeInternal, Reason: provider.ReasonInvalidReply}, CodePluginFailed},
		{&provider.Error{Code: provider.CodeInternal, Reason: provider.ReasonPanic}, CodePluginFailed},
	} {
		test.err.Message = "as the provider put it"
		e := NewError("acme", "s1", fmt.Errorf("asking: %w", test.err))
		what := fmt.Sprintf("%s %s", test.err.Code, test.err.Reason)
		same(t, what, e.Code, test.want)
		same(t, what+": provider", e.Provider+" "+e.Session, "acme s1")
		same(t, what+": cleanup", e.Cleanup, CleanupNone)
		if !strings.Contains(e.Message, "as the provider put it") {
			t.Errorf("%s: message %q", what, e.Message)
		}
		same(t, what+": out of time", strings.Contains(e.Message, "did not answer in time"), test.want == CodeDeadline)
	}
}

func TestWhatTheRecordsCouldNotDoIsTheirFailure(t *testing.T) {
	t.Parallel()
	unusable := &records.UnusableError{Where: "the database", Problem: "is locked", Hint: "wait", Passes: true}
	for _, test := range []struct {
		err       error
		want      Code
		retryable bool
	}{
		{unusable, CodeRecordsUnusable, true},
		{&records.UnusableError{Where: "the database", Problem: "is from the future"}, CodeRecordsUnusable, false},
		{errors.New("some driver's"), CodeRecordsUnusable, false},
		{&records.BusyError{Holder: "host two"}, CodeBusy, true},
		{records.ErrLost, CodeLeaseLost, true},
	} {
		var e *Error
		if !errors.As(RecordsError(fmt.Errorf("saving: %w", test.err)), &e) {
			t.Fatalf("%v is no *Error", test.err)
		}
		same(t, test.err.Error(), e.Code, test.want)
		same(t, test.err.Error()+": retryable", e.Retryable, test.retryable)
		if !errors.Is(e, test.err) {
			t.Errorf("%v is not the cause of %v", test.err, e)
		}
		same(t, "of a lease", classify(&lease.Error{Cause: test.err}).Code, test.want)
	}
	same(t, "none", RecordsError(nil), nil)
	same(t, "a cancelled context", RecordsError(context.Canceled), context.Canceled)
	same(t, "a deadline", classify(&lease.Error{Cause: context.DeadlineExceeded}).Code, CodeDeadline)
}

func TestASandboxElsewhereIsNamedWithItsProvider(t *testing.T) {
	t.Parallel()
	e := NewError("acme", "s1", &recovery.ElsewhereError{Session: "s1", Provider: "other", SandboxID: "box-1"})
	same(t, "code", e.Code, CodeAlreadyExists)
	same(t, "where", e.OtherProvider+" "+e.SandboxID, "other box-1")
}

func TestTimesInMessagesAreReadable(t *testing.T) {
	t.Parallel()
	for took, want := range map[time.Duration]string{
		1_499 * time.Microsecond:     "1ms",
		999_600 * time.Microsecond:   "1s",
		time.Second:                  "1s",
		1_049 * time.Millisecond:     "1s",
		1_051 * time.Millisecond:     "1.1s",
		119_960 * time.Millisecond:   "2m0s",
		12_345_678 * time.Nanosecond: "12ms",
	} {
		same(t, took.String(), round(took).String(), want)
	}
}

func TestOnlyARecordsOwnFailureIsTheirs(t *testing.T) {
	t.Parallel()
	same(t, "unusable", isOfRecords(fmt.Errorf("saving: %w", &records.UnusableError{Problem: "is full"})), true)
	same(t, "the provider's", isOfRecords(provider.Errorf(provider.CodeFailed, "no")), false)
}
