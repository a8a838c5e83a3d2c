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
	// CodeNotFound: the provider answered that there is no such sandbox. Never a look-up that failed.
	CodeNotFound Code = "not_found"
	// CodeConflict: the name is held by a sandbox that is not ours.
	CodeConflict Code = "conflict"
	// CodeState: the sandbox is there, in a state that forbids the call.
	CodeState Code = "wrong_state"
	// CodeExhausted: quota or rate limit; Reason tells which.
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

// Reasons the SDK and the host give a meaning to. A plugin may use others of its own.
const (
	// ReasonQuota and ReasonRateLimit tell the two kinds of CodeExhausted apart.
	ReasonQuota     = "QUOTA"
	ReasonRateLimit = "RATE_LIMIT"
	// ReasonServerExited is a server that ended by itself; ExitCode and LogTail say more.
	ReasonServerExited = "SERVER_EXITED"
	// ReasonGone is a CodeNotFound for a sandbox that did exist.
	ReasonGone = "GONE"
	// ReasonPanic is a panic inside the plugin.
	ReasonPanic = "PANIC"
	// ReasonInvalidReply is an answer that breaks the contract, noticed by the host.
	ReasonInvalidReply = "INVALID_REPLY"
	// ReasonPluginCrashed is a call that was under way when the plugin process ended. Given by the host.
	ReasonPluginCrashed = "PLUGIN_CRASHED"
	// ReasonPluginFailed is a plugin that could not be started or keeps crashing. Given by the host.
	ReasonPluginFailed = "PLUGIN_FAILED"
)

// Error is the one error of the contract. It crosses the wire whole, except for Cause. No field may hold a secret.
type Error struct {
	Code Code
	// Reason is a stable, finer word in UPPER_SNAKE case; may be empty.
	Reason string
	// Message says what happened, in words.
	Message string
	// Retryable says that the same call may succeed later.
	Retryable bool
	// RetryAfter is how long the provider asked to wait; zero when it did not.
	RetryAfter time.Duration
	// SandboxID is the sandbox this is about. From Create it means: this one was made and is still there.
	SandboxID string
	// ExitCode is set with ReasonServerExited where it is known.
	ExitCode *int
	// LogTail is the end of the server's log.
	LogTail []string
	// Fields are the configuration attributes that were refused.
	Fields []FieldError
	// Cause is for errors.Is and errors.As. It stays on its side of the wire, and its text is not shown: whatever of
	// it people should read belongs in Message.
	Cause error
}

// FieldError is one refused configuration attribute.
type FieldError struct {
	// Field is the attribute's name.
	Field string
	// Message says what is wrong with it, without quoting a sensitive value.
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

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Errorf makes an Error of a class. A %w operand becomes the cause as usual, but is already part of the message.
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

// AsError gives the Error in err's chain. Context errors become CodeCanceled and CodeTimeout, anything else
// CodeFailed. It returns nil for nil.
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

// CodeOf gives the class of err, and "" for nil.
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

// Tail cuts a log to the last lines that an error may carry: 20 lines and 4 KiB.
func Tail(lines []string) []string {
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	size := 0
	for i := len(lines) - 1; i >= 0; i-- {
		room := tailBytes - size
		size += len(lines[i]) + 1
		if size > tailBytes {
			if i == len(lines)-1 { // a single line that is too long keeps its end
				return []string{lines[i][len(lines[i])-room:]}
			}
			return lines[i+1:]
		}
	}
	return lines
}
