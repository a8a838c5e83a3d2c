// Package recovery finishes what a host that ended half way left of a session, under the session's lease:
//
//	the record says             the next connect, disconnect         a sweep
//	creating, no sandbox yet    looks for the sandbox, destroys it   the same
//	creating, with a sandbox    attaches to it                       destroys it: nobody was ever told of it
//	destroying                  destroys it                          destroys it
//
// A connect and a disconnect call Finish, a sweep calls Discard.
package recovery

import (
	"context"
	"errors"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	// ListingLag is how far a provider's listing may lag behind. A sandbox that was recorded longer ago, and is not
	// listed, is gone.
	ListingLag = time.Minute
	// SearchTime is how long FindMade looks for a sandbox that a Create may have made just now.
	SearchTime = 3 * time.Second
	// searchPause is between two looks of FindMade.
	searchPause = SearchTime / 10
)

// Fresh reports whether the record was changed within that time. A change that lies in the future is not: the clock was
// put back since, and how long ago the change was is not known.
func Fresh(record records.Record, within time.Duration) bool {
	age := time.Since(record.UpdatedAt)
	return age < within && age > -within
}

// Unfinished reports whether something must be finished before the session can be worked on.
//
// A Create whose answer was never recorded is not adopted but destroyed: the plugin that made the sandbox may still be
// removing it, because its host has gone. A Create whose sandbox is recorded had ended; Attach finds that sandbox.
func Unfinished(r records.Record) bool {
	return r.State == records.StateDestroying || r.State == records.StateCreating && r.SandboxID == ""
}

// Finish does what is left to be done before the session can be worked on.
func (a Account) Finish(ctx context.Context, l *lease.Lease) error {
	if !Unfinished(l.Record) {
		return nil
	}
	return a.Discard(ctx, l)
}

// Discard destroys the sandbox of an interrupted attempt, if it made one, and sets the record to gone. The record stays as
// it is if the provider cannot list, so that the sandbox cannot be found. The caller writes the record.
func (a Account) Discard(ctx context.Context, l *lease.Lease) error {
	id := l.Record.SandboxID
	if id == "" {
		patience := SearchTime
		if time.Since(l.Record.UpdatedAt) > ListingLag {
			patience = searchPause // one look is enough
		}
		var err error
		id, err = a.FindMade(ctx, l.Record, patience)
		if provider.CodeOf(err) == provider.CodeUnsupported {
			return nil // Attach and Create find it by the session
		}
		if err != nil {
			return err
		}
	}
	if id != "" {
		if err := a.destroyRecorded(ctx, l, id); err != nil {
			return err
		}
	}
	l.SetGone()
	return nil
}

// destroyRecorded destroys a sandbox, and before that records the intent: from then on no host attaches to it.
func (a Account) destroyRecorded(ctx context.Context, l *lease.Lease, id string) error {
	if l.Record.State != records.StateDestroying || l.Record.SandboxID != id {
		l.Record.State, l.Record.SandboxID = records.StateDestroying, id
		if err := l.Save(ctx); err != nil {
			return err
		}
	}
	return a.Destroy(ctx, l, id)
}

// FindMade returns the id of the sandbox that the record's attempt made, or "" if it finds none. A cloud's listing lags
// behind its creations, so it looks again for as long as its patience lasts.
func (a Account) FindMade(ctx context.Context, record records.Record, patience time.Duration) (id string, err error) {
	search, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	_ = retry.Do(search, retry.NewConstant(searchPause), func(context.Context) error {
		// One listing may take longer than the search: it has the whole time of ctx.
		sandboxes, err := a.List(ctx, record.Session)
		last = err
		for _, sandbox := range sandboxes {
			if sandbox.Attempt == record.Attempt {
				id, last = sandbox.ID, nil // whatever else the listing lacks
				return nil
			}
		}
		if provider.CodeOf(err) == provider.CodeUnsupported || isCut(err) {
			return err // another look would see no more
		}
		return retry.RetryableError(errNotListed)
	})
	return id, last
}

// isCut reports whether a part of a listing was left out, because it was too long.
func isCut(err error) bool {
	e := provider.AsError(err)
	return e != nil && e.Reason == provider.ReasonListCut
}

var errNotListed = errors.New("not listed")
