// Package records stores which session has which sandbox, and the leases that allow one host at a time to work on a
// session. Everything that costs money is recorded before it is done, so that another host can finish or undo it.
//
// A Store is one host's access to the records: SQL (SQLite in the state directory, or PostgreSQL shared by several
// machines) or Memory. Nothing secret is stored.
package records

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// State is the state of a session's sandbox, as far as the records know.
type State string

const (
	// StateGone means that there is no sandbox. SandboxID names the last one, if there ever was one.
	StateGone State = "gone"
	// StateCreating means that Attempt is creating a sandbox, or was when its host died. A sandbox may exist whose ID
	// was never recorded.
	StateCreating State = "creating"
	// StateRunning means that the sandbox is running.
	StateRunning State = "running"
	// StateSuspended means that the sandbox was suspended.
	StateSuspended State = "suspended"
	// StateDestroying means that the sandbox is to be destroyed and has not been seen to be gone.
	StateDestroying State = "destroying"
)

// Record is what is known of one session. A session has at most one sandbox, on one provider.
type Record struct {
	Session string
	// Provider is the label of the provider block.
	Provider  string
	SandboxID string
	// Attempt identifies the connect that created the sandbox, or is creating it. The sandbox carries it as a label.
	Attempt string
	State   State
	// Holder describes, for people, the host that has the session's lease. It is empty if no host has.
	Holder string
	// CreatedAt is the time the sandbox was created or, until it is, the time the attempt began.
	CreatedAt time.Time
	// UpdatedAt is the time the record last changed. Saving an identical record leaves it as it is.
	UpdatedAt time.Time
	// ExpiresAt is the time at which the provider ends the sandbox by itself. Zero means never, or not known.
	ExpiresAt time.Time
	// HeldUntil is the time until which the sandbox is kept alive. It advances for as long as that goes on.
	HeldUntil time.Time
	// Generation tells the session keys of a session apart: see Attempt. It is empty if it is not known. Without an Attempt
	// it is not stored.
	Generation string
	// Owed is how many earlier attempts of the session owe an undo: Store.Owed returns them. Save does not write it.
	Owed int
}

// Interrupted reports whether a host died, or gave up, while it created or destroyed the sandbox.
func (r Record) Interrupted() bool {
	return r.Holder == "" && (r.State == StateCreating || r.State == StateDestroying)
}

// HasSandbox reports whether the session has a sandbox, or may have one.
func (r Record) HasSandbox() bool { return r.State != StateGone && r.State != "" }

// OwnAttempt returns the session's attempt, as the record has it.
func (r Record) OwnAttempt() Attempt {
	return Attempt{
		ID: r.Attempt, Session: r.Session, Provider: r.Provider, SandboxID: r.SandboxID, State: r.State, Generation: r.Generation,
		CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}
}

