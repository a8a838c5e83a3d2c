package recovery

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestFreshEndsExactlyWhenItsTimeIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for age, want := range map[time.Duration]bool{
			0: true, time.Minute - 1: true, time.Minute: false, -time.Minute + 1: true, -time.Minute: false,
		} {
			if got := Fresh(records.Record{UpdatedAt: time.Now().Add(-age)}, time.Minute); got != want {
				t.Errorf("a change of %s ago: fresh is %t", age, got)
			}
		}
	})
}

func TestWhatIsUnfinished(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		record records.Record
		want   bool
	}{
		{records.Record{State: records.StateCreating}, true},
		{records.Record{State: records.StateCreating, SandboxID: "box-1"}, false},
		{records.Record{State: records.StateDestroying, SandboxID: "box-1"}, true},
		{records.Record{State: records.StateRunning, SandboxID: "box-1"}, false},
		{records.Record{State: records.StateGone}, false},
	} {
		if got := Unfinished(test.record); got != test.want {
			t.Errorf("%+v: unfinished is %t", test.record, got)
		}
	}
}

const owner = "owner-1"

// account is the account of a cloud with the lease on a session, whose record is given.
func account(t *testing.T, p provider.Provider, record records.Record) (Account, *lease.Lease) {
	t.Helper()
	store := records.NewMemory().Store("one")
	l, err := lease.Try(t.Context(), store, "s1")
	if err != nil {
		t.Fatal(err)
	}
	record.Session = "s1"
	l.Record = record
	if err := l.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	return Account{Provider: p, Name: "acme", Owner: owner, Records: store}, l
}

func box(c *fakecloud.Cloud, attempt string) string {
	return c.Put(provider.Sandbox{Session: "s1", Owner: owner, Attempt: attempt, State: provider.StateRunning})
}

func TestDestroyInsistsOnlyOnWhatMayPass(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		err   error
		calls int
		fails bool
	}{
		{"unreachable", &provider.Error{Code: provider.CodeUnreachable}, 3, false},
		{"retryable", &provider.Error{Code: provider.CodeFailed, Retryable: true}, 3, false},
		{"failed for good", &provider.Error{Code: provider.CodeFailed}, 1, true},
		{"a plugin that is broken", &provider.Error{Code: provider.CodeUnreachable, Retryable: true, Reason: provider.ReasonPluginFailed}, 1, true},
		{"gone already", &provider.Error{Code: provider.CodeNotFound}, 1, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			id := box(c, "a1")
			failures := 2
			c.OnDestroy = func(context.Context) error {
				if failures == 0 {
					return nil
				}
				failures--
				return test.err
			}
			a, l := account(t, c, records.Record{Provider: "acme", State: records.StateRunning, SandboxID: id})
			err := a.Destroy(t.Context(), l, id)
			if (err != nil) != test.fails || c.Count("destroy:"+id) != test.calls {
				t.Errorf("%s: %v after %d calls", test.name, err, c.Count("destroy:"+id))
			}
			if e := provider.AsError(err); test.fails && e.SandboxID != id {
				t.Errorf("%s: the error names %q", test.name, e.SandboxID)
			}
		})
	}
}

func TestDestroyWaitsAsLongAsTheProviderAsks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		id, began, first := box(c, "a1"), time.Now(), true
		c.OnDestroy = func(context.Context) error {
			if first {
				first = false
				return &provider.Error{Code: provider.CodeExhausted, Retryable: true, RetryAfter: 7 * time.Second}
			}
			return nil
		}
		a, l := account(t, c, records.Record{Provider: "acme", State: records.StateRunning, SandboxID: id})
		if err := a.Destroy(t.Context(), l, id); err != nil || time.Since(began) != 7*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func TestDestroyEndsWithTheLeaseAndNamesTheProvidersLastWordAtTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		id := box(c, "a1")
		c.OnDestroy = func(context.Context) error { return provider.Errorf(provider.CodeUnreachable, "no route") }
		a, l := account(t, c, records.Record{Provider: "acme", State: records.StateRunning, SandboxID: id})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := a.Destroy(ctx, l, id); provider.CodeOf(err) != provider.CodeUnreachable {
			t.Errorf("at the deadline: %v", err)
		}
		time.Sleep(time.Minute)
		a.Records.(*records.MemoryStore).End()
		before := c.Count("destroy:" + id)
		if err := a.Destroy(t.Context(), l, id); !lease.IsLost(err) || c.Count("destroy:"+id) != before {
			t.Errorf("after the lease: %v", err)
		}
	})
}

