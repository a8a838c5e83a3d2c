package connect

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Survey lists every sandbox in the provider's account that carries an owner's label, those that are gone left out. A
// plugin that knows only its own owner's lists those. Errors are *Error.
func (c *Connector) Survey(ctx context.Context) ([]provider.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, surveyLimit)
	defer cancel()
	all, err := list(ctx, c.provider, provider.ListRequest{Owner: c.owner, AllOwners: true})
	if err != nil {
		return nil, c.sessionError("", "", err)
	}
	return slices.DeleteFunc(all, func(s provider.Sandbox) bool { return s.State == provider.StateGone }), nil
}

// surveyLimit bounds listing an account, which may hold thousands.
const surveyLimit = 2 * time.Minute

// Owner is the label value of this installation's sandboxes.
func (c *Connector) Owner() string { return c.owner }

// RemoveOrphan destroys a sandbox that no record names, under the lease of its session, so that no host can take it up
// meanwhile. It answers false, and has done nothing, when a host works on the session or a record names the sandbox by
// now. Errors are *Error.
func (c *Connector) RemoveOrphan(ctx context.Context, sandbox provider.Sandbox) (removed bool, err error) {
	id := sandbox.Session
	if id == "" { // labelled by hand: the lease is one that no session can have
		id = "(" + sandbox.ID + ")"
	}
	err = c.ifFree(ctx, id, func(ctx context.Context, cl *claim) error {
		// Whichever provider block it names: two may be of one account.
		if cl.record.HasSandbox() && cl.record.SandboxID == sandbox.ID {
			return nil
		}
		if err := c.destroy(ctx, cl, sandbox.ID); err != nil {
			return c.sessionError(id, sandbox.ID, err) // the record may name another
		}
		removed = true
		return nil
	})
	return removed, err
}

// Reconcile brings a session's record into agreement with what the provider has, which it asks once more. It answers
// the state that is recorded then. A session that a host works on is left as it is. Errors are *Error.
func (c *Connector) Reconcile(ctx context.Context, id string) (state records.State, err error) {
	err = c.ifFree(ctx, id, func(ctx context.Context, cl *claim) error {
		defer func() { state = cl.record.State }()
		if !cl.record.HasSandbox() || cl.record.Interrupted() || cl.record.Provider != c.name {
			return nil
		}
		sandboxes, err := c.present(ctx, cl.record)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(sandboxes, func(s provider.Sandbox) bool { return s.ID == cl.record.SandboxID })
		if i < 0 {
			cl.gone()
			return nil
		}
		switch sandboxes[i].State {
		case provider.StateRunning:
			cl.record.State = records.StateRunning
		case provider.StateSuspended:
			cl.record.State = records.StateSuspended
		}
		cl.record.ExpiresAt = sandboxes[i].ExpiresAt
		return nil
	})
	return state, err
}

// ifFree works on a session under its lease, and does nothing when another host has that.
func (c *Connector) ifFree(ctx context.Context, id string, work func(context.Context, *claim) error) error {
	cl, err := c.tryClaim(ctx, id)
	var e *Error
	if errors.As(err, &e) && e.Code == CodeBusy {
		return nil
	}
	if err != nil {
		return c.sessionError(id, "", err)
	}
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	err = work(cl.fenced(ctx), cl)
	if released := cl.release(ctx); err == nil {
		err = released
	}
	if err != nil {
		return c.sessionError(id, cl.record.SandboxID, err)
	}
	return nil
}
