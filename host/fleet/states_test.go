package fleet

import (
	"errors"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

func TestASessionsStateFollowsFromItsRecordAndItsProvider(t *testing.T) {
	t.Parallel()
	now := time.Now()
	const label = "acme"
	old := now.Add(-2 * recovery.ListingLag)
	running := records.Record{
		Session: "s1", Provider: label, SandboxID: "b1", State: records.StateRunning, UpdatedAt: old, CreatedAt: old, ExpiresAt: now,
	}
	with := func(change func(*records.Record)) records.Record {
		r := running
		change(&r)
		return r
	}
	lists := func(sandboxes ...provider.Sandbox) map[string]*listing {
		return map[string]*listing{label: {sandboxes: sandboxes}}
	}
	expected := func(state State) SessionState {
		return SessionState{
			Session: "s1", Provider: label, SandboxID: "b1", State: state, Recorded: true, CreatedAt: old, ExpiresAt: now,
		}
	}
	but := func(state State, change func(*SessionState)) *SessionState {
		s := expected(state)
		change(&s)
		return &s
	}
	as := func(state State) *SessionState { return but(state, func(*SessionState) {}) }

	for name, test := range map[string]struct {
		record   records.Record
		listings map[string]*listing
		only     string
		want     *SessionState // nil: it is not shown
	}{
		"as the provider says": {
			record: running, listings: lists(provider.Sandbox{ID: "b1", State: provider.StateSuspended, ExpiresAt: now.Add(time.Hour)}),
			want: but(StateSuspended, func(s *SessionState) { s.ExpiresAt = now.Add(time.Hour) }),
		},
		"not listed": {record: running, listings: lists(), want: as(StateGone)},
		"not listed yet": {
			record: with(func(r *records.Record) { r.UpdatedAt = now }), listings: lists(), want: as(StateRunning),
		},
		"recorded in the future": { // the clock was put back: the record does not tell how old it is
			record: with(func(r *records.Record) { r.UpdatedAt = now.Add(time.Hour) }), listings: lists(), want: as(StateGone),
		},
		"in a part of a listing": {
			record:   running,
			listings: map[string]*listing{label: {sandboxes: []provider.Sandbox{{ID: "b1", State: provider.StateRunning, ExpiresAt: now}}, err: errors.New("too long")}},
			want:     as(StateRunning),
		},
		"the provider does not answer": {
			record: running, listings: map[string]*listing{label: {err: errors.New("502")}}, want: as(StateUnreachable),
		},
		"the provider is not configured": {
			record: running, listings: map[string]*listing{},
			want: but(StateUnreachable, func(s *SessionState) { s.NotConfigured = true }),
		},
		"a host is at it": {
			record:   with(func(r *records.Record) { r.State, r.Holder = records.StateCreating, "host-1" }),
			listings: lists(provider.Sandbox{ID: "b1", State: provider.StateRunning}),
			want:     but(StateCreating, func(s *SessionState) { s.Holder = "host-1" }),
		},
		"interrupted, on whatever provider": {
			record: with(func(r *records.Record) { r.State = records.StateDestroying }), listings: map[string]*listing{},
			want: but(StateDestroying, func(s *SessionState) { s.Interrupted = true }),
		},
		"interrupted before the sandbox was recorded": {
			record:   with(func(r *records.Record) { r.State, r.SandboxID, r.Attempt = records.StateCreating, "", "a1" }),
			listings: lists(provider.Sandbox{ID: "b1", Attempt: "a1", State: provider.StateRunning}),
			want:     but(StateCreating, func(s *SessionState) { s.Interrupted = true }),
		},
		"kept alive": {
			record: with(func(r *records.Record) { r.HeldUntil = now }), listings: lists(),
			want: but(StateGone, func(s *SessionState) { s.HeldUntil = now }),
		},
		"on another provider than asked for": {record: running, listings: map[string]*listing{"other": {}}, only: "other"},
		"destroyed":                          {record: with(func(r *records.Record) { r.State = records.StateGone }), listings: lists()},
		"destroyed just now": { // the listing may still show it
			record:   with(func(r *records.Record) { r.State, r.UpdatedAt = records.StateGone, now }),
			listings: lists(provider.Sandbox{ID: "b1", State: provider.StateRunning}),
		},
		"destroyed long ago, and there again": {
			record:   with(func(r *records.Record) { r.State = records.StateGone }),
			listings: lists(provider.Sandbox{ID: "b1", Session: "s1", State: provider.StateRunning, CreatedAt: old}),
			want: but(StateRunning, func(s *SessionState) {
				s.Recorded, s.ExpiresAt = false, time.Time{}
			}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := describeSessions([]records.Record{test.record}, test.listings, test.only)
			switch {
			case test.want == nil && len(got) > 0:
				t.Errorf("it is shown as %+v", got)
			case test.want != nil && (len(got) != 1 || got[0] != *test.want):
				t.Errorf("it is shown as\n%+v, want\n%+v", got, *test.want)
			}
		})
	}
}

func TestASandboxThatTwoProvidersListIsShownOnce(t *testing.T) {
	t.Parallel()
	record := records.Record{Session: "s1", Provider: "one", SandboxID: "b1", State: records.StateRunning}
	both := provider.Sandbox{ID: "b1", Session: "s1", State: provider.StateRunning}
	listings := map[string]*listing{"one": {sandboxes: []provider.Sandbox{both}}, "two": {sandboxes: []provider.Sandbox{both}}}
	if got := describeSessions([]records.Record{record}, listings, ""); len(got) != 1 || got[0].Provider != "one" {
		t.Errorf("it is shown as %+v", got)
	}
}
