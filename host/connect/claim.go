package connect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/host/fence"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// recordLimit bounds the last write of a record, which must also happen when the caller has gone.
const recordLimit = 10 * time.Second

// claim is the right to work on one session, and its record as this host will write it next. Every step that changes
// something at a provider begins with check: a host that was paused or cut off must not touch what may be another's
// by now.
type claim struct {
	records records.Store
	lease   records.Lease
	record  records.Record
}

// claim takes the session's lease. While another host works on the session it waits, and says so once for each holder.
func (c *Connector) claim(ctx context.Context, id string, waiting func(holder string)) (*claim, error) {
	var lease records.Lease
	var record records.Record
	var holder string
	err := retry.Do(ctx, claimPauses(), func(ctx context.Context) error {
		var err error
		lease, record, err = c.records.Claim(ctx, id)
		var held *records.HeldError
		if !errors.As(err, &held) {
			return err
		}
		if held.Holder != holder {
			holder = held.Holder
			waiting(holder)
		}
		return retry.RetryableError(err)
	})
	if err != nil {
		return nil, RecordsError(err)
	}
	return &claim{records: c.records, lease: lease, record: record}, nil
}

// tryClaim takes the lease only when nobody works on the session.
func (c *Connector) tryClaim(ctx context.Context, id string) (*claim, error) {
	lease, record, err := c.records.Claim(ctx, id)
	if err != nil {
		return nil, RecordsError(err)
	}
	return &claim{records: c.records, lease: lease, record: record}, nil
}

func claimPauses() retry.Backoff {
	return retry.WithJitterPercent(20, retry.WithCappedDuration(500*time.Millisecond, retry.NewExponential(20*time.Millisecond)))
}

// check says whether the claim still holds. Records that cannot be read do not end a claim: nobody can have taken it
// over before its time is up, and the store knows that time by itself.
func (c *claim) check(ctx context.Context) error {
	err := c.records.Check(ctx, c.lease)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, records.ErrLost), !c.records.Valid():
		return RecordsError(records.ErrLost)
	}
	return ctx.Err()
}

// fenced gives a context for calls under the claim: they are not made any more once it has ended, also when that happens
// between check and the call. It asks the store's clock alone.
func (c *claim) fenced(ctx context.Context) context.Context {
	return fence.With(ctx, func() error {
		if !c.records.Valid() {
			return RecordsError(records.ErrLost)
		}
		return nil
	})
}

// save writes the record. Whatever costs money comes after a save that succeeded.
func (c *claim) save(ctx context.Context) error {
	return RecordsError(c.records.Save(ctx, c.lease, c.record))
}

// release writes the record for the last time and lets others at the session. It does so even when ctx has ended.
func (c *claim) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLimit)
	defer cancel()
	return RecordsError(c.records.Release(ctx, c.lease, c.record))
}

// found notes a sandbox that is there, and how it was come by.
func (c *claim) found(name string, sandbox provider.Sandbox) {
	c.record.Provider, c.record.SandboxID, c.record.State = name, sandbox.ID, records.StateRunning
	c.record.Attempt = sandbox.Attempt
	c.record.ExpiresAt = sandbox.ExpiresAt
	if !sandbox.CreatedAt.IsZero() {
		c.record.CreatedAt = sandbox.CreatedAt
	}
}

// gone notes that the session has no sandbox.
func (c *claim) gone() {
	c.record.State = records.StateGone
	c.record.ExpiresAt, c.record.HeldUntil = time.Time{}, time.Time{}
}

// elsewhere is the error of a session whose sandbox is on another provider.
func (c *Connector) elsewhere(record records.Record) error {
	if !record.HasSandbox() || record.Provider == c.name {
		return nil
	}
	return &Error{
		Code: CodeAlreadyExists, SandboxID: record.SandboxID, Provider: c.name, Session: record.Session, Cleanup: CleanupNone,
		Message: fmt.Sprintf("session %q has a sandbox on provider %s", record.Session, record.Provider),
		Hint:    fmt.Sprintf("use --provider %s, or disconnect the session there first", record.Provider),
	}
}

// RecordsError is the *Error for a failure of the records: a lease that is lost, a session that is held, or records that
// cannot be used.
func RecordsError(err error) error {
	var unusable *records.UnusableError
	var held *records.HeldError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, records.ErrLost):
		return &Error{
			Code: CodeLeaseLost, Retryable: true, Message: err.Error(), Cause: err,
			Hint: "connect again: whoever works on the session now is waited for",
		}
	case errors.As(err, &held):
		return &Error{Code: CodeBusy, Retryable: true, Message: held.Error(), Cause: err, Hint: "try again in a moment"}
	case errors.As(err, &unusable):
		return &Error{Code: CodeRecordsUnusable, Message: unusable.Error(), Hint: unusable.Hint, Cause: err}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return &Error{Code: CodeRecordsUnusable, Message: "the records cannot be used: " + err.Error(), Cause: err}
}
