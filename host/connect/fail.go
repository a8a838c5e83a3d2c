package connect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

const (
	// logLines is how much of a server's log goes into an error, and logLimit bounds getting it.
	logLines = 20
	logLimit = 3 * time.Second
)

// fail undoes what the attempt made, writes the record as things are then, and returns err as the *Error to report.
func (a *attempt) fail(ctx context.Context, err error) *Error {
	e := a.describe(ctx, err)
	a.emitFailed(e.Message)
	e.Phase, e.Pings = a.phase, a.pings // before the undo, which is a phase of its own

	undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.req.Limits.Undo)
	defer cancel()
	if a.lease != nil {
		undoCtx = a.lease.Fenced(undoCtx)
	}
	a.addLog(undoCtx, e)
	var undoErr error
	if e.Cleanup, undoErr = a.undo(undoCtx); undoErr != nil {
		e.CleanupError = undoErr.Error()
	}
	if e.SandboxID == "" {
		e.SandboxID = a.sandboxID
	}
	if a.lease != nil {
		_ = a.lease.Release(ctx) // if it fails, the lease ends by itself, and the record says what is to be finished
	}
	return e
}

// describe returns the error to report for whatever ended the attempt. An ended context explains everything that failed
// because of it.
func (a *attempt) describe(ctx context.Context, err error) *Error {
	var e *Error
	cause := context.Cause(ctx)
	switch {
	case errors.As(err, &e) && e.Code == CodeUndelivered && !errors.Is(cause, context.Canceled):
		// That the deadline passed while nobody took the result is not for want of time.
	case isOfRecords(err) && !errors.Is(cause, context.Canceled):
		e = a.describeStep(err)
	case errors.Is(cause, errTotal), errors.Is(cause, context.DeadlineExceeded):
		took := time.Since(a.began)
		e = &Error{
			Code: CodeDeadline, Retryable: true,
			Message: fmt.Sprintf("not connected within the caller's deadline: given up after %s", round(took)),
		}
		if errors.Is(cause, errTotal) {
			e.Limit = Limit{LimitTotal, a.req.Limits.Total, took}
			e.Message = "not connected within " + e.Limit.String()
		}
	case cause != nil:
		e = &Error{Code: CodeCancelled, Message: "cancelled"}
	default:
		e = a.describeStep(err)
	}
	if a.lease == nil && a.waitsFor != "" && (e.Code == CodeDeadline || e.Code == CodeCancelled) {
		e.Message += ", waiting for " + a.waitsFor + ", which works on this session"
	}
	e.Provider, e.Session = a.account.Name, a.req.Session
	return e
}

// describeStep returns the error of a step that failed by itself: its class where that tells all, else the code of the
// step.
func (a *attempt) describeStep(err error) *Error {
	took := time.Since(a.phaseBegan)
	switch limits := a.req.Limits; {
	case errors.Is(err, errCreate):
		limit := Limit{LimitCreate, limits.Create, took}
		return &Error{Code: a.acquireCode(), Retryable: true, Limit: limit, Message: "no running sandbox within " + limit.String()}
	case errors.Is(err, errStart):
		limit := Limit{LimitStart, limits.Start, took}
		return &Error{Code: CodeStartFailed, Retryable: true, Limit: limit, Message: "the server was not started within " + limit.String()}
	}
	e := classify(err)
	if e.Code == "" {
		e.Code = CodeStartFailed
		if a.phase == PhaseAcquire {
			e.Code = a.acquireCode()
		}
	}
	return e
}

func (a *attempt) acquireCode() Code {
	if a.mayHaveMade {
		return CodeCreateFailed
	}
	return CodeAttachFailed
}

// addLog fetches the end of the server's log for an error that has none yet.
func (a *attempt) addLog(ctx context.Context, e *Error) {
	reader, able := a.account.Provider.(provider.LogReader)
	helps := e.Code == CodeHealthTimeout || e.Code == CodeServerExited
	if !able || !helps || len(e.LogTail) > 0 || a.sandboxID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, logLimit)
	defer cancel()
	lines, err := reader.Logs(ctx, provider.LogsRequest{
		SandboxRef: provider.SandboxRef{Owner: a.account.Owner, SandboxID: a.sandboxID}, Lines: logLines,
	})
	if err == nil {
		e.LogTail = provider.Tail(lines)
	}
}
