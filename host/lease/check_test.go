package lease

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// watched is a store that counts looks, and whose answers can be replaced.
type watched struct {
	*records.MemoryStore
	looks   int
	answer  func(context.Context) error
	release func(context.Context) error
	invalid bool
}

func (w *watched) Check(ctx context.Context, l records.Lease) error {
	w.looks++
	if w.answer != nil {
		return w.answer(ctx)
	}
	return w.MemoryStore.Check(ctx, l)
}

func (w *watched) Release(ctx context.Context, l records.Lease, r records.Record) error {
	if w.release != nil {
		return w.release(ctx)
	}
	return w.MemoryStore.Release(ctx, l, r)
}

func (w *watched) Valid() bool { return !w.invalid && w.MemoryStore.Valid() }

func taken(t *testing.T) (*watched, *Lease) {
	t.Helper()
	w := &watched{MemoryStore: records.NewMemory().Store("one")}
	l, err := Try(t.Context(), w, "s1")
	if err != nil {
		t.Fatal(err)
	}
	return w, l
}

func TestALeaseThatWasKnownAMomentAgoIsNotLookedForAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, l := taken(t)
		check := func(what string, looks int) {
			t.Helper()
			if err := l.Check(t.Context()); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if w.looks != looks {
				t.Errorf("%s: %d looks, want %d", what, w.looks, looks)
			}
		}
		check("just taken", 0)
		time.Sleep(certain - time.Nanosecond)
		check("a moment later", 0)
		time.Sleep(time.Nanosecond)
		check("when it is no longer certain", 1)
		check("just looked", 1)
		time.Sleep(certain)
		if err := l.Save(t.Context()); err != nil {
			t.Fatal(err)
		}
		check("just saved", 1)
		if err := l.Confirm(t.Context()); err != nil || w.looks != 2 {
			t.Errorf("Confirm: %v after %d looks", err, w.looks)
		}
	})
}

func TestAFailedSaveTellsNothingOfTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, l := taken(t)
		time.Sleep(certain)
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		w.answer = func(context.Context) error { return nil }
		w.End()
		if err := l.Save(cancelled); err == nil {
			t.Fatal("it was saved")
		}
		if _, _, err := w.Take(t.Context(), "s2"); err != nil { // so that the host is a valid one again
			t.Fatal(err)
		}
		_ = l.Check(t.Context())
		if w.looks != 1 {
			t.Errorf("%d looks", w.looks)
		}
	})
}

func TestAHostWhoseTimeIsUpHasLostItsLeaseWhateverTheRecordsSay(t *testing.T) {
	t.Parallel()
	w, l := taken(t)
	w.invalid = true
	w.answer = func(context.Context) error { return errors.New("no answer") }
	if err := l.Check(t.Context()); !IsLost(err) {
		t.Errorf("got %v", err)
	}
}

func TestRecordsThatCannotBeReadDoNotEndALease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, l := taken(t)
		time.Sleep(certain)
		began := time.Now()
		w.answer = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		if err := l.Check(t.Context()); err != nil || time.Since(began) != 5*time.Second {
			t.Errorf("got %v after %s", err, time.Since(began))
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.Check(ended); !errors.Is(err, context.Canceled) || IsLost(err) {
			t.Errorf("an ended context: %v", err)
		}
	})
}

func TestTheLastWriteHasMoreTimeThanItsCaller(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		parent func(context.Context) (context.Context, context.CancelFunc)
		want   time.Duration
	}{
		{"with a deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, 11 * time.Second},
		{"cancelled meanwhile", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(3*time.Second, cancel)
			return ctx, cancel
		}, 13 * time.Second},
		{"gone already", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx, cancel
		}, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, l := taken(t)
			w.release = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			parent, cancel := test.parent(t.Context())
			defer cancel()
			began := time.Now()
			if err := l.Release(parent); err == nil || time.Since(began) != test.want {
				t.Errorf("%s: %v after %s, want %s", test.name, err, time.Since(began), test.want)
			}
		})
	}
}

func TestAWriteThatIsDoneLeavesNothingRunning(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, l := taken(t)
		var last context.Context
		w.release = func(ctx context.Context) error { last = ctx; return nil }
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if last.Err() == nil {
			t.Error("its context goes on")
		}
	})
}

func TestOnlyASessionThatOwesIsAskedWhatItOwes(t *testing.T) {
	t.Parallel()
	_, l := taken(t)
	if err := l.SaveAttempt(t.Context(), records.Attempt{
		Session: "s1", ID: "a1", Provider: "acme", State: records.StateCreating, CreatedAt: time.Now(),
	}); err != nil {
		t.Fatal(err)
	}
	if owed, err := l.Owed(t.Context()); err != nil || len(owed) != 0 {
		t.Errorf("a record that owes nothing: %v, %v", owed, err)
	}
	l.Record.Owed = 1
	if owed, err := l.Owed(t.Context()); err != nil || len(owed) != 1 || owed[0].ID != "a1" {
		t.Errorf("one that owes: %v, %v", owed, err)
	}
}

func TestTheGenerationIsTheRecordedOneOfThisSandboxOrItsLabels(t *testing.T) {
	t.Parallel()
	record := records.Record{Generation: "recorded", Attempt: "a1", SandboxID: "box-1"}
	labelled := map[string]string{LabelGeneration: "labelled"}
	for _, test := range []struct {
		name    string
		record  records.Record
		sandbox provider.Sandbox
		want    string
	}{
		{"its attempt", record, provider.Sandbox{ID: "box-2", Attempt: "a1", Labels: labelled}, "recorded"},
		{"its id, without an attempt", record, provider.Sandbox{ID: "box-1", Labels: labelled}, "recorded"},
		{"its id, of another attempt", record, provider.Sandbox{ID: "box-1", Attempt: "a2", Labels: labelled}, "labelled"},
		{"another id, without an attempt", record, provider.Sandbox{ID: "box-2", Labels: labelled}, "labelled"},
		{"none recorded", records.Record{Attempt: "a1"}, provider.Sandbox{Attempt: "a1", Labels: labelled}, "labelled"},
		{"none at all", records.Record{Attempt: "a1"}, provider.Sandbox{Attempt: "a1"}, ""},
	} {
		if got := GenerationOf(test.record, test.sandbox); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestARecordTakesASandboxAsItIs(t *testing.T) {
	t.Parallel()
	created, expires := time.Unix(1000, 0), time.Unix(2000, 0)
	_, l := taken(t)
	l.Record.Attempt, l.Record.CreatedAt = "a1", time.Unix(1, 0)
	l.SetSandbox("acme", provider.Sandbox{ID: "box-1", Attempt: "a2", ExpiresAt: expires})
	if r := l.Record; r.Attempt != "a2" || r.SandboxID != "box-1" || r.Provider != "acme" || r.State != records.StateRunning ||
		!r.ExpiresAt.Equal(expires) || !r.CreatedAt.Equal(time.Unix(1, 0)) {
		t.Errorf("%+v", r)
	}
	l.SetSandbox("acme", provider.Sandbox{ID: "box-1", CreatedAt: created})
	if r := l.Record; r.Attempt != "a2" || !r.CreatedAt.Equal(created) {
		t.Errorf("%+v", r)
	}
	l.Record.HeldUntil = expires
	l.SetGone()
	if r := l.Record; r.State != records.StateGone || !r.HeldUntil.IsZero() || !r.ExpiresAt.IsZero() || r.SandboxID != "box-1" {
		t.Errorf("%+v", r)
	}
}