// Attempt is one try to create a sandbox for a session. A session may have had several, on different providers. Its record
// is that of the last one; the earlier ones stay in the records for as long as they owe an undo, and for a while after it.
type Attempt struct {
	ID       string
	Session  string
	Provider string
	// SandboxID is empty if it is not known what the attempt made, if anything.
	SandboxID string
	State     State
	// Generation is what the key of the sandbox's server is derived from, beside the host's secret. The sandbox carries it
	// as a label, unless the key was replaced since.
	Generation string
	// CreatedAt and UpdatedAt are as in Record.
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Owes reports whether the attempt may have made a sandbox that nobody was told of, or that was to be destroyed.
func (a Attempt) Owes() bool { return a.State == StateCreating || a.State == StateDestroying }

// compareAttempts orders attempts as Store.Owed returns them.
func compareAttempts(x, y Attempt) int {
	return cmp.Or(cmp.Compare(x.Session, y.Session), x.CreatedAt.Compare(y.CreatedAt), cmp.Compare(x.ID, y.ID))
}

// Lease is the right to work on one session. It ends with Release, or when its host does not renew it in time.
// Every lease of a session has a greater Token than the one before it.
type Lease struct {
	Session string
	Holder  string
	Token   int64
}

// Store is one host's access to the records. Its methods may be called concurrently. Times are those of the store's
// clock, in milliseconds.
//
// All leases of a store belong to one holder, which the store registers with its first lease and renews in the
// background until Close. If it fails to renew the holder in time, because the process was stopped or the database was
// out of reach, the holder expires and its leases are lost for good, even if no other host has taken them: writes
// return ErrLost. The next Take registers a new holder.
type Store interface {
	// Take takes the lease on the session and returns the session's record. A session without a record gets one
	// in StateGone. If another lease on the session exists, from this store or another, the error is a *BusyError.
	// The lease of a holder that has expired, or whose process is known to have died, is taken over.
	Take(ctx context.Context, session string) (Lease, Record, error)
	// Check returns ErrLost if the lease is lost.
	Check(ctx context.Context, lease Lease) error
	// Save writes the record, except Holder, UpdatedAt and Owed, and with it the session's attempt. If that is another one
	// than before, the attempt before stays as it was saved last. If the lease is lost, Save changes nothing and returns
	// ErrLost. The record is durable when Save returns.
	Save(ctx context.Context, lease Lease, record Record) error
	// Release writes the record as Save does and, in the same step, gives up the lease.
	Release(ctx context.Context, lease Lease, record Record) error
	// SaveAttempt writes an attempt of the session that is not the record's, except UpdatedAt, as Save writes the record.
	SaveAttempt(ctx context.Context, lease Lease, attempt Attempt) error
	// Owed returns the attempts of the session, or for "" those of all sessions, that owe an undo, sorted by session and
	// CreatedAt. The attempt that a session's record names, or whose sandbox it names, is not among them: the record tells
	// how that one stands.
	Owed(ctx context.Context, session string) ([]Attempt, error)
	// Get returns the record of a session, or ErrNotFound.
	Get(ctx context.Context, session string) (Record, error)
	// List returns all records, sorted by session.
	List(ctx context.Context) ([]Record, error)
	// Naming returns the sessions that have this sandbox of the provider, in no order. There is more than one only after a
	// mishap.
	Naming(ctx context.Context, provider, sandboxID string) (sessions []string, err error)
	// Forget deletes the records in StateGone that were last updated before the given time and are not leased. It returns
	// how many it deleted. It also deletes the attempts from before that time that owe nothing and that no record names.
	Forget(ctx context.Context, before time.Time) (int, error)
	// Began returns the time at which these records were created. They say nothing about sandboxes older than that.
	Began(ctx context.Context) (time.Time, error)
	// Valid reports whether the leases of this store are still good by the clock of this process. It does no I/O.
	// A store without leases is valid.
	Valid() bool
	// Close gives up all leases and waits for the store's goroutines to end.
	Close() error
}

var (
	// ErrNotFound means that there is no record of the session.
	ErrNotFound = errors.New("the records do not know this session")
	// ErrLost means that the lease is lost because its host did not renew it in time. Another host may be at work.
	ErrLost = errors.New("the lease on the session is lost: this host did not renew it in time, and another host may be at work")
)

// BusyError is returned for a session that another lease exists on.
type BusyError struct {
	Session string
	// Holder describes the host that has the lease, for people.
	Holder string
	// Until is when the lease ends unless it is renewed.
	Until time.Time
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s is working on session %q", e.Holder, e.Session)
}

// UnusableError means that the records cannot be read or written. Nothing was changed.
type UnusableError struct {
	// Where names the database, without its password.
	Where string
	// Problem is what is wrong, and Hint what to do about it.
	Problem string
	Hint    string
	// Passes means that it may pass by itself, so that trying again can help.
	Passes bool
	Cause  error
}

func (e *UnusableError) Error() string {
	text := fmt.Sprintf("the records in %s cannot be used: %s", e.Where, e.Problem)
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *UnusableError) Unwrap() error { return e.Cause }
