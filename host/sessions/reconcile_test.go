package sessions

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/internal/fakecloud"
	"github.com/berth-dev/berth/shared/provider"
)

// write makes s1's record, whose host lives on.
func write(t *testing.T, h host, record records.Record) {
	t.Helper()
	taken, _, err := h.store.Take(t.Context(), "s1")
	ok(t, err)
	ok(t, h.store.Release(t.Context(), taken, record))
}

func TestReconcileRecordsWhatTheProviderHas(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		record records.Record
		has    provider.State // of the sandbox, "" if it has none
		want   records.State
	}{
		"suspended by somebody else": {records.Record{Provider: "acme", State: records.StateRunning}, provider.StateSuspended, records.StateSuspended},
		"woken by somebody else":     {records.Record{Provider: "acme", State: records.StateSuspended}, provider.StateRunning, records.StateRunning},
		"as recorded":                {records.Record{Provider: "acme", State: records.StateRunning}, provider.StateRunning, records.StateRunning},
		"gone":                       {records.Record{Provider: "acme", State: records.StateRunning}, "", records.StateGone},
		"another provider's":         {records.Record{Provider: "umbrella", State: records.StateRunning}, provider.StateSuspended, records.StateRunning},
		"interrupted":                {records.Record{Provider: "acme", State: records.StateDestroying}, provider.StateRunning, records.StateDestroying},
		"without a sandbox":          {records.Record{Provider: "acme", State: records.StateGone}, provider.StateRunning, records.StateGone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := fakecloud.New()
				h := hostOf(c, records.NewMemory(), "one")
				end := time.Now().Add(3 * time.Hour)
				// One that a listing has before the recorded one: it is of no concern.
				c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateFailed})
				test.record.SandboxID = c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: test.has, ExpiresAt: end})
				if test.has == "" {
					delete(c.Sandboxes, test.record.SandboxID)
				}
				write(t, h, test.record)
				time.Sleep(time.Hour) // listings lag no more
				state, err := h.Reconcile(t.Context(), "s1")
				ok(t, err)
				same(t, "state", state, test.want)
				record := recordOf(t, h)
				same(t, "recorded", record.State, test.want)
				if asked := test.record.Provider == "acme" && test.record.State != records.StateGone && !test.record.Interrupted(); asked && test.has != "" {
					same(t, "end", record.ExpiresAt, end)
				} else {
					same(t, "end", record.ExpiresAt, time.Time{})
				}
			})
		})
	}
}

func TestReconcileLeavesASessionAloneThatAHostWorksOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, memory := fakecloud.New(), records.NewMemory()
		h := hostOf(c, memory, "one")
		write(t, h, records.Record{Provider: "acme", State: records.StateRunning, SandboxID: "sb-gone"})
		time.Sleep(time.Hour)
		_, _, err := memory.Store("two").Take(t.Context(), "s1")
		ok(t, err)
		state, err := h.Reconcile(t.Context(), "s1")
		ok(t, err)
		same(t, "state", state, "")
		same(t, "recorded", recordOf(t, h).State, records.StateRunning)
	})
}

func TestAProviderThatCannotBeAskedChangesNoRecord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnList = func(context.Context) error { return provider.Errorf(provider.CodeUnreachable, "502") }
		h := hostOf(c, records.NewMemory(), "one")
		write(t, h, records.Record{Provider: "acme", State: records.StateRunning, SandboxID: "sb-1"})
		time.Sleep(time.Hour)
		_, err := h.Reconcile(t.Context(), "s1")
		failure(t, err, connect.CodeUnreachable)
		same(t, "recorded", recordOf(t, h).State, records.StateRunning)
	})
}