// TestTheRecordNamesASandboxBeforeItIsDestroyed: whoever reads it attaches to that sandbox no more, and a host that comes
// after one that died here knows which it was.
func TestTheRecordNamesASandboxBeforeItIsDestroyed(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]records.State{"known": records.StateCreating, "made": records.StateCreating, "ended": records.StateDestroying} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			id := box(c, "a1")
			record := records.Record{Provider: "acme", State: state, Attempt: "a1"}
			if name == "known" {
				record.SandboxID = id
			}
			a, l := account(t, c, record)
			c.OnDestroy = func(ctx context.Context) error {
				if stored, err := a.Records.Get(ctx, "s1"); err != nil || stored.State != records.StateDestroying || stored.SandboxID != id {
					t.Errorf("%s: %+v, %v", name, stored, err)
				}
				return nil
			}
			if destroyed, err := a.Discard(t.Context(), l); err != nil || destroyed != id {
				t.Errorf("%s: %q, %v", name, destroyed, err)
			}
		})
	}
}

// fourCalls is a provider without any optional call.
type fourCalls struct{ provider.Provider }

func TestAProviderThatCannotListOrDestroySaysSo(t *testing.T) {
	t.Parallel()
	a, l := account(t, fourCalls{fakecloud.New()}, records.Record{})
	if _, err := a.List(t.Context(), "s1"); provider.CodeOf(err) != provider.CodeUnsupported {
		t.Errorf("List: %v", err)
	}
	if err := a.Destroy(t.Context(), l, "box-1"); provider.CodeOf(err) != provider.CodeUnsupported {
		t.Errorf("Destroy: %v", err)
	}
}

func TestWhatIsGoneIsNotListed(t *testing.T) {
	t.Parallel()
	c := fakecloud.New()
	c.Put(provider.Sandbox{Session: "s1", Owner: owner, State: provider.StateGone})
	id := box(c, "a1")
	a, _ := account(t, c, records.Record{})
	if listed, err := a.List(t.Context(), "s1"); err != nil || len(listed) != 1 || listed[0].ID != id {
		t.Errorf("%v, %v", listed, err)
	}
}

func TestASandboxElsewhereIsElsewhere(t *testing.T) {
	t.Parallel()
	a, _ := account(t, fakecloud.New(), records.Record{})
	for _, test := range []struct {
		record records.Record
		want   bool
	}{
		{records.Record{Provider: "other", State: records.StateRunning, SandboxID: "box-1"}, true},
		{records.Record{Provider: "acme", State: records.StateRunning, SandboxID: "box-1"}, false},
		{records.Record{Provider: "other", State: records.StateGone, SandboxID: "box-1"}, false},
	} {
		var elsewhere *ElsewhereError
		if got := errors.As(a.CheckProvider(test.record), &elsewhere); got != test.want {
			t.Errorf("%+v: %t", test.record, got)
		}
	}
}

