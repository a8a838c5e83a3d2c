package connect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

// Code is the stable word for what went wrong: the one thing of an error that programs may match on.
type Code string

const (
	CodeInvalidConfig  Code = "invalid_config"
	CodeDenied         Code = "denied"
	CodeNotFound       Code = "not_found"
	CodeAlreadyExists  Code = "already_exists"
	CodeQuota          Code = "quota"
	CodeRateLimited    Code = "rate_limited"
	CodeUnreachable    Code = "unreachable"
	CodeUnsupported    Code = "unsupported"
	CodeAttachFailed   Code = "attach_failed"
	CodeCreateFailed   Code = "create_failed"
	CodeStartFailed    Code = "start_failed"
	CodeServerExited   Code = "server_exited"
	CodeHealthTimeout  Code = "health_timeout"
	CodeSandboxStopped Code = "sandbox_stopped"
	CodeSandboxGone    Code = "sandbox_gone"
	CodePluginFailed   Code = "plugin_failed"
	CodeDeadline       Code = "deadline_exceeded"
	CodeCancelled      Code = "cancelled"
	// CodeBusy: another host is working on the session.
	CodeBusy Code = "busy"
	// CodeLeaseLost: this host did not keep its lease alive in time, so that another may be working on the session.
	CodeLeaseLost Code = "lease_lost"
	// CodeRecordsUnusable: the records cannot be read or written.
	CodeRecordsUnusable Code = "records_unusable"
	// CodeUndelivered: everything is done, and the result did not reach whoever asked for it.
	CodeUndelivered Code = "undelivered"
	CodeInternal    Code = "internal"
)

// Cleanup is what became of what a failed connect had made.
type Cleanup string

const (
	// CleanupNone: nothing had been made.
	CleanupNone Cleanup = "none"
	// CleanupDone: it was destroyed, or it was seen that nothing had been made.
	CleanupDone Cleanup = "done"
	// CleanupKept: nothing had been made, but the sandbox that was found had been woken. It is kept, and costs money.
	CleanupKept Cleanup = "kept"
	// CleanupPending: it may still be there. The records know of it, so that the next connect of the session, or a
	// recovery, ends it.
	CleanupPending Cleanup = "pending"
	// CleanupFailed: it may still be there and cost money. CleanupError says more.
	CleanupFailed Cleanup = "failed"
)

// Reason tells failures with the same code apart where that matters to whoever is to mend them.
type Reason string

const (
	// ReasonHasSandbox: the session already has a sandbox, and the request was to create one.
	ReasonHasSandbox Reason = "has_sandbox"
	// ReasonInterrupted: an interrupted connect or disconnect is to be finished first.
	ReasonInterrupted Reason = "interrupted"
	// ReasonOpenServer: anyone could use the server.
	ReasonOpenServer Reason = "open_server"
	// ReasonHeaderConflict: the server and the provider need the same header.
	ReasonHeaderConflict Reason = "header_conflict"
)

