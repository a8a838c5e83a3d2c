package connect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// settleTime is how long a sandbox is looked for that a Create may have made without saying so.
const settleTime = 3 * time.Second

// fail reports err after undoing what the run made, and leaves the record as things then are.
func (r *run) fail(ctx context.Context, err error) *Error {
	e := r.describe(ctx, err)
	r.emit(Event{Phase: r.phase, Status: StatusFailed, Elapsed: time.Since(r.phaseBegan), Message: e.Message})
	e.Phase = r.phase
	e.Pings = r.pings

	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.req.Limits.Undo)
	defer cancel()
	if r.claim != nil {
		undo = r.claim.fenced(undo)
	}
	r.addLog(undo, e)
	e.Cleanup, err = r.undo(undo)
	if err != nil {
		e.CleanupError = err.Error()
	}
	if e.SandboxID == "" {
		e.SandboxID = r.sandboxID
	}
	if r.claim != nil {
		_ = r.claim.release(ctx) // if it fails, the lease ends by itself, and the record says what is to be finished
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
	switch {
	case err == nil:
		r.claim.gone()
		r.leave("")
		return CleanupDone, nil
	case isLost(err): // the sandbox is another's to finish, or to use
		r.emit(Event{Phase: PhaseUndo, Status: StatusFailed, Elapsed: time.Since(r.phaseBegan), Message: err.Error()})
		return CleanupPending, err
	default:
		r.claim.record.State, r.claim.record.SandboxID = records.StateDestroying, r.sandboxID
		r.emit(Event{Phase: PhaseUndo, Status: StatusFailed, Elapsed: time.Since(r.phaseBegan), Message: err.Error()})
		return CleanupFailed, err
	}
}

func (r *run) destroyMade(ctx context.Context) error {
	if r.sandboxID == "" {
		id, err := r.findMade(ctx, r.claim.record, settleTime)
		if err != nil {
			return fmt.Errorf("a sandbox may have been made for attempt %s, and looking for it failed: %w", r.attempt, err)
		}
		if id == "" {
			return nil
		}
		r.sandboxID = id
	}
	return r.destroy(ctx, r.claim, r.sandboxID)
}

// destroy ends one sandbox for good, under a lease.
func (c *Connector) destroy(ctx context.Context, under *claim, sandboxID string) error {
	destroyer, able := c.provider.(provider.Destroyer)
	if !able {
		return provider.Errorf(provider.CodeUnsupported, "the provider cannot destroy: sandbox %s is left", sandboxID)
	}
	ref := provider.SandboxRef{Owner: c.owner, SandboxID: sandboxID}
	err := insist(ctx, func() error {
		if err := under.check(ctx); err != nil {
			return err
		}
		return destroyer.Destroy(ctx, ref)
	})
	if err != nil && provider.CodeOf(err) != provider.CodeNotFound {
		return fmt.Errorf("sandbox %s is left: %w", sandboxID, err)
	}
	return nil
}

// findMade looks for the sandbox that the record's attempt made. It looks for a while before it believes that there is
// none, because a cloud's listing lags behind its creations.
func (c *Connector) findMade(ctx context.Context, record records.Record, patience time.Duration) (id string, err error) {
	settle, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	_ = retry.Do(settle, retry.NewConstant(settleTime/10), func(context.Context) error {
		// One listing may take longer than the settling: it has the whole time of ctx.
		sandboxes, err := list(ctx, c.provider, provider.ListRequest{Owner: c.owner, Session: record.Session})
		last = err
		for _, sandbox := range sandboxes {
			if sandbox.Attempt == record.Attempt && sandbox.State != provider.StateGone {
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
		if isLost(err) {
			last = nil
			return err
		}
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
