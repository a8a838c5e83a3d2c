package connect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/shared/provider"
)

// settleTime is how long an undo keeps looking for a sandbox that a Create may have made without saying so: a cloud's
// listing lags behind its creations.
const settleTime = 3 * time.Second

// fail reports err after undoing what the run made.
func (r *run) fail(ctx context.Context, err error) *Error {
	e := r.describe(ctx, err)
	r.emit(Event{Phase: r.phase, Status: StatusFailed, Elapsed: time.Since(r.phaseBegan), Message: e.Message})
	e.Phase = r.phase
	e.Pings = r.pings

	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.req.Limits.Undo)
	defer cancel()
	r.addLog(undo, e)
	e.Cleanup, err = r.undo(undo)
	if err != nil {
		e.CleanupError = err.Error()
	}
	if e.SandboxID == "" {
		e.SandboxID = r.sandboxID
	}
	return e
}

// undo destroys what this run made, and nothing else.
func (r *run) undo(ctx context.Context) (Cleanup, error) {
	if !r.made {
		return CleanupNone, nil
	}
	r.enter(PhaseUndo)
	err := r.destroyMade(ctx)
	if err != nil {
		r.emit(Event{Phase: PhaseUndo, Status: StatusFailed, Elapsed: time.Since(r.phaseBegan), Message: err.Error()})
		return CleanupFailed, err
	}
	r.leave("")
	return CleanupDone, nil
}

func (r *run) destroyMade(ctx context.Context) error {
	if r.sandboxID == "" {
		id, err := r.findMade(ctx)
		if err != nil {
			return fmt.Errorf("a sandbox may have been made for attempt %s, and looking for it failed: %w", r.attempt, err)
		}
		if id == "" {
			return nil
		}
		r.sandboxID = id
	}
	destroyer, able := r.provider.(provider.Destroyer)
	if !able {
		return fmt.Errorf("the provider cannot destroy: sandbox %s is left", r.sandboxID)
	}
	ref := provider.SandboxRef{Owner: r.owner, SandboxID: r.sandboxID}
	err := insist(ctx, func() error { return destroyer.Destroy(ctx, ref) })
	if err != nil && provider.CodeOf(err) != provider.CodeNotFound {
		return fmt.Errorf("sandbox %s is left: %w", r.sandboxID, err)
	}
	return nil
}

// findMade looks for the sandbox of this attempt. It looks for a while before it believes that there is none.
func (r *run) findMade(ctx context.Context) (id string, err error) {
	settle, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	var last error
	_ = retry.Do(settle, retry.NewConstant(settleTime/10), func(context.Context) error {
		// One listing may take longer than the settling: it has the whole budget of the undo.
		sandboxes, err := list(ctx, r.provider, provider.ListRequest{Owner: r.owner, Session: r.req.Session})
		last = err
		for _, sandbox := range sandboxes {
			if sandbox.Attempt == r.attempt && sandbox.State != provider.StateGone {
				id = sandbox.ID
				return nil
			}
		}
		if provider.CodeOf(err) == provider.CodeUnsupported {
			return err
		}
		return retry.RetryableError(errNotListed)
	})
	return id, last
}

var errNotListed = errors.New("not listed")

// insist repeats a call whose failure may pass, until ctx ends.
func insist(ctx context.Context, call func() error) error {
	var last *provider.Error
	backoff := pauses()
	patient := retry.BackoffFunc(func() (time.Duration, bool) {
		pause, stop := backoff.Next()
		return max(pause, last.RetryAfter), stop
	})
	err := retry.Do(ctx, patient, func(context.Context) error {
		err := call()
		last = provider.AsError(err)
		if last != nil && (last.Retryable || last.Code == provider.CodeUnreachable) && last.Reason != provider.ReasonPluginFailed {
			return retry.RetryableError(err)
		}
		return err
	})
	if last != nil {
		return last
	}
	return err
}

func pauses() retry.Backoff {
	return retry.WithCappedDuration(2*time.Second, retry.NewExponential(200*time.Millisecond))
}

// list is Lister.List of a provider that may not have it.
func list(ctx context.Context, p provider.Provider, req provider.ListRequest) ([]provider.Sandbox, error) {
	lister, able := p.(provider.Lister)
	if !able {
		return nil, provider.Errorf(provider.CodeUnsupported, "the provider cannot list its sandboxes")
	}
	return lister.List(ctx, req)
}
