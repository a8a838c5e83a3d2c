package provider

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code is the class of an error: what a caller can do about it.
type Code string

const (
	// CodeInvalid: the request or the configuration is wrong and will stay wrong.
	CodeInvalid Code = "invalid"
	// CodeDenied: credentials are missing, wrong or too weak.
	CodeDenied Code = "denied"
	// CodeNotFound: the provider answered that there is no such sandbox. A look-up that failed never has this code.
	CodeNotFound Code = "not_found"
	// CodeConflict: the name belongs to a sandbox that is not ours.
	CodeConflict Code = "conflict"
	// CodeState: the sandbox exists, in a state that forbids the call.
	CodeState Code = "wrong_state"
	// CodeExhausted: quota or rate limit; see Reason.
	CodeExhausted Code = "exhausted"
	// CodeUnreachable: the provider, or the way to it, did not answer.
	CodeUnreachable Code = "unreachable"
	// CodeUnsupported: this provider cannot do that.
	CodeUnsupported Code = "unsupported"
	// CodeFailed: the provider tried and failed.
	CodeFailed Code = "failed"
	// CodeInternal: a fault of the plugin itself.
	CodeInternal Code = "internal"
	// CodeCanceled: the caller gave up.
	CodeCanceled Code = "canceled"
	// CodeTimeout: the deadline passed.
	CodeTimeout Code = "timeout"
)

// Reasons that the SDK and the host know. A plugin may use others.
const (
	// ReasonQuota and ReasonRateLimit are the two kinds of CodeExhausted.
	ReasonQuota     = "QUOTA"
	ReasonRateLimit = "RATE_LIMIT"
	// ReasonServerExited is a server that ended by itself; see ExitCode and LogTail.
	ReasonServerExited = "SERVER_EXITED"
	// ReasonGone is a CodeNotFound for a sandbox that used to exist.
	ReasonGone = "GONE"
	// ReasonPanic is a panic inside the plugin.
	ReasonPanic = "PANIC"
	// ReasonInvalidReply is an answer that breaks the contract. Set by the host.
	ReasonInvalidReply = "INVALID_REPLY"
	// ReasonTransport is a call that gRPC, and not the provider, ended: it may have had its effect. Set by the host.
	ReasonTransport = "TRANSPORT"
	// ReasonListCut is a listing of which a part was left out, because it was too long. Set by the host.
	ReasonListCut = "LIST_CUT"
	// ReasonPluginCrashed is a call that was under way when the plugin process ended. Set by the host.
	ReasonPluginCrashed = "PLUGIN_CRASHED"
	// ReasonPluginFailed is a plugin that could not be started or keeps crashing. Set by the host.
	ReasonPluginFailed = "PLUGIN_FAILED"
)

// Error is the error type of the contract. All of it but Cause crosses the wire. No field may contain a secret.
type Error struct {
	Code Code
	// Reason refines Code, in UPPER_SNAKE case. It is stable, and may be empty.
	Reason string
	// Message describes what happened, for people.
	Message string
	// Retryable means that the same call may succeed later.
	Retryable bool
	// RetryAfter is how long the provider asked to wait; zero when it did not.
	RetryAfter time.Duration
	// SandboxID is the sandbox concerned. From Create, it is a sandbox that was made and still exists.
	SandboxID string
	// ExitCode is set with ReasonServerExited if known.
	ExitCode *int
	// LogTail is the end of the server's log.
	LogTail []string
	// Fields are the configuration attributes that were refused.
	Fields []FieldError
	// Cause is for errors.Is and errors.As. It does not cross the wire, and its text is not shown: what people should
	// read of it belongs in Message.
	Cause error
}

// FieldError is one refused configuration attribute.
type FieldError struct {
	// Field is the attribute's name.
	Field string
	// Message describes what is wrong with the value, without quoting a sensitive value.
	Message string
}

func (e *Error) Error() string {
	message := e.Message
	if message == "" {
		message = string(e.Code)
	}
	parts := []string{message}
	for _, f := range e.Fields {
		parts = append(parts, f.Field+": "+f.Message)
	}
	return strings.Join(parts, "; ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Errorf returns an Error of the given code. A %w operand becomes the cause as usual, but is already part of the message.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// InvalidField refuses one configuration attribute.
func InvalidField(field, format string, args ...any) *Error {
	return &Error{
		Code:    CodeInvalid,
		Message: "the configuration was refused",
		Fields:  []FieldError{{Field: field, Message: fmt.Sprintf(format, args...)}},
	}
}

// ServerExited reports a server that ended by itself. exitCode may be nil.
func ServerExited(exitCode *int, logTail []string) *Error {
	message := "the server exited"
	if exitCode != nil {
		message = fmt.Sprintf("the server exited with code %d", *exitCode)
	}
	return &Error{Code: CodeFailed, Reason: ReasonServerExited, Message: message, ExitCode: exitCode, LogTail: Tail(logTail)}
}

// AsError returns the Error in err's chain. A context error becomes CodeCanceled or CodeTimeout, any other error
// CodeFailed. AsError returns nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled):
		return &Error{Code: CodeCanceled, Message: err.Error(), Cause: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: CodeTimeout, Message: err.Error(), Retryable: true, Cause: err}
	}
	return &Error{Code: CodeFailed, Message: err.Error(), Cause: err}
}

// CodeOf returns the code of err, and "" for nil.
func CodeOf(err error) Code {
	if e := AsError(err); e != nil {
		return e.Code
	}
	return ""
}

// Limits of a log tail: status details travel in HTTP/2 trailers, which some gRPC implementations keep under 8 KiB.
const (
	tailLines = 20
	tailBytes = 4 << 10
)

// Tail returns the last lines of a log that an error may carry: at most 20 lines and 4 KiB.
func Tail(lines []string) []string { return tail(lines, tailLines, tailBytes) }

// tail returns the last lines, at most so many and in all so many bytes.
func tail(lines []string, count, bytes int) []string {
	if len(lines) > count {
		lines = lines[len(lines)-count:]
	}
	size := 0
	for i := len(lines) - 1; i >= 0; i-- {
		room := bytes - size
		size += len(lines[i]) + 1
		if size > bytes {
			if i == len(lines)-1 { // a single line that is too long keeps its end
				return []string{lines[i][len(lines[i])-room:]}
			}
			return lines[i+1:]
		}
	}
	return lines
}

// Shorten returns at most that many bytes of text, and "..." in place of the rest. Whoever takes secrets out of a text must
// see where it was cut, because what is left of a secret there is a secret, too.
func Shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "..."
}
