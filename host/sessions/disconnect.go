package sessions

import (
	"context"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Action is what Disconnect does with a session's sandbox.
type Action string

const (
	// ActionDestroy ends the sandbox for good.
	ActionDestroy Action = "destroy"
	// ActionSuspend stops it, so that the next connect wakes it.
	ActionSuspend Action = "suspend"
)

// Disconnect destroys or suspends the session's sandbox and returns its id. Without a sandbox the error's code is
// CodeNotFound. If the provider cannot do the action it is CodeUnsupported, and nothing has changed. Disconnect waits
// while another host works on the session, and tells waiting, which may be nil, which one. Errors are *connect.Error.
func (s *Sessions) Disconnect(
	ctx context.Context, session string, action Action, waiting func(holder string),
) (sandboxID string, err error) {
	err = s.underLease(ctx, session, waiting, func(ctx context.Context, l *lease.Lease) error {
		sandboxID, err = s.disconnect(ctx, l, action)
		return err
	})
	return sandboxID, err
}

func (s *Sessions) disconnect(ctx context.Context, l *lease.Lease, action Action) (sandboxID string, err error) {
	destroyed, err := s.account.Finish(ctx, l)
	if err != nil {
		return l.Record.SandboxID, err
	}
	sandboxes, err := s.present(ctx, l.Record)
	if err != nil {
		return l.Record.SandboxID, err
	}
	sandboxes = without(sandboxes, destroyed...) // a listing may still show what has just been destroyed
	if len(sandboxes) == 0 {
		if len(destroyed) > 0 && action == ActionDestroy {
			return destroyed[0], nil
		}
		l.SetGone()
		return "", s.noSandbox(l.Record.Session)
	}
	before := l.Record
	l.SetSandbox(s.account.Name, sandboxes[0])
	l.Record.State = records.StateDestroying
	if action == ActionSuspend {
		l.Record.State = records.StateSuspended
	}
	if err := l.Save(ctx); err != nil {
		return sandboxes[0].ID, err
	}
	for _, sandbox := range sandboxes { // there is more than one only after a mishap: none may stay
		sandboxID = sandbox.ID
		err := s.end(ctx, l, sandbox.ID, action)
		code := provider.CodeOf(err)
		switch {
		case code == provider.CodeNotFound:
			l.SetGone()
		case code == provider.CodeUnsupported, err != nil && action == ActionSuspend && !mayHaveWorked(code):
			l.Record = before // nothing has changed
		}
		if err != nil {
			return sandboxID, err
		}
	}
	if action == ActionDestroy {
		l.SetGone()
	}
	return sandboxID, nil
}

// end does the action to one sandbox.
func (s *Sessions) end(ctx context.Context, l *lease.Lease, sandboxID string, action Action) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	if err := l.Check(ctx); err != nil {
		return err
	}
	ref := provider.SandboxRef{Owner: s.account.Owner, SandboxID: sandboxID}
	if action == ActionSuspend {
		if suspender, able := s.account.Provider.(provider.Suspender); able {
			return suspender.Suspend(ctx, ref)
		}
	} else if destroyer, able := s.account.Provider.(provider.Destroyer); able {
		return destroyer.Destroy(ctx, ref)
	}
	return provider.Errorf(provider.CodeUnsupported, "provider %s cannot %s", s.account.Name, action)
}

// mayHaveWorked reports whether a call that failed with the code may have had its effect.
func mayHaveWorked(code provider.Code) bool {
	switch code {
	case provider.CodeUnreachable, provider.CodeTimeout, provider.CodeCanceled, provider.CodeInternal:
		return true
	}
	return false
}
