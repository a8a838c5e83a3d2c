// Package recovery finishes what a host that ended half way left of a session, under the session's lease:
//
//	the record says             the next connect, disconnect         a sweep
//	creating, no sandbox yet    looks for the sandbox, destroys it   the same
//	creating, with a sandbox    attaches to it                       destroys it: nobody was ever told of it
//	destroying                  destroys it                          destroys it
//	an earlier attempt owes     destroys what that made              the same
//
// A connect and a disconnect call Finish, a sweep calls Discard and Repay.
package recovery

import (
	"context"
	"errors"
	"slices"
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

// PutAside makes way for a connect on this provider. What an interrupted attempt on another provider left is from then on
// that of an earlier attempt, which owes it. A session that has a sandbox on another provider is an *ElsewhereError.
func (a Account) PutAside(ctx context.Context, l *lease.Lease) error {
	err := a.CheckProvider(l.Record)
	attempt := l.Record.OwnAttempt()
	if err == nil || !attempt.Owes() || attempt.ID == "" {
		return err
	}
	if err := l.SaveAttempt(ctx, attempt); err != nil { // a host that keeps no attempts may have recorded it
		return err
	}
	l.Record = records.Record{Session: l.Record.Session, State: records.StateGone, Owed: l.Record.Owed + 1}
	return nil
}

// Finish does what is left to be done on this provider before the session can be worked on. It returns the ids of the
// sandboxes that it destroyed.
func (a Account) Finish(ctx context.Context, l *lease.Lease) (destroyed []string, err error) {
	if Unfinished(l.Record) {
		id, err := a.Discard(ctx, l)
		if err != nil {
			return nil, err
		}
		destroyed = append(destroyed, id)
	}
	owed, err := l.Owed(ctx)
	if err != nil {
		return nil, err
	}
	for _, attempt := range owed {
		if attempt.Provider != a.Name {
			continue
		}
		id, err := a.Repay(ctx, l, attempt)
		if err != nil {
			return nil, err
		}
		destroyed = append(destroyed, id)
	}
	return slices.DeleteFunc(destroyed, func(id string) bool { return id == "" }), nil
}

// Discard destroys the sandbox of an interrupted attempt, if it made one, and records the session as gone. It returns the
// sandbox's id. The record stays as it is if the provider cannot list, so that the sandbox cannot be found.
func (a Account) Discard(ctx context.Context, l *lease.Lease) (destroyed string, err error) {
	// From the moment the record says that it is to be destroyed, no host attaches to it.
	id, over, err := a.destroyMade(ctx, l, l.Record.OwnAttempt(), func(attempt records.Attempt) error {
		l.Record.State, l.Record.SandboxID = attempt.State, attempt.SandboxID
		return l.Save(ctx)
	})
	if err != nil || !over {
		return id, err
	}
	l.SetGone()
	return id, l.Save(ctx)
}

// Repay destroys the sandbox of an earlier attempt of the session, if it made one, and records the attempt as gone. It
// returns the sandbox's id. The attempt stays as it is if the provider cannot list.
func (a Account) Repay(ctx context.Context, l *lease.Lease, attempt records.Attempt) (destroyed string, err error) {
	id, over, err := a.destroyMade(ctx, l, attempt, func(changed records.Attempt) error {
		attempt = changed
		return l.SaveAttempt(ctx, changed)
	})
	if err != nil || !over {
		return id, err
	}
	attempt.State = records.StateGone
	if err := l.SaveAttempt(ctx, attempt); err != nil {
		return id, err
	}
	l.Record.Owed--
	return id, nil
}

// destroyMade destroys what an attempt made, and before that saves the intent. It returns the sandbox's id, "" if there is
// none, and reports whether there is none left.
func (a Account) destroyMade(
	ctx context.Context, l *lease.Lease, attempt records.Attempt, save func(records.Attempt) error,
) (id string, over bool, err error) {
	id = attempt.SandboxID
	if id == "" {
		patience := SearchTime
		if time.Since(attempt.UpdatedAt) > ListingLag {
			patience = searchPause // one look is enough
		}
		id, err = a.FindMade(ctx, attempt, patience)
		if provider.CodeOf(err) == provider.CodeUnsupported {
			return "", false, nil // Attach and Create find it by the session
		}
		if err != nil || id == "" {
			return "", err == nil, err
		}
	}
	if attempt.ID != l.Record.Attempt && l.Record.HasSandbox() && l.Record.SandboxID == id && l.Record.Provider == a.Name {
		return "", true, nil // it is the session's by now
	}
	if attempt.State != records.StateDestroying || attempt.SandboxID != id {
		attempt.State, attempt.SandboxID = records.StateDestroying, id
		if err := save(attempt); err != nil {
			return id, false, err
		}
	}
	err = a.Destroy(ctx, l, id)
	return id, err == nil, err
}

// FindMade returns the id of the sandbox that the attempt made, or "" if it finds none. A cloud's listing lags behind its
// creations, so it looks again for as long as its patience lasts.
func (a Account) FindMade(ctx context.Context, attempt records.Attempt, patience time.Duration) (id string, err error) {
	search, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	_ = retry.Do(search, retry.NewConstant(searchPause), func(context.Context) error {
		// One listing may take longer than the search: it has the whole time of ctx.
		sandboxes, err := a.List(ctx, attempt.Session)
		last = err
		for _, sandbox := range sandboxes {
			if sandbox.Attempt == attempt.ID {
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
