package cloud

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/shared/provider"
)

// ReasonUnclear marks an error of Make that may have made a sandbox although its class says that the cloud refused.
const ReasonUnclear = "UNCLEAR"

// MayHaveWorked reports whether a call that failed with err may have had its effect all the same.
func MayHaveWorked(err error) bool {
	e := provider.AsError(err)
	if e == nil {
		return false
	}
	var before notAskedError
	if errors.As(e.Cause, &before) {
		return false
	}
	switch e.Code {
	case provider.CodeUnreachable, provider.CodeTimeout, provider.CodeCanceled:
		return true
	}
	return e.Reason == ReasonUnclear
}

// NotAsked marks an error of Make that came before the cloud was asked for the sandbox, such as one of the image's: whatever
// its class, nothing was made. It returns nil for nil.
func NotAsked(err error) error {
	if err == nil {
		return nil
	}
	e := *provider.AsError(err)
	e.Cause = notAskedError{err}
	return &e
}

type notAskedError struct{ error }

func (n notAskedError) Unwrap() error { return n.error }

// Gone is the error about a sandbox that has ended. why may be empty.
func Gone(id, why string) *provider.Error {
	message := fmt.Sprintf("the sandbox %s no longer exists", id)
	if why != "" {
		message += ": " + why
	}
	return &provider.Error{Code: provider.CodeNotFound, Reason: provider.ReasonGone, SandboxID: id, Message: message}
}

// NotRunning is the error about a sandbox that must run for what was asked.
func NotRunning(s provider.Sandbox) error {
	if s.State == provider.StateGone {
		return Gone(s.ID, s.Detail)
	}
	return &provider.Error{
		Code: provider.CodeState, SandboxID: s.ID,
		Message: fmt.Sprintf("the sandbox %s is %s: attach to it first, which wakes it", s.ID, s.Detail),
	}
}

// About names the sandbox in an error. That the cloud does not find it means that it is gone: its id came from somewhere.
func About(err error, id string) error {
	if err == nil {
		return nil
	}
	e := *provider.AsError(err)
	if e.Code == provider.CodeNotFound && e.Reason != provider.ReasonGone {
		return Gone(id, "")
	}
	e.SandboxID = id
	return &e
}

// Ended is the error of something that ctx ended. doing completes the sentence "... was cancelled".
func Ended(ctx context.Context, doing string) *provider.Error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return &provider.Error{Code: provider.CodeCanceled, Message: doing + " was cancelled", Cause: ctx.Err()}
	}
	return &provider.Error{Code: provider.CodeTimeout, Retryable: true, Message: doing + " ran out of time", Cause: ctx.Err()}
}

// foreign is the error about a sandbox that is not the owner's or not the session's.
func foreign(s provider.Sandbox, whose string) error {
	return &provider.Error{
		Code: provider.CodeConflict, Reason: "FOREIGN_SANDBOX",
		Message: fmt.Sprintf("the sandbox %s belongs to another %s: its labels are not this one's", s.ID, whose),
	}
}

// owned returns an error unless the sandbox is the owner's and, where session is not empty, the session's.
func owned(s provider.Sandbox, owner, session string) error {
	switch {
	case owner == "" || s.Owner != owner:
		return foreign(s, "owner")
	case session != "" && s.Session != session:
		return foreign(s, "session")
	}
	return nil
}