func TestAnOrphanIsRemovedUnlessARecordNamesItByNow(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		session string // on the sandbox's label
		record  records.Record
		removed bool
	}{
		"no record":                {"s1", records.Record{State: records.StateGone}, true},
		"without a session":        {"", records.Record{State: records.StateGone}, true},
		"of another sandbox":       {"s1", records.Record{Provider: "acme", State: records.StateRunning, SandboxID: "sb-9"}, true},
		"its own":                  {"s1", records.Record{Provider: "acme", State: records.StateRunning, SandboxID: "sb-1"}, false},
		"by another block":         {"s1", records.Record{Provider: "umbrella", State: records.StateRunning, SandboxID: "sb-1"}, false},
		"its own, which has ended": {"s1", records.Record{Provider: "acme", State: records.StateGone, SandboxID: "sb-1"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := fakecloud.New()
				h := hostOf(c, records.NewMemory(), "one")
				id := c.Put(provider.Sandbox{Session: test.session, Owner: testOwner, State: provider.StateRunning})
				write(t, h, test.record)
				removed, err := h.RemoveOrphan(t.Context(), *c.Sandboxes[id])
				ok(t, err)
				same(t, "removed", removed, test.removed)
				same(t, "left", len(c.Left()) == 0, test.removed)
				same(t, "recorded", recordOf(t, h).State, test.record.State)
			})
		})
	}
}

func TestAnOrphanThatCannotBeRemovedIsNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := fakecloud.New()
		c.OnDestroy = func(context.Context) error { return provider.Errorf(provider.CodeDenied, "403") }
		h := hostOf(c, records.NewMemory(), "one")
		id := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, State: provider.StateRunning})
		write(t, h, records.Record{Provider: "acme", State: records.StateRunning, SandboxID: "sb-9"})
		removed, err := h.RemoveOrphan(t.Context(), *c.Sandboxes[id])
		same(t, "removed", removed, false)
		same(t, "sandbox of the error", failure(t, err, connect.CodeDenied).SandboxID, id)
	})
}

func TestRecoverRecordsHowItFoundTheSandbox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, memory := fakecloud.New(), records.NewMemory()
		asleep := c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a0", State: provider.StateSuspended})
		interruptedCreate(t, hostOf(c, memory, "one"), "")
		two := hostOf(c, memory, "two")
		outcome, id, err := two.Recover(t.Context(), "s1")
		ok(t, err)
		same(t, "outcome", outcome, OutcomeAdopted)
		same(t, "sandbox", id, asleep)
		same(t, "state", recordOf(t, two).State, records.StateSuspended)
	})
}

func TestRecoverSaysWhatAnInterruptedCreateMade(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		made, known bool
		want        Outcome
	}{
		"nothing": {false, false, OutcomeNothing}, "a sandbox": {true, false, OutcomeDestroyed}, "a sandbox that is recorded": {true, true, OutcomeDestroyed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c, memory := fakecloud.New(), records.NewMemory()
				id, recorded := "", ""
				if test.made {
					id = c.Put(provider.Sandbox{Session: "s1", Owner: testOwner, Attempt: "a1", State: provider.StateRunning})
				}
				if test.known {
					recorded = id
				}
				interruptedCreate(t, hostOf(c, memory, "one"), recorded)
				two := hostOf(c, memory, "two")
				outcome, acted, err := two.Recover(t.Context(), "s1")
				ok(t, err)
				same(t, "outcome", outcome, test.want)
				same(t, "sandbox", acted, id)
				nothingLeft(t, c)
				same(t, "state", recordOf(t, two).State, records.StateGone)
			})
		})
	}
}

func TestRecoverOfAProviderThatCannotBeAskedLeavesTheRecord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, memory := fakecloud.New(), records.NewMemory()
		c.OnList = func(context.Context) error { return provider.Errorf(provider.CodeDenied, "403") }
		interruptedCreate(t, hostOf(c, memory, "one"), "")
		two := hostOf(c, memory, "two")
		_, _, err := two.Recover(t.Context(), "s1")
		failure(t, err, connect.CodeDenied)
		same(t, "state", recordOf(t, two).State, records.StateCreating)
		same(t, "left", strings.Join(c.Left(), " "), "")
	})
}
