// Package lease is the right to work on one session, together with the record that is written under it. Of all hosts
// with the same records, one at a time has a session's lease.
package lease

import (
	"context"
	"errors"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/host/fence"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// certain is how long the records' word that the lease holds is taken for granted. A host that was paused within that time
// is noticed by the store's clock.
const certain = time.Second

// checkLimit is how long a look into the records may take that is not needed to go on.
const checkLimit = 5 * time.Second

// releaseLimit is how long the last write of a record may take after its caller has gone.
const releaseLimit = 10 * time.Second

// Lease is the right to work on one session. Every step that changes something at a provider begins with Check: a host
// that was paused or cut off must not touch what another host may be working on by now. It is not for concurrent use.
type Lease struct {
	// Record is the session's record as the next Save or Release writes it.
	Record records.Record

	store records.Store
	lease records.Lease
	known time.Time // when the records were last asked, and knew the lease
}

// Error is a failure of the records. It sets them apart from the provider, whose calls are made under the same lease.
type Error struct {
	// Cause is the error of the records: records.ErrLost, a *records.BusyError, a *records.UnusableError or another.
	Cause error
}

func (e *Error) Error() string { return e.Cause.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// IsLost reports whether err means that the lease is lost.
func IsLost(err error) bool { return errors.Is(err, records.ErrLost) }

// Take takes the session's lease. While another host works on the session it waits, and calls waiting once for each
// such host. Its errors, and those of all methods, are *Error or the context's.
func Take(ctx context.Context, store records.Store, session string, waiting func(holder string)) (*Lease, error) {
	var taken *Lease
	var last string
	err := retry.Do(ctx, pauses(), func(ctx context.Context) error {
		var err error
		taken, err = Try(ctx, store, session)
		var busy *records.BusyError
		if !errors.As(err, &busy) {
			return err
		}
		if busy.Holder != last {
			last = busy.Holder
			waiting(last)
		}
		return retry.RetryableError(err)
	})
	return taken, err
}

func pauses() retry.Backoff {
	return retry.WithJitterPercent(20, retry.WithCappedDuration(500*time.Millisecond, retry.NewExponential(20*time.Millisecond)))
}

// Try takes the session's lease if no host has it. Otherwise the error's cause is a *records.BusyError.
func Try(ctx context.Context, store records.Store, session string) (*Lease, error) {
	began := time.Now()
	lease, record, err := store.Take(ctx, session)
	if err != nil {
		return nil, failure(err)
	}
	return &Lease{Record: record, store: store, lease: lease, known: began}, nil
}

// Check returns an error if the lease is lost or ctx has ended. Records that cannot be read do not end a lease: no other
// host can have taken it before its time is up, and the store knows that time by itself.
func (l *Lease) Check(ctx context.Context) error {
	if time.Since(l.known) < certain && l.store.Valid() {
		return ctx.Err()
	}
	return l.Confirm(ctx)
}

// Confirm is Check for what cannot be taken back: it looks into the records however short ago the last look was.
func (l *Lease) Confirm(ctx context.Context) error {
	began := time.Now()
	look, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	err := l.store.Check(look, l.lease)
	switch {
	case err == nil:
		l.known = began
		return nil
	case IsLost(err), !l.store.Valid():
		return failure(records.ErrLost)
	case ctx.Err() != nil:
		return failure(err)
	}
	return nil
}

// Fenced returns a context whose provider calls are refused once the lease is lost, even when that happens between
// Check and the call. It asks the store's clock only.
func (l *Lease) Fenced(ctx context.Context) context.Context {
	return fence.With(ctx, func() error {
		if !l.store.Valid() {
			return failure(records.ErrLost)
		}
		return nil
	})
}

// Save writes the record. Whatever costs money comes after a Save that succeeded.
func (l *Lease) Save(ctx context.Context) error {
	began := time.Now()
	err := l.store.Save(ctx, l.lease, l.Record)
	if err == nil {
		l.known = began
	}
	return failure(err)
}

// Release writes the record for the last time and gives the lease back. It does so even when ctx has ended, and has until
// then and releaseLimit more for it.
func (l *Lease) Release(ctx context.Context) error {
	ctx, cancel := outlive(ctx, releaseLimit)
	defer cancel()
	return failure(l.store.Release(ctx, l.lease, l.Record))
}

// outlive returns a context that ends some time after its parent.
func outlive(parent context.Context, more time.Duration) (context.Context, context.CancelFunc) {
	ctx := context.WithoutCancel(parent)
	if parent.Err() != nil {
		return context.WithTimeout(ctx, more)
	}
	var cancel context.CancelFunc
	if deadline, limited := parent.Deadline(); limited {
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(more))
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	stop := context.AfterFunc(parent, func() { time.AfterFunc(more, cancel) })
	return ctx, func() {
		stop()
		cancel()
	}
}

// SaveAttempt writes an earlier attempt of the session.
func (l *Lease) SaveAttempt(ctx context.Context, attempt records.Attempt) error {
	return failure(l.store.SaveAttempt(ctx, l.lease, attempt))
}

// Owed returns the earlier attempts of the session that owe an undo.
func (l *Lease) Owed(ctx context.Context) ([]records.Attempt, error) {
	if l.Record.Owed == 0 {
		return nil, nil
	}
	owed, err := l.store.Owed(ctx, l.Record.Session)
	return owed, failure(err)
}

// LabelGeneration is on every sandbox that is created. Its value is the generation of the session's key at that time.
const LabelGeneration = "berth-generation"

// GenerationOf returns the generation of the key that a sandbox's server has: the recorded one or, if the records have
// none of this sandbox, that of its label. It is empty for a sandbox of a berth that knew no generations.
func GenerationOf(record records.Record, sandbox provider.Sandbox) string {
	if record.Generation != "" && isOf(record, sandbox) {
		return record.Generation
	}
	return sandbox.Labels[LabelGeneration]
}

// isOf reports whether the sandbox is that of the record's attempt. Some plugins do not say of which attempt one is.
func isOf(record records.Record, sandbox provider.Sandbox) bool {
	return sandbox.Attempt == record.Attempt || sandbox.Attempt == "" && sandbox.ID == record.SandboxID
}

// SetSandbox makes the record name a sandbox that runs on the provider.
func (l *Lease) SetSandbox(providerName string, sandbox provider.Sandbox) {
	l.Record.Generation = GenerationOf(l.Record, sandbox)
	if !isOf(l.Record, sandbox) {
		l.Record.Attempt = sandbox.Attempt
	}
	l.Record.Provider, l.Record.SandboxID, l.Record.State = providerName, sandbox.ID, records.StateRunning
	l.Record.ExpiresAt = sandbox.ExpiresAt
	if !sandbox.CreatedAt.IsZero() {
		l.Record.CreatedAt = sandbox.CreatedAt
	}
}

// SetGone makes the record say that the session has no sandbox. It still names the last one.
func (l *Lease) SetGone() {
	l.Record.State = records.StateGone
	l.Record.ExpiresAt, l.Record.HeldUntil = time.Time{}, time.Time{}
}

func failure(err error) error {
	if err == nil {
		return nil
	}
	return &Error{Cause: err}
}
