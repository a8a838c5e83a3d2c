// Package records keeps the records of who owns which sandbox, and the leases that let one host at a time work on a
// session. Everything that costs money is written here before it is done, so that another host can finish or undo it.
//
// A Store is one host's way to the records: SQL (SQLite in the state directory, or PostgreSQL for many machines) or
// Memory. Nothing secret is stored.
package records

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// State is what the records know of a session's sandbox.
type State string

const (
	// StateGone: there is none. SandboxID names the last one, if there was any.
	StateGone State = "gone"
	// StateCreating: Attempt is making one, or was when its host ended. There may be one that nobody has seen yet.
	StateCreating State = "creating"
	// StateRunning: it runs, as far as the records know.
	StateRunning State = "running"
	// StateSuspended: it was suspended.
	StateSuspended State = "suspended"
	// StateDestroying: it is to be destroyed, and was not yet seen to be gone.
	StateDestroying State = "destroying"
)

// Record is one session. A session has at most one sandbox, on one provider.
type Record struct {
	Session string
	// Provider is the label of its provider block.
	Provider  string
	SandboxID string
	// Attempt made the sandbox, or is making it: it is on the sandbox as a label.
	Attempt string
	State   State
	// Holder is who works on the session right now, in words for people; empty when nobody does.
	Holder string
	// CreatedAt is when the sandbox came to be or, until then, when the attempt began.
	CreatedAt time.Time
	// UpdatedAt is when the record was last changed: a write of what it says already leaves it as it is.
	UpdatedAt time.Time
	// ExpiresAt is when the provider ends the sandbox by itself. Zero means never, or not known.
	ExpiresAt time.Time
	// HeldUntil is until when a hold keeps the sandbox alive: it is moved on while the hold lasts.
	HeldUntil time.Time
}

// Interrupted says that a host ended, or gave up, between the beginning and the end of something.
func (r Record) Interrupted() bool {
	return r.Holder == "" && (r.State == StateCreating || r.State == StateDestroying)
}

// HasSandbox says that there is a sandbox, or may be one.
func (r Record) HasSandbox() bool { return r.State != StateGone && r.State != "" }

// Lease is the right to work on one session. It ends with Release, or when its host has not been heard of for the
// lease's time. Token grows with every lease of the session.
type Lease struct {
	Session string
	Holder  string
	Token   int64
}

// Store is the records as one host sees them. Methods may be called concurrently. Times are those of the store's
// clock, to the millisecond.
//
// A store has one holder, which it makes known with its first lease and keeps alive by itself, until Close. A holder
// that could not do so in time (the process was stopped, the database out of reach) has lost all its leases for good,
// even when nobody has taken them: its writes answer ErrLost. The next Claim begins with a new holder.
type Store interface {
	// Claim takes the session's lease and returns the record as it stands; a session without one gets a record in
	// StateGone. A session that another lease holds, of this holder or another, is a *HeldError.
	//
	// The lease of a holder that is known to have ended, or has not been heard of for its time, is taken over.
	Claim(ctx context.Context, session string) (Lease, Record, error)
	// Check answers ErrLost when the lease does not hold any more.
	Check(ctx context.Context, lease Lease) error
	// Save writes the record, all of it but Holder and UpdatedAt, if the lease still holds: else it answers ErrLost
	// and has changed nothing. It is durable when it returns.
	Save(ctx context.Context, lease Lease, record Record) error
	// Release gives the lease back, with a last write of the record: one step, under the rules of Save.
	Release(ctx context.Context, lease Lease, record Record) error
	// Get returns one record, or ErrNotFound. Holder is only set while the lease holds.
	Get(ctx context.Context, session string) (Record, error)
	// List returns all records, by session.
	List(ctx context.Context) ([]Record, error)
	// Forget removes the records in StateGone that nobody holds and that were last written before that time, and
	// returns how many.
	Forget(ctx context.Context, before time.Time) (int, error)
	// Began is when these records were begun. Of a sandbox older than that they cannot say whose it is.
	Began(ctx context.Context) (time.Time, error)
	// Valid is false once the holder's time has passed without its being kept alive, by the clock of this process
	// alone: it asks nobody. A store without a holder is valid.
	Valid() bool
	// Close gives up the holder with all its leases and waits for the store's goroutines.
	Close() error
}

var (
	// ErrNotFound: there is no such record.
	ErrNotFound = errors.New("the records do not know this session")
	// ErrLost: the lease is lost, because its host was not heard of in time. Another host may be at work.
	ErrLost = errors.New("the lease on the session is lost: this host was not heard of in time, and another may be at work")
)

// HeldError says who works on a session.
type HeldError struct {
	Session string
	// Holder is the other host, in words for people.
	Holder string
	// Until is when its lease ends unless it is heard of again.
	Until time.Time
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s is working on session %q", e.Holder, e.Session)
}

// UnusableError says that the records cannot be read or written, why, and what to do. Nothing was changed.
type UnusableError struct {
	// Where is the database, without its password.
	Where string
	// Problem is what is wrong and Hint what to do about it.
	Problem string
	Hint    string
	Cause   error
}

func (e *UnusableError) Error() string {
	text := fmt.Sprintf("the records in %s cannot be used: %s", e.Where, e.Problem)
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Unwrap gives the cause.
func (e *UnusableError) Unwrap() error { return e.Cause }
