package sessions

import (
	"context"
	"slices"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Reconcile brings a session's record into agreement with what the provider has, which it asks once more. It returns the
// state that is then recorded, or "" for a session that a host works on, which is left as it is. Errors are
// *connect.Error.
func (s *Sessions) Reconcile(ctx context.Context, session string) (state records.State, err error) {
	err = s.ifFree(ctx, session, func(ctx context.Context, l *lease.Lease) error {
		err := s.reconcile(ctx, l)
		state = l.Record.State
		return err
	})
	return state, err
}

func (s *Sessions) reconcile(ctx context.Context, l *lease.Lease) error {
	if !l.Record.HasSandbox() || l.Record.Interrupted() || l.Record.Provider != s.account.Name {
		return nil
	}
	sandboxes, err := s.present(ctx, l.Record)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(sandboxes, func(sandbox provider.Sandbox) bool { return sandbox.ID == l.Record.SandboxID })
	if i < 0 {
		l.SetGone()
		return nil
	}
	switch sandboxes[i].State {
	case provider.StateRunning:
		l.Record.State = records.StateRunning
	case provider.StateSuspended:
		l.Record.State = records.StateSuspended
	}
	l.Record.ExpiresAt = sandboxes[i].ExpiresAt
	return nil
}

// RemoveOrphan destroys a sandbox that no record names. It does so under the lease of the sandbox's session, so that no
// host can take it up meanwhile. It returns false, and has done nothing, when a host works on the session or a record
// names the sandbox by now. Errors are *connect.Error.
func (s *Sessions) RemoveOrphan(ctx context.Context, sandbox provider.Sandbox) (removed bool, err error) {
	session := sandbox.Session
	if session == "" { // labelled by hand: the lease is one that no session can have
		session = "(" + sandbox.ID + ")"
	}
	err = s.ifFree(ctx, session, func(ctx context.Context, l *lease.Lease) error {
		// Whichever provider the record names: two provider blocks may be of one account.
		if l.Record.HasSandbox() && l.Record.SandboxID == sandbox.ID {
			return nil
		}
		if err := s.account.Destroy(ctx, l, sandbox.ID); err != nil {
			return s.failure(session, sandbox.ID, err) // the record may name another sandbox
		}
		removed = true
		return nil
	})
	return removed, err
}
