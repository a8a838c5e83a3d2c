package sessions

import (
	"context"
	"slices"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Outcome is what Recover did.
type Outcome string

const (
	// OutcomeNothing: nothing was interrupted, or there was nothing left of it.
	OutcomeNothing Outcome = "nothing"
	// OutcomeDestroyed: the sandbox of an interrupted attempt was destroyed, or an interrupted disconnect was finished.
	OutcomeDestroyed Outcome = "destroyed"
	// OutcomeAdopted: the session has a sandbox that was there before the interrupted attempt.
	OutcomeAdopted Outcome = "adopted"
	// OutcomeBusy: another host works on the session.
	OutcomeBusy Outcome = "busy"
)

// Recover finishes what an interrupted host left of a session: what its attempt made is destroyed, because nobody was
// ever told of it; what was there before is recorded again. It returns the id of the sandbox it acted on. It is
// idempotent. Errors are *connect.Error.
func (s *Sessions) Recover(ctx context.Context, session string) (outcome Outcome, sandboxID string, err error) {
	outcome = OutcomeBusy
	err = s.ifFree(ctx, session, func(ctx context.Context, l *lease.Lease) error {
		sandboxID = l.Record.SandboxID
		outcome, err = s.recover(ctx, l)
		if l.Record.SandboxID != "" {
			sandboxID = l.Record.SandboxID
		}
		return err
	})
	return outcome, sandboxID, err
}

func (s *Sessions) recover(ctx context.Context, l *lease.Lease) (Outcome, error) {
	if !l.Record.Interrupted() || l.Record.Provider != s.account.Name {
		return OutcomeNothing, nil
	}
	known := l.Record.SandboxID != ""
	if _, err := s.account.Discard(ctx, l); err != nil {
		return "", err
	}
	if known {
		return OutcomeDestroyed, nil
	}
	left, err := s.list(ctx, l.Record.Session)
	left = without(left, l.Record.SandboxID) // a listing may still show what has just been destroyed
	switch {
	case err != nil:
		return "", err
	case len(left) == 0 && l.Record.SandboxID == "":
		return OutcomeNothing, nil
	case len(left) == 0:
		return OutcomeDestroyed, nil
	}
	l.SetSandbox(s.account.Name, left[0])
	if left[0].State == provider.StateSuspended {
		l.Record.State = records.StateSuspended
	}
	return OutcomeAdopted, nil
}

// Repay finishes what an attempt owes that is not the session's any more: what it made is destroyed. It is idempotent and
// returns as Recover does.
func (s *Sessions) Repay(ctx context.Context, attempt records.Attempt) (outcome Outcome, sandboxID string, err error) {
	outcome = OutcomeBusy
	err = s.ifFree(ctx, attempt.Session, func(ctx context.Context, l *lease.Lease) error {
		outcome = OutcomeNothing
		owed, err := l.Owed(ctx)
		i := slices.IndexFunc(owed, func(a records.Attempt) bool { return a.ID == attempt.ID && a.Provider == s.account.Name })
		if err != nil || i < 0 { // another host has finished it
			return err
		}
		if sandboxID, err = s.account.Repay(ctx, l, owed[i]); sandboxID != "" {
			outcome = OutcomeDestroyed
		}
		return err
	})
	return outcome, sandboxID, err
}