// Error is every failure of a connect, and of the other work on sessions. It holds facts; advice on them is for whoever
// shows it, apart from Remedy. Message and LogTail may contain secrets, because a server may print its own environment: redact them.
type Error struct {
	Code       Code
	Reason     Reason
	Phase      Phase
	Provider   string
	Session    string
	SandboxID  string
	Message    string
	Retryable  bool
	RetryAfter time.Duration
	ExitCode   *int
	LogTail    []string
	// Limit is the limit that ended the attempt. Its Name is empty when none did.
	Limit Limit
	// OtherProvider has the session's sandbox, when that is why the session cannot be worked on here.
	OtherProvider string
	// Pings is how many health questions were asked.
	Pings        int
	Cleanup      Cleanup
	CleanupError string
	// Remedy is what mends it, in words, where only whoever noticed the failure knows: what to do to the state directory or
	// to the database. It is empty otherwise.
	Remedy string
	// Cause is the error of the provider or of the records, where it was one.
	Cause error
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// LimitName names a configured limit of a connect.
type LimitName string

const (
	LimitTotal  LimitName = "total"
	LimitCreate LimitName = "create"
	LimitStart  LimitName = "start"
	LimitHealth LimitName = "health"
)

// Limit is a limit that was reached.
type Limit struct {
	Name LimitName
	// Set is the time that was allowed.
	Set time.Duration
	// Took is the time after which the limit was noticed.
	Took time.Duration
}

// String returns the limit as the end of a sentence: what was allowed, and what was taken.
func (l Limit) String() string {
	name := "the limit"
	if l.Name == LimitTotal {
		name = "the overall deadline"
	}
	return fmt.Sprintf("%s of %s (given up after %s)", name, l.Set, round(l.Took))
}

// round makes a duration readable.
func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

// NewError returns err as the *Error of work on a session outside of a connect. err is that of a single provider call,
// of the records, or an *Error already. session may be empty.
func NewError(providerName, session string, err error) *Error {
	e := classify(err)
	switch {
	case e.Code == "" && provider.CodeOf(err) == provider.CodeTimeout:
		e.Code, e.Message = CodeDeadline, "the provider did not answer in time: "+e.Message
	case e.Code == "":
		e.Code = CodeInternal
	}
	e.Provider, e.Session, e.Cleanup = providerName, session, CleanupNone
	return e
}

// RecordsError returns err, which is that of the records, as an *Error. A cancelled context remains what it is.
func RecordsError(err error) error {
	var unusable *records.UnusableError
	var busy *records.BusyError
	switch {
	case err == nil:
		return nil
	case lease.IsLost(err):
		return &Error{Code: CodeLeaseLost, Retryable: true, Message: err.Error(), Cause: err}
	case errors.As(err, &busy):
		return &Error{Code: CodeBusy, Retryable: true, Message: busy.Error(), Cause: err}
	case errors.As(err, &unusable):
		return &Error{
			Code: CodeRecordsUnusable, Retryable: unusable.Passes, Message: unusable.Error(), Remedy: unusable.Hint, Cause: err,
		}
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: CodeDeadline, Retryable: true, Message: "the deadline passed before the records could be asked", Cause: err}
	}
	return &Error{Code: CodeRecordsUnusable, Message: "the records cannot be used: " + err.Error(), Cause: err}
}

// isOfRecords reports whether it is the records that failed. That they did not answer before a limit passed is their
// failure, not that of the step whose limit it was.
func isOfRecords(err error) bool {
	var unusable *records.UnusableError
	return errors.As(err, &unusable)
}

// classify returns err as an *Error with the code that its class tells. Code is empty where the class says only that
// something failed. That includes a provider that gave up by itself: a deadline or cancel of ours is known by its context.
func classify(err error) *Error {
	var failed *lease.Error
	if errors.As(err, &failed) {
		err = RecordsError(failed.Cause)
	}
	var e *Error
	var elsewhere *recovery.ElsewhereError
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &elsewhere):
		return &Error{
			Code: CodeAlreadyExists, SandboxID: elsewhere.SandboxID, OtherProvider: elsewhere.Provider, Message: elsewhere.Error(),
		}
	}
	p := provider.AsError(err)
	return &Error{
		Code: codeOf(p), Message: p.Error(), Retryable: p.Retryable, RetryAfter: p.RetryAfter, SandboxID: p.SandboxID,
		ExitCode: p.ExitCode, LogTail: p.LogTail, Cause: p,
	}
}

func codeOf(p *provider.Error) Code {
	switch {
	case p.Reason == provider.ReasonPluginCrashed, p.Reason == provider.ReasonPluginFailed,
		p.Reason == provider.ReasonInvalidReply, p.Reason == provider.ReasonPanic, p.Reason == provider.ReasonTransport,
		p.Reason == provider.ReasonListCut:
		return CodePluginFailed
	case p.Reason == provider.ReasonServerExited:
		return CodeServerExited
	case p.Code == provider.CodeExhausted && p.Reason == provider.ReasonQuota:
		return CodeQuota
	}
	return codes[p.Code]
}

var codes = map[provider.Code]Code{
	provider.CodeInvalid:     CodeInvalidConfig,
	provider.CodeDenied:      CodeDenied,
	provider.CodeNotFound:    CodeNotFound,
	provider.CodeConflict:    CodeAlreadyExists,
	provider.CodeExhausted:   CodeRateLimited,
	provider.CodeUnreachable: CodeUnreachable,
	provider.CodeUnsupported: CodeUnsupported,
	provider.CodeInternal:    CodeInternal,
}
