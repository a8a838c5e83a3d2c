package connect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"time"

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
	// CodeLeaseLost: this host was not heard of in time, so that another may be working on the session.
	CodeLeaseLost Code = "lease_lost"
	// CodeRecordsUnusable: the records cannot be read or written.
	CodeRecordsUnusable Code = "records_unusable"
	CodeInternal        Code = "internal"
)

// Cleanup says what became of what a failed connect had made.
type Cleanup string

const (
	// CleanupNone: nothing had been made.
	CleanupNone Cleanup = "none"
	// CleanupDone: it was destroyed, or it was seen that nothing had been made.
	CleanupDone Cleanup = "done"
	// CleanupPending: it may still be there. The records know of it: whoever connects the session next, or berth
	// recover, ends it.
	CleanupPending Cleanup = "pending"
	// CleanupFailed: it may still be there and cost money. CleanupError says more.
	CleanupFailed Cleanup = "failed"
)

// Error is every failure of this package. Secrets may be in Message and LogTail, because a server may print its own
// environment: whoever shows them redacts.
type Error struct {
	Code       Code
	Phase      Phase
	Provider   string
	Session    string
	SandboxID  string
	Message    string
	Hint       string
	Retryable  bool
	RetryAfter time.Duration
	ExitCode   *int
	LogTail    []string
	// Pings is how many health questions were asked.
	Pings        int
	Cleanup      Cleanup
	CleanupError string
	// Cause is the provider's error, where it was one.
	Cause error
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Causes of contexts that end: they tell whose limit it was.
var (
	errTotal   = errors.New("the overall deadline passed")
	errAcquire = errors.New("the limit for getting a sandbox passed")
	errStart   = errors.New("the limit for starting the server passed")
	errHealth  = errors.New("the health wait is over")
)

// stepError puts the cause in place of an error that came of a step's own limit.
func stepError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errAcquire) || errors.Is(cause, errStart) {
		return cause
	}
	return err
}

// describe makes the error to report out of whatever ended the run. An ended context explains everything that failed
// because of it.
func (r *run) describe(ctx context.Context, err error) *Error {
	var e *Error
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errTotal), errors.Is(cause, context.DeadlineExceeded):
		e = &Error{
			Code: CodeDeadline, Retryable: true,
			Message: fmt.Sprintf("not connected within the overall deadline (%s)", round(time.Since(r.began))),
			Hint:    "raise timeouts.total or --timeout if the provider only needs longer",
		}
	case cause != nil:
		e = &Error{Code: CodeCancelled, Message: "cancelled"}
	case errors.Is(err, errAcquire):
		e = &Error{
			Code: r.acquireFailed(), Retryable: true,
			Message: fmt.Sprintf("no running sandbox after %s", r.req.Limits.Create),
			Hint:    "raise timeouts.create if the provider only needs longer",
		}
	case errors.Is(err, errStart):
		e = &Error{
			Code: CodeStartFailed, Retryable: true,
			Message: fmt.Sprintf("the server was not started after %s", r.req.Limits.Start),
			Hint:    "raise timeouts.start if the provider only needs longer",
		}
	case errors.As(err, &e):
	default:
		e = r.fromProvider(provider.AsError(err))
	}
	if r.claim == nil && r.waitsFor != "" && (e.Code == CodeDeadline || e.Code == CodeCancelled) {
		e.Message += ", waiting for " + r.waitsFor + ", which works on this session"
	}
	e.Provider, e.Session = r.name, r.req.Session
	return e
}

// fromProvider reads a provider's error: its class where that says all, else the step that failed.
func (r *run) fromProvider(p *provider.Error) *Error {
	e := fromProvider(p)
	if e.Code == "" {
		e.Code = CodeStartFailed
		if r.phase == PhaseAcquire {
			e.Code = r.acquireFailed()
		}
	}
	return e
}

func (r *run) acquireFailed() Code {
	if r.made {
		return CodeCreateFailed
	}
	return CodeAttachFailed
}

// fromProvider leaves Code empty where the class says only that it failed. That includes a provider that gave up by
// itself: a deadline or cancel of ours is known by its context.
func fromProvider(p *provider.Error) *Error {
	e := &Error{
		Message: p.Error(), Retryable: p.Retryable, RetryAfter: p.RetryAfter, SandboxID: p.SandboxID,
		ExitCode: p.ExitCode, LogTail: p.LogTail, Cause: p,
	}
	switch {
	case p.Reason == provider.ReasonPluginCrashed, p.Reason == provider.ReasonPluginFailed,
		p.Reason == provider.ReasonInvalidReply, p.Reason == provider.ReasonPanic:
		e.Code = CodePluginFailed
	case p.Reason == provider.ReasonServerExited:
		e.Code = CodeServerExited
	case p.Code == provider.CodeExhausted && p.Reason == provider.ReasonQuota:
		e.Code = CodeQuota
	default:
		e.Code = codes[p.Code]
	}
	e.Hint = hints[e.Code]
	return e
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

var hints = map[Code]string{
	CodeDenied:       "check the provider's credentials: berth doctor",
	CodeNotFound:     "connect with mode auto or create to make a sandbox",
	CodeQuota:        "disconnect sessions you no longer need (berth sessions), or raise the account's quota",
	CodeRateLimited:  "try again later",
	CodeUnreachable:  "check the network and the provider's status, then try again",
	CodeServerExited: "look at the server's log and command",
	CodePluginFailed: "run the command again with --log-level debug to see the plugin's own log",
}

var sessionID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}$`)

// check refuses a request that no provider could serve.
func (c *Connector) check(req Request) error {
	var message string
	switch {
	case !sessionID.MatchString(req.Session):
		message = fmt.Sprintf("the session id %.140q is not allowed: 1 to 128 of A-Z a-z 0-9 . _ : @ / + = -, beginning with a letter or digit", req.Session)
	case req.Mode != ModeAuto && req.Mode != ModeAttach && req.Mode != ModeCreate:
		message = fmt.Sprintf("the mode %q is not one of auto, attach, create", req.Mode)
	case len(req.Server.Command) == 0:
		message = "the server has no command"
	default:
		return nil
	}
	return &Error{Code: CodeInvalidConfig, Message: message, Session: req.Session, Provider: c.name, Cleanup: CleanupNone}
}

// isLoopback says that a URL can only be reached from the machine itself.
func isLoopback(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	address, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && address.IsLoopback()
}
