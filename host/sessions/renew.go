package sessions

import (
	"context"
	"fmt"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Renew moves the end of the sandbox's life to now plus lifetime, records that it is kept alive until then, and returns
// that end. Without a sandbox, or with one whose connect or disconnect was interrupted, the error's code is CodeNotFound.
// It waits for other hosts as Disconnect does. Errors are *connect.Error.
func (s *Sessions) Renew(
	ctx context.Context, session string, lifetime time.Duration, waiting func(holder string),
) (sandboxID string, end time.Time, err error) {
	err = s.underLease(ctx, session, waiting, func(ctx context.Context, l *lease.Lease) error {
		sandboxID, end, err = s.renew(ctx, l, lifetime)
		return err
	})
	return sandboxID, end, err
}

func (s *Sessions) renew(ctx context.Context, l *lease.Lease, lifetime time.Duration) (string, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	if l.Record.Interrupted() { // renewing would make a session out of what is to be ended
		return l.Record.SandboxID, time.Time{}, &connect.Error{
			Code: connect.CodeNotFound, Reason: connect.ReasonInterrupted,
			Message: fmt.Sprintf("session %q was interrupted while its host was %s its sandbox", l.Record.Session, l.Record.State),
		}
	}
	sandboxes, err := s.present(ctx, l.Record)
	if err != nil {
		return l.Record.SandboxID, time.Time{}, err
	}
	if len(sandboxes) == 0 {
		l.SetGone()
		return "", time.Time{}, s.noSandbox(l.Record.Session)
	}
	sandbox := sandboxes[0]
	renewer, able := s.account.Provider.(provider.Renewer)
	if !able {
		return sandbox.ID, time.Time{}, provider.Errorf(provider.CodeUnsupported, "provider %s cannot renew", s.account.Name)
	}
	end, err := renewer.Renew(ctx, provider.RenewRequest{
		SandboxRef: provider.SandboxRef{Owner: s.account.Owner, SandboxID: sandbox.ID}, Lifetime: lifetime,
	})
	if provider.CodeOf(err) == provider.CodeNotFound {
		l.SetGone()
	}
	if err != nil {
		return sandbox.ID, time.Time{}, err
	}
	before := l.Record.State
	sandbox.ExpiresAt = end
	l.SetSandbox(s.account.Name, sandbox)
	if before == records.StateSuspended {
		l.Record.State = before
	}
	l.Record.HeldUntil = end
	return sandbox.ID, end, nil
}
