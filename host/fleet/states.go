package fleet

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

// State is the state of a session's sandbox: what its provider says or, where that cannot be known, what its record says.
type State string

const (
	StateRunning   = State(provider.StateRunning)
	StateSuspended = State(provider.StateSuspended)
	// StateCreating and StateDestroying: a host is at it, or was interrupted.
	StateCreating   = State(records.StateCreating)
	StateDestroying = State(records.StateDestroying)
	// StateGone: recorded, but the provider does not have it any more.
	StateGone = State(provider.StateGone)
	// StateUnreachable: the provider did not answer, or is not configured.
	StateUnreachable State = "unreachable"
)

// SessionState is a session with the state of its sandbox, or a sandbox of this installation that no record names.
type SessionState struct {
	// Session may be empty for a sandbox without a record.
	Session   string
	Provider  string
	SandboxID string
	State     State
	// Recorded is whether a record names the sandbox.
	Recorded bool
	// CreatedAt and ExpiresAt are zero where they are not known; ExpiresAt also when the sandbox never ends by itself.
	CreatedAt, ExpiresAt time.Time
	// HeldUntil is until when the sandbox is kept alive, zero if nobody ever did.
	HeldUntil time.Time
	// Holder describes, for people, the host that works on the session right now.
	Holder string
	// Interrupted is whether a host ended while it created or destroyed the sandbox.
	Interrupted bool
	// NotConfigured is whether the state is StateUnreachable because the provider is not in the configuration.
	NotConfigured bool
	// Server is what a look at the server has shown, nil if nobody looked or the sandbox does not run.
	Server *provider.PingResult
}

// Sessions returns the sessions of this installation on every provider, or only on the one with the label, sorted by
// session. All providers are asked at the same time. failures are those that did not answer, by label: the states of their
// sessions are StateUnreachable.
func (f *Fleet) Sessions(ctx context.Context, only string) (states []SessionState, failures map[string]error, err error) {
	providers, failures, err := f.sessionsOn(ctx, only)
	if err != nil {
		return nil, nil, err
	}
	store, err := f.records(ctx)
	if err != nil {
		return nil, nil, err
	}
	recorded, err := store.List(ctx)
	if err != nil {
		return nil, nil, connect.RecordsError(err)
	}
	owed, err := store.Owed(ctx, "")
	if err != nil {
		return nil, nil, connect.RecordsError(err)
	}
	for _, attempt := range owed { // each may have a sandbox, beside the session's own
		recorded = append(recorded, records.Record{
			Session: attempt.Session, Provider: attempt.Provider, SandboxID: attempt.SandboxID, Attempt: attempt.ID, State: attempt.State,
			CreatedAt: attempt.CreatedAt, UpdatedAt: attempt.UpdatedAt,
		})
	}
	listings := map[string]*listing{}
	for name, err := range failures {
		listings[name] = &listing{err: err}
	}
	var lists sync.WaitGroup
	for name, on := range providers {
		l := &listing{}
		listings[name] = l
		lists.Go(func() { l.sandboxes, l.err = on.List(ctx) })
	}
	lists.Wait()
	for name, l := range listings {
		if l.err != nil {
			failures[name] = l.err
		}
	}
	return describeSessions(recorded, listings, only), failures, nil
}

// mostLooks is how many servers are looked at, at the same time.
const mostLooks = 16

// LookAtServers asks the server of every session that runs once whether it is healthy, as Session.Ping does, and sets Server.
// One that cannot be asked is not healthy, with the reason.
func (f *Fleet) LookAtServers(ctx context.Context, states []SessionState) {
	slots := make(chan struct{}, mostLooks)
	var looks sync.WaitGroup
	for i := range states {
		s := &states[i]
		if s.State != StateRunning || !s.Recorded {
			continue
		}
		slots <- struct{}{}
		looks.Go(func() {
			defer func() { <-slots }()
			result := f.lookAtServer(ctx, *s)
			s.Server = &result
		})
	}
	looks.Wait()
}

