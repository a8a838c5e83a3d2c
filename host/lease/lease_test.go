package lease

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/fence"
	"github.com/berth-dev/berth/host/records"
)

func TestTakeWaitsForTheHostAtWorkAndTryDoesNot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		memory := records.NewMemory()
		one, two := memory.Store("one"), memory.Store("two")
		first, err := Try(t.Context(), one, "s1")
		if err != nil {
			t.Fatal(err)
		}
		var busy *records.BusyError
		if _, err := Try(t.Context(), two, "s1"); !errors.As(err, &busy) || busy.Holder != "one" {
			t.Errorf("Try: %v", err)
		}
		time.AfterFunc(time.Minute, func() {
			first.Record.SandboxID = "sb-1"
			if err := first.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
		var waited []string
		second, err := Take(t.Context(), two, "s1", func(holder string) { waited = append(waited, holder) })
		if err != nil {
			t.Fatal(err)
		}
		if second.Record.SandboxID != "sb-1" || len(waited) != 1 || waited[0] != "one" {
			t.Errorf("the record is %+v; it waited for %v", second.Record, waited)
		}
	})
}

func TestALostLeaseAllowsNothingMore(t *testing.T) {
	t.Parallel()
	store := records.NewMemory().Store("one")
	l, err := Try(t.Context(), store, "s1")
	if err != nil {
		t.Fatal(err)
	}
	fenced := l.Fenced(t.Context())
	if err := errors.Join(l.Check(t.Context()), l.Save(t.Context()), fence.Check(fenced)); err != nil {
		t.Fatal(err)
	}
	store.End()
	for name, err := range map[string]error{
		"Check": l.Check(t.Context()), "Save": l.Save(t.Context()), "Release": l.Release(t.Context()), "a call": fence.Check(fenced),
	} {
		var failed *Error
		if !IsLost(err) || !errors.As(err, &failed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReleaseHappensThoughTheCallerHasGone(t *testing.T) {
	t.Parallel()
	store := records.NewMemory().Store("one")
	l, err := Try(t.Context(), store, "s1")
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Release(gone); err != nil {
		t.Fatal(err)
	}
	if _, err := Try(t.Context(), store, "s1"); err != nil {
		t.Errorf("the lease was not given back: %v", err)
	}
}