// TestOneLookIsEnoughForAnOldAttempt: a listing lags behind a creation of just now, not behind one of long ago.
func TestOneLookIsEnoughForAnOldAttempt(t *testing.T) {
	t.Parallel()
	for age, want := range map[time.Duration]time.Duration{ListingLag: SearchTime, ListingLag + time.Second: searchPause} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			a, l := account(t, c, records.Record{Provider: "acme", State: records.StateCreating, Attempt: "a1", CreatedAt: time.Now()})
			time.Sleep(age)
			stored, err := a.Records.Get(t.Context(), "s1")
			if err != nil {
				t.Fatal(err)
			}
			l.Record = stored
			began := time.Now()
			if id, err := a.Discard(t.Context(), l); err != nil || id != "" {
				t.Errorf("%s: %q, %v", age, id, err)
			}
			if took := time.Since(began); took != want {
				t.Errorf("an attempt of %s ago was looked for during %s, want %s", age, took, want)
			}
			if l.Record.State != records.StateGone {
				t.Errorf("%s: the state is %s", age, l.Record.State)
			}
		})
	}
}

func TestASearchEndsAtWhatALongerOneWouldNotSee(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		err  *provider.Error
		took time.Duration
	}{
		{"cannot list", &provider.Error{Code: provider.CodeUnsupported}, 0},
		{"a listing too long", &provider.Error{Code: provider.CodeInternal, Reason: provider.ReasonListCut}, 0},
		{"no answer", &provider.Error{Code: provider.CodeUnreachable}, SearchTime},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := fakecloud.New()
			c.OnList = func(context.Context) error { return test.err }
			a, _ := account(t, c, records.Record{})
			began := time.Now()
			id, err := a.FindMade(t.Context(), records.Attempt{Session: "s1", ID: "a1"}, SearchTime)
			if id != "" || provider.CodeOf(err) != test.err.Code || time.Since(began) != test.took {
				t.Errorf("%s: %q, %v after %s", test.name, id, err, time.Since(began))
			}
		})
	}
}

func TestWhatEarlierAttemptsOweIsFinishedOnTheirOwnProviderOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		here, current := box(c, "here"), box(c, "adopted")
		a, l := account(t, c, records.Record{Provider: "acme", State: records.StateRunning, SandboxID: current, Attempt: "current"})
		for _, attempt := range []records.Attempt{
			{ID: "here", Provider: "acme", State: records.StateCreating},
			{ID: "elsewhere", Provider: "other", State: records.StateDestroying, SandboxID: "far-1"},
			{ID: "adopted", Provider: "acme", State: records.StateCreating}, // its sandbox is the session's by now
		} {
			attempt.Session, attempt.CreatedAt = "s1", time.Now()
			if err := l.SaveAttempt(t.Context(), attempt); err != nil {
				t.Fatal(err)
			}
		}
		l.Record.Owed = 3
		destroyed, err := a.Finish(t.Context(), l)
		if err != nil || len(destroyed) != 1 || destroyed[0] != here {
			t.Errorf("destroyed %v, %v", destroyed, err)
		}
		if l.Record.Owed != 1 || c.Find("s1", owner) == nil || len(c.Left()) != 1 || c.Left()[0] != current {
			t.Errorf("it owes %d, and there are %v", l.Record.Owed, c.Left())
		}
		if owed, err := l.Owed(t.Context()); err != nil || len(owed) != 1 || owed[0].ID != "elsewhere" {
			t.Errorf("owed: %v, %v", owed, err)
		}
	})
}

func TestAnInterruptedAttemptElsewhereIsPutAside(t *testing.T) {
	t.Parallel()
	interrupted := records.Record{Provider: "other", State: records.StateCreating, Attempt: "a1"}
	a, l := account(t, fakecloud.New(), interrupted)
	if err := a.PutAside(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if l.Record.State != records.StateGone || l.Record.Owed != 1 {
		t.Errorf("%+v", l.Record)
	}
	if err := l.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	if owed, err := l.Owed(t.Context()); err != nil || len(owed) != 1 || owed[0].ID != "a1" || owed[0].Provider != "other" {
		t.Errorf("owed: %v, %v", owed, err)
	}

	interrupted.Provider = "acme" // here it is finished instead
	a, l = account(t, fakecloud.New(), interrupted)
	if err := a.PutAside(t.Context(), l); err != nil || l.Record.Owed != 0 || l.Record.State != records.StateCreating {
		t.Errorf("%v, %+v", err, l.Record)
	}
}