func (f *Fleet) lookAtServer(ctx context.Context, s SessionState) provider.PingResult {
	session, err := f.Session(ctx, s.Session, s.Provider)
	if err != nil {
		return provider.PingResult{Status: provider.PingNotYet, Reason: err.Error()}
	}
	return session.Look(ctx).Ping
}

// RecordedSessions returns the sessions that the records name a sandbox of, sorted by session, with the states that are
// recorded. No provider is asked. Without a state directory no records are made.
func (f *Fleet) RecordedSessions(ctx context.Context) ([]SessionState, error) {
	if f.conf.State.URL == "" {
		if _, err := os.Stat(f.conf.Host.StateDir); errors.Is(err, fs.ErrNotExist) {
			return nil, nil // nothing was ever recorded here
		}
	}
	store, err := f.records(ctx)
	if err != nil {
		return nil, err
	}
	all, err := store.List(ctx)
	if err != nil {
		return nil, connect.RecordsError(err)
	}
	var states []SessionState
	for _, r := range all {
		if r.HasSandbox() {
			states = append(states, SessionState{
				Session: r.Session, Provider: r.Provider, SandboxID: r.SandboxID, State: State(r.State), Recorded: true,
				CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt, HeldUntil: r.HeldUntil, Interrupted: r.Interrupted(),
			})
		}
	}
	return states, nil
}

// listing is what one provider lists. With an error that may be a part of it, or nothing.
type listing struct {
	sandboxes []provider.Sandbox
	err       error
}

// find returns the sandbox with the id, or nil.
func (l *listing) find(id string) *provider.Sandbox {
	i := slices.IndexFunc(l.sandboxes, func(s provider.Sandbox) bool { return s.ID == id })
	if i < 0 {
		return nil
	}
	return &l.sandboxes[i]
}

// madeBy returns the id of the sandbox that an attempt has made, or "".
func (l *listing) madeBy(attempt string) string {
	for _, s := range l.sandboxes {
		if s.Attempt == attempt {
			return s.ID
		}
	}
	return ""
}

// describeSessions compares the records with what the providers list.
func describeSessions(all []records.Record, listings map[string]*listing, only string) []SessionState {
	var states []SessionState
	recorded := map[string]bool{} // by sandbox id: two provider blocks may list the same account
	for _, r := range all {
		fresh := recovery.Fresh(r, recovery.ListingLag)
		if l := listings[r.Provider]; l != nil && r.SandboxID == "" && r.HasSandbox() {
			r.SandboxID = l.madeBy(r.Attempt)
		}
		recorded[r.SandboxID] = r.HasSandbox() || fresh // a listing may still show what was destroyed
		if r.HasSandbox() && (only == "" || r.Provider == only) {
			states = append(states, describeRecord(r, listings[r.Provider]))
		}
	}
	for name, l := range listings {
		for _, s := range l.sandboxes {
			if !recorded[s.ID] {
				states = append(states, SessionState{
					Session: s.Session, Provider: name, SandboxID: s.ID, State: State(s.State),
					CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt,
				})
			}
		}
	}
	slices.SortFunc(states, func(x, y SessionState) int {
		return cmp.Or(strings.Compare(x.Session, y.Session), strings.Compare(x.Provider, y.Provider), strings.Compare(x.SandboxID, y.SandboxID))
	})
	return states
}

// describeRecord describes one record. l is what its provider lists, nil when that is not configured.
func describeRecord(r records.Record, l *listing) SessionState {
	s := SessionState{
		Session: r.Session, Provider: r.Provider, SandboxID: r.SandboxID, Recorded: true,
		CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt, HeldUntil: r.HeldUntil,
		Holder: r.Holder, Interrupted: r.Interrupted(),
	}
	switch {
	case r.State == records.StateCreating || r.State == records.StateDestroying:
		s.State = State(r.State)
	case l == nil:
		s.State, s.NotConfigured = StateUnreachable, true
	default:
		listed := l.find(r.SandboxID)
		switch {
		case listed != nil:
			s.State, s.ExpiresAt = State(listed.State), listed.ExpiresAt
		case l.err != nil:
			s.State = StateUnreachable
		case recovery.Fresh(r, recovery.ListingLag):
			s.State = State(r.State)
		default:
			s.State = StateGone
		}
	}
	return s
}
