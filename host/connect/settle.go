package connect

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// settle finishes what an earlier host began with the session and did not end.
//
// A Create whose answer was never recorded is not adopted but destroyed: the plugin that made it may still be removing
// it, because its host has gone. One whose sandbox is in the record had come to its end; Attach finds it.
func (c *Connector) settle(ctx context.Context, cl *claim) error {
	switch {
	case cl.record.State == records.StateDestroying:
		return c.finishDestroying(ctx, cl)
	case cl.record.State == records.StateCreating && cl.record.SandboxID == "":
		return c.destroyAttempt(ctx, cl)
	}
	return nil
}

// finishDestroying does what was to be done with a sandbox, which may not be known by its id.
func (c *Connector) finishDestroying(ctx context.Context, cl *claim) error {
	if cl.record.SandboxID == "" {
		return c.destroyAttempt(ctx, cl)
	}
	return c.destroyRecorded(ctx, cl, cl.record.SandboxID)
}

// destroyRecorded destroys a sandbox, and records before that it is to be destroyed: nobody may attach to it any more.
func (c *Connector) destroyRecorded(ctx context.Context, cl *claim, id string) error {
	if cl.record.State != records.StateDestroying || cl.record.SandboxID != id {
		cl.record.State, cl.record.SandboxID = records.StateDestroying, id
		if err := cl.save(ctx); err != nil {
			return err
		}
	}
	if err := c.destroy(ctx, cl, id); err != nil {
		return err
	}
	cl.gone()
	return nil
}

// destroyAttempt destroys what an interrupted Create made, if it made anything.
func (c *Connector) destroyAttempt(ctx context.Context, cl *claim) error {
	patience := settleTime
	if time.Since(cl.record.UpdatedAt) > ListingLag { // then one look is enough
		patience = settleTime / 10
	}
	id, err := c.findMade(ctx, cl.record, patience)
	if provider.CodeOf(err) == provider.CodeUnsupported { // Attach and Create are left to find it by its name
		return nil
	}
	if err != nil {
		return err
	}
	if id != "" {
		return c.destroyRecorded(ctx, cl, id)
	}
	cl.gone()
	return nil
}

// Outcome is what Recover did.
type Outcome string

const (
	// OutcomeNothing: nothing was interrupted, or there was nothing left of it.
	OutcomeNothing Outcome = "nothing"
	// OutcomeDestroyed: the sandbox of an interrupted attempt was destroyed, or a destroying was finished.
	OutcomeDestroyed Outcome = "destroyed"
	// OutcomeAdopted: the session has a sandbox that was there before the interrupted attempt.
	OutcomeAdopted Outcome = "adopted"
	// OutcomeBusy: another host works on the session.
	OutcomeBusy Outcome = "busy"
)

// Recover finishes what an interrupted host left of a session: what its attempt made is destroyed, because nobody was
// ever told of it; what was there before is recorded again. The sandbox id is that of the sandbox it acted on. Errors
// are *Error. Idempotent.
func (c *Connector) Recover(ctx context.Context, id string) (outcome Outcome, sandboxID string, err error) {
	outcome = OutcomeBusy
	err = c.ifFree(ctx, id, func(ctx context.Context, cl *claim) error {
		sandboxID = cl.record.SandboxID
		outcome, err = c.recover(ctx, cl)
		if cl.record.SandboxID != "" {
			sandboxID = cl.record.SandboxID
		}
		return err
	})
	return outcome, sandboxID, err
}

func (c *Connector) recover(ctx context.Context, cl *claim) (Outcome, error) {
	if !cl.record.Interrupted() || cl.record.Provider != c.name {
		return OutcomeNothing, nil
	}
	if cl.record.SandboxID != "" {
		return OutcomeDestroyed, c.finishDestroying(ctx, cl)
	}
	if err := c.destroyAttempt(ctx, cl); err != nil {
		return "", err
	}
	left, err := c.sandboxes(ctx, cl.record.Session)
	// A listing may still show what has just been destroyed.
	left = slices.DeleteFunc(left, func(s provider.Sandbox) bool { return s.ID == cl.record.SandboxID })
	switch {
	case err != nil:
		return "", err
	case len(left) == 0 && cl.record.SandboxID == "":
		return OutcomeNothing, nil
	case len(left) == 0:
		return OutcomeDestroyed, nil
	}
	cl.found(c.name, left[0])
	if left[0].State == provider.StateSuspended {
		cl.record.State = records.StateSuspended
	}
	return OutcomeAdopted, nil
}

func isLost(err error) bool { return errors.Is(err, records.ErrLost) }

func verb(state records.State) string {
	if state == records.StateDestroying {
		return "disconnect"
	}
	return "connect"
}
