package connect

import (
	"context"
	"fmt"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

// undo destroys what this attempt made, and nothing else.
func (a *attempt) undo(ctx context.Context) (Cleanup, error) {
	if !a.mayHaveMade {
		return a.keptOr(CleanupNone), nil
	}
	a.enter(PhaseUndo)
	a.takeLateAnswer()
	if !a.mayHaveMade { // nothing was made after all
		a.leave("")
		return a.keptOr(CleanupDone), nil
	}
	err := a.destroyMade(ctx)
	if err == nil {
		a.lease.SetGone()
		a.leave("")
		return CleanupDone, nil
	}
	a.emitFailed(err.Error())
	if lease.IsLost(err) { // the sandbox is another host's to finish, or to use
		return CleanupPending, err
	}
	a.lease.Record.State, a.lease.Record.SandboxID = records.StateDestroying, a.sandboxID
	return CleanupFailed, err
}

// keptOr returns CleanupKept if the sandbox was woken, and else the other one.
func (a *attempt) keptOr(other Cleanup) Cleanup {
	if a.woken {
		return CleanupKept
	}
	return other
}

// takeLateAnswer waits for the answer to a Create that was given up, if there is one. It takes createGrace at most.
func (a *attempt) takeLateAnswer() {
	if a.late == nil {
		return
	}
	a.progress("waiting for what the provider answers to the create that was given up")
	c := <-a.late
	a.late = nil
	if c.err != nil {
		a.noteCreateError(c.err)
		return
	}
	a.sandboxID = c.sandbox.ID
	a.mayHaveMade, a.woken = c.sandbox.Origin == provider.OriginCreated, c.sandbox.Origin == provider.OriginWoken
}

// noteCreateError notes what the error of a Create tells of what it made.
func (a *attempt) noteCreateError(err error) {
	if failure := provider.AsError(err); failure.SandboxID != "" {
		a.namedByError = failure.SandboxID
	} else if rulesOutSandbox(failure.Code) {
		a.mayHaveMade = false
		a.lease.SetGone()
	}
}

// rulesOutSandbox reports whether a Create that failed with the code cannot have made anything.
func rulesOutSandbox(code provider.Code) bool {
	switch code {
	case provider.CodeInvalid, provider.CodeDenied, provider.CodeConflict, provider.CodeExhausted, provider.CodeUnsupported:
		return true
	}
	return false
}

func (a *attempt) destroyMade(ctx context.Context) error {
	if a.sandboxID == "" {
		a.progress("looking for what attempt " + a.id + " may have made")
		id, err := a.findMade(ctx)
		if err != nil {
			return fmt.Errorf("a sandbox may have been made for attempt %s, and looking for it failed: %w", a.id, err)
		}
		if id == "" {
			return nil
		}
		a.sandboxID = id
	}
	return a.account.Destroy(ctx, a.lease, a.sandboxID)
}

// findMade returns the id of the sandbox that this attempt made, or "" if it made none. Only the attempt's label proves
// that a sandbox is its own: what an error of Create named may be another session's. Where the listing does not tell,
// the sandbox itself does.
func (a *attempt) findMade(ctx context.Context) (string, error) {
	id, err := a.account.FindMade(ctx, a.lease.Record.OwnAttempt(), recovery.SearchTime)
	unlisted := provider.CodeOf(err) == provider.CodeUnsupported
	if id != "" || err != nil && !unlisted || a.namedByError == "" && !unlisted {
		return id, err
	}
	sandbox, err := a.account.Provider.Attach(ctx, a.attachRequest(a.namedByError))
	switch code := provider.CodeOf(err); {
	case code == provider.CodeNotFound, code == provider.CodeConflict:
		return "", nil
	case err != nil:
		return "", err
	case sandbox.Attempt == a.id:
		return sandbox.ID, nil
	}
	return "", nil
}
