package sweep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/shared/provider"
)

const owner = "ours"

// cloud is a provider's account in memory, as a sweep sees it.
type cloud struct {
	provider.Provider // the four calls are none of a sweep's business
	mutex             sync.Mutex
	sandboxes         map[string]provider.Sandbox
	listError         error
	stuck             string // a sandbox that cannot be destroyed
	onList            func()
}

func newCloud(sandboxes ...provider.Sandbox) *cloud {
	c := &cloud{sandboxes: map[string]provider.Sandbox{}}
	for _, s := range sandboxes {
		if s.Owner == "" {
			s.Owner = owner
		}
		if s.State == "" {
			s.State = provider.StateRunning
		}
		c.sandboxes[s.ID] = s
	}
	return c
}

func (c *cloud) List(_ context.Context, r provider.ListRequest) ([]provider.Sandbox, error) {
	if c.onList != nil {
		c.onList()
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	var found []provider.Sandbox
	for _, s := range c.sandboxes {
		if r.Matches(s.Owner, s.Session) {
			found = append(found, s)
		}
	}
	return found, c.listError
}

func (c *cloud) Destroy(_ context.Context, ref provider.SandboxRef) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if ref.SandboxID == c.stuck {
		return provider.Errorf(provider.CodeFailed, "it cannot be deleted")
	}
	if s, there := c.sandboxes[ref.SandboxID]; there && s.Owner != ref.Owner {
		return provider.Errorf(provider.CodeConflict, "it is another's")
	}
	delete(c.sandboxes, ref.SandboxID)
	return nil
}

func (c *cloud) left() string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	var ids []string
	for id := range c.sandboxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

// world is records, a cloud, and a host that sweeps.
type world struct {
	*testing.T
	records *records.Memory
	store   *records.MemoryStore
	cloud   *cloud
}

func newWorld(t *testing.T, sandboxes ...provider.Sandbox) *world {
	memory := records.NewMemory()
	return &world{t, memory, memory.Store("sweeper"), newCloud(sandboxes...)}
}

func (w *world) providers() map[string]*sessions.Sessions {
	return map[string]*sessions.Sessions{"acme": sessions.New(connect.New(w.cloud, "acme", owner, []byte("secret"), w.store))}
}

func (w *world) sweep(o Options) Report {
	w.Helper()
	report, err := Sweep(w.Context(), w.store, w.providers(), o, nil)
	if err != nil {
		w.Fatal(err)
	}
	return report
}

// write makes a record; the state of the lease is the caller's to choose.
func (w *world) write(r records.Record, release bool) *records.MemoryStore {
	w.Helper()
	host := w.records.Store("host of " + r.Session)
	lease, _, err := host.Take(w.Context(), r.Session)
	if err == nil {
		r.Provider = "acme"
		if release {
			err = host.Release(w.Context(), lease, r)
		} else {
			err = host.Save(w.Context(), lease, r)
		}
	}
	if err != nil {
		w.Fatal(err)
	}
	return host
}

// verdicts words the findings.
func verdicts(r Report) string {
	var list []string
	for _, f := range r.Findings {
		text := fmt.Sprintf("%s=%s", f.SandboxID, f.Verdict)
		if f.Done != "" {
			text += "(" + f.Done + ")"
		}
		if f.Err != nil {
			text += "!"
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

const grace = 10 * time.Minute

func TestASweepDestroysWhatNobodyOwnsAndKeepsEverythingElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		time.Sleep(time.Hour) // virtual: the records are older than what follows
		old, fresh := time.Now(), time.Now().Add(20*time.Minute)
		w.cloud = newCloud(
			provider.Sandbox{ID: "kept", Session: "s1", CreatedAt: old},
			provider.Sandbox{ID: "orphan", Session: "s2", CreatedAt: old},
			provider.Sandbox{ID: "duplicate", Session: "s1", CreatedAt: old},
			provider.Sandbox{ID: "nameless", CreatedAt: old},
			provider.Sandbox{ID: "young", Session: "s3", CreatedAt: fresh},
			provider.Sandbox{ID: "ageless", Session: "s4"},
			provider.Sandbox{ID: "foreign", Session: "s5", CreatedAt: old, Owner: "theirs"},
			provider.Sandbox{ID: "busy", Session: "s6", CreatedAt: old},
			provider.Sandbox{ID: "asleep", Session: "s7", CreatedAt: old, State: provider.StateSuspended},
			provider.Sandbox{ID: "ended", Session: "s8", CreatedAt: old, State: provider.StateGone},
		)
		w.write(records.Record{Session: "s1", SandboxID: "kept", State: records.StateRunning}, true)
		w.write(records.Record{Session: "s6", Attempt: "a6", State: records.StateCreating}, false)
		w.write(records.Record{Session: "s7", SandboxID: "asleep", State: records.StateSuspended}, true)
		time.Sleep(25 * time.Minute)

		dry := w.sweep(Options{Grace: grace, DryRun: true})
		want(t, "dry run", verdicts(dry), "ageless=young asleep=kept busy=busy duplicate=orphan foreign=foreign kept=kept "+
			"nameless=orphan orphan=orphan young=young")
		want(t, "left by the dry run", w.cloud.left(), "ageless asleep busy duplicate ended foreign kept nameless orphan young")

		report := w.sweep(Options{Grace: grace})
		want(t, "sweep", verdicts(report), "ageless=young asleep=kept busy=busy duplicate=orphan(destroyed) foreign=foreign kept=kept "+
			"nameless=orphan(destroyed) orphan=orphan(destroyed) young=young")
		want(t, "left", w.cloud.left(), "ageless asleep busy ended foreign kept young")
		if err := report.Err(); err != nil {
			t.Error(err)
		}
		for _, f := range report.Findings {
			if f.Why == "" {
				t.Errorf("no reason given for %s", f.SandboxID)
			}
		}
	})
}

func TestASandboxOlderThanTheRecordsIsKeptUnlessAskedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		before := time.Now().Add(-time.Hour)
		w := newWorld(t, provider.Sandbox{ID: "live", Session: "s1", CreatedAt: before})
		time.Sleep(time.Hour)
		want(t, "sweep", verdicts(w.sweep(Options{Grace: grace})), "live=unrecorded")
		want(t, "left", w.cloud.left(), "live")
		want(t, "sweep", verdicts(w.sweep(Options{Grace: grace, Unrecorded: true})), "live=orphan(destroyed)")
	})
}

func TestAFailedConnectDoesNotMakeAnOrphanOfASandboxOlderThanTheRecords(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		before := time.Now().Add(-time.Hour)
		w := newWorld(t, provider.Sandbox{ID: "live", Session: "s1", CreatedAt: before}, provider.Sandbox{ID: "ended", Session: "s2", CreatedAt: before})
		time.Sleep(time.Hour)
		w.write(records.Record{Session: "s1", State: records.StateGone}, true)                     // it has seen nothing
		w.write(records.Record{Session: "s2", SandboxID: "ended", State: records.StateGone}, true) // it has ended this one
		want(t, "sweep", verdicts(w.sweep(Options{Grace: grace})), "ended=orphan(destroyed) live=unrecorded")
		want(t, "left", w.cloud.left(), "live")
	})
}

func TestTwoProvidersOnOneAccountKeepEachOthersSandboxes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		time.Sleep(time.Hour)
		sandbox := provider.Sandbox{ID: "large", Session: "s1", CreatedAt: time.Now()}
		w.cloud = newCloud(sandbox)
		w.write(records.Record{Session: "s1", SandboxID: "large", State: records.StateRunning}, true) // on acme
		time.Sleep(time.Hour)
		other := sessions.New(connect.New(w.cloud, "acme-small", owner, []byte("secret"), w.store))
		providers := w.providers()
		providers["acme-small"] = other
		report, err := Sweep(t.Context(), w.store, providers, Options{Grace: grace}, nil)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "sweep", verdicts(report), "large=kept large=kept")
		if removed, err := other.RemoveOrphan(t.Context(), sandbox); removed || err != nil {
			t.Errorf("removed %t, %v", removed, err)
		}
		want(t, "left", w.cloud.left(), "large")
	})
}

func TestASandboxOfOtherRecordsOfTheSameOwnerIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		began, err := w.store.Began(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		label := func(began time.Time) map[string]string {
			return map[string]string{connect.LabelRecords: connect.RecordsLabel(began)}
		}
		w.cloud = newCloud(
			provider.Sandbox{ID: "theirs", Session: "s1", CreatedAt: time.Now(), Labels: label(began.Add(time.Minute))},
			provider.Sandbox{ID: "orphan", Session: "s2", CreatedAt: time.Now(), Labels: label(began)},
		)
		time.Sleep(time.Hour)
		want(t, "sweep", verdicts(w.sweep(Options{Grace: grace})), "orphan=orphan(destroyed) theirs=unrecorded")
		want(t, "sweep", verdicts(w.sweep(Options{Grace: grace, Unrecorded: true})), "theirs=orphan(destroyed)")
	})
}

func TestAnInterruptedAttemptIsFinishedFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, provider.Sandbox{ID: "half", Session: "s1", Attempt: "a1", CreatedAt: time.Now()})
		host := w.write(records.Record{Session: "s1", Attempt: "a1", State: records.StateCreating}, false)
		want(t, "while its host lives", verdicts(w.sweep(Options{Grace: grace})), "half=busy")
		host.End()
		want(t, "dry run", verdicts(w.sweep(Options{Grace: grace, DryRun: true})), "=interrupted half=busy")
		want(t, "sweep", verdicts(w.sweep(Options{Grace: grace})), "half=interrupted(destroyed)")
		want(t, "left", w.cloud.left(), "")
		want(t, "sweep again", verdicts(w.sweep(Options{Grace: grace})), "")
	})
}

func TestWhatEarlierAttemptsOweIsFinished(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t,
			provider.Sandbox{ID: "owed", Session: "s1", Attempt: "a1", CreatedAt: time.Now()},
			provider.Sandbox{ID: "half", Session: "s1", Attempt: "a2", CreatedAt: time.Now()},
			provider.Sandbox{ID: "theirs", Session: "s2", Attempt: "a1", CreatedAt: time.Now()},
		)
		w.write(records.Record{Session: "s1", Attempt: "a1", SandboxID: "owed", State: records.StateDestroying}, true)
		w.write(records.Record{Session: "s1", Attempt: "a2", State: records.StateCreating}, true) // over the first
		w.write(records.Record{Session: "s2", Attempt: "a1", SandboxID: "theirs", State: records.StateRunning}, true)
		want(t, "dry run", verdicts(w.sweep(Options{Grace: grace, DryRun: true})), "=interrupted half=busy owed=interrupted theirs=kept")
		want(t, "another provider's", verdicts(w.sweep(Options{Grace: grace, DryRun: true, Provider: "umbrella"})), "half=busy owed=busy theirs=kept")
		report, err := Recover(t.Context(), w.store, w.providers(), nil)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "recover", verdicts(report), "half=interrupted(destroyed) owed=interrupted(destroyed)")
		want(t, "left", w.cloud.left(), "theirs")
		w.write(records.Record{Session: "s2", Attempt: "a1", SandboxID: "theirs", State: records.StateDestroying}, true)
		want(t, "dry run on a disconnect", verdicts(w.sweep(Options{Grace: grace, DryRun: true})), "theirs=interrupted")
		w.write(records.Record{Session: "s2", Attempt: "a1", SandboxID: "theirs", State: records.StateRunning}, true)
		want(t, "once more", verdicts(w.sweep(Options{Grace: grace})), "theirs=kept")
	})
}

func TestARecordIsCorrectedByWhatTheProviderHas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, provider.Sandbox{ID: "asleep", Session: "s1", State: provider.StateSuspended, CreatedAt: time.Now()})
		w.write(records.Record{Session: "s1", SandboxID: "asleep", State: records.StateRunning}, true)
		w.write(records.Record{Session: "s2", SandboxID: "vanished", State: records.StateRunning}, true)
		want(t, "at once, when listings lag", verdicts(w.sweep(Options{Grace: grace})),
			"asleep=kept asleep=outdated(recorded as suspended)")
		time.Sleep(time.Hour)
		w.write(records.Record{Session: "s3", SandboxID: "fresh", State: records.StateRunning}, true)
		want(t, "later", verdicts(w.sweep(Options{Grace: grace})), "asleep=kept vanished=outdated(recorded as gone)")
		record, err := w.store.Get(t.Context(), "s2")
		if err != nil || record.State != records.StateGone {
			t.Errorf("%+v, %v", record, err)
		}
		time.Sleep(7*24*time.Hour - time.Minute)
		if report := w.sweep(Options{Grace: grace}); report.Forgotten != 0 {
			t.Errorf("forgotten before a week was over: %d", report.Forgotten)
		}
		time.Sleep(2 * time.Minute)
		if report := w.sweep(Options{Grace: grace}); report.Forgotten != 1 {
			t.Errorf("forgotten after a week: %d", report.Forgotten)
		}
	})
}

func TestASessionTakenUpDuringTheSweepIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		time.Sleep(time.Hour)
		w.cloud = newCloud(provider.Sandbox{ID: "sb", Session: "s1", CreatedAt: time.Now()})
		time.Sleep(time.Hour)
		// Between the listing of the sandboxes and the reading of the records, and after it.
		w.cloud.onList = func() { w.write(records.Record{Session: "s1", SandboxID: "sb", State: records.StateRunning}, true) }
		want(t, "recorded meanwhile", verdicts(w.sweep(Options{Grace: grace})), "sb=kept")

		removed, err := w.providers()["acme"].RemoveOrphan(t.Context(), provider.Sandbox{ID: "sb", Session: "s1"})
		if removed || err != nil {
			t.Errorf("removed %t, %v", removed, err)
		}
		w.cloud.onList = nil
		host := w.records.Store("another host")
		if _, _, err := host.Take(t.Context(), "s1"); err != nil {
			t.Fatal(err)
		}
		removed, err = w.providers()["acme"].RemoveOrphan(t.Context(), provider.Sandbox{ID: "sb2", Session: "s1"})
		if removed || err != nil {
			t.Errorf("removed %t, %v", removed, err)
		}
		want(t, "left", w.cloud.left(), "sb")
	})
}

func TestWhatFailsIsReportedAndTheRestIsSwept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		time.Sleep(time.Hour)
		w.cloud = newCloud(
			provider.Sandbox{ID: "stuck", Session: "s1", CreatedAt: time.Now()},
			provider.Sandbox{ID: "orphan", Session: "s2", CreatedAt: time.Now()},
		)
		w.cloud.stuck = "stuck"
		time.Sleep(time.Hour)
		silent := newCloud()
		silent.listError = provider.Errorf(provider.CodeDenied, "wrong key")
		providers := w.providers()
		providers["silent"] = sessions.New(connect.New(silent, "silent", owner, []byte("secret"), w.store))
		w.write(records.Record{Session: "s3", Attempt: "a3", State: records.StateCreating}, false).End()
		lost := w.records.Store("lost")
		lease, _, err := lost.Take(t.Context(), "s4")
		if err == nil {
			err = lost.Save(t.Context(), lease, records.Record{Provider: "removed", Attempt: "a4", State: records.StateCreating})
		}
		if err != nil {
			t.Fatal(err)
		}
		lost.End()

		report, err := Sweep(t.Context(), w.store, providers, Options{Grace: grace}, nil)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "sweep", verdicts(report), "=interrupted! =interrupted(nothing) orphan=orphan(destroyed) stuck=orphan!")
		if report.Failures["silent"] == nil || report.Err() == nil {
			t.Errorf("failures: %v, error: %v", report.Failures, report.Err())
		}
	})
}

func TestWhatAPartOfAListingLacksMayBeThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		time.Sleep(time.Hour)
		w.write(records.Record{Session: "s1", SandboxID: "unlisted", Attempt: "a1", State: records.StateRunning}, true)
		w.cloud = newCloud(provider.Sandbox{ID: "orphan", Session: "s2", CreatedAt: time.Now()})
		w.cloud.listError = &provider.Error{Code: provider.CodeFailed, Reason: provider.ReasonListCut, Message: "too long"}
		time.Sleep(2 * time.Hour)
		report := w.sweep(Options{Grace: grace})
		want(t, "sweep", verdicts(report), "orphan=orphan(destroyed)")
		var e *connect.Error
		if !errors.As(report.Failures["acme"], &e) || e.Code != connect.CodePluginFailed || e.Message != "too long" {
			t.Errorf("failures: %v", report.Failures)
		}
		record, err := w.store.Get(t.Context(), "s1")
		if err != nil || record.State != records.StateRunning {
			t.Errorf("the record became %s, %v", record.State, err)
		}
	})
}

func TestARecordedSandboxIsKeptWhateverSessionItsLabelNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		time.Sleep(time.Hour)
		w.write(records.Record{Session: "s1", SandboxID: "sb", Attempt: "a1", State: records.StateRunning}, true)
		w.write(records.Record{Session: "s2", SandboxID: "sb2", Attempt: "a2", State: records.StateRunning}, true)
		w.cloud = newCloud(
			provider.Sandbox{ID: "sb", Session: "nobody knows it", CreatedAt: time.Now()},
			provider.Sandbox{ID: "sb2", Session: "s1", CreatedAt: time.Now()},
		)
		time.Sleep(2 * time.Hour)
		want(t, "sweep", verdicts(w.sweep(Options{Grace: grace})), "sb2=kept sb=kept")
		want(t, "left", w.cloud.left(), "sb sb2")
	})
}

func TestASweepOfOneProviderLeavesWhatWasInterruptedOnOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.write(records.Record{Session: "s1", Attempt: "a1", State: records.StateCreating}, false).End()
		w.cloud.listError = provider.Errorf(provider.CodeDenied, "it must not be asked")
		good := newCloud()
		providers := map[string]*sessions.Sessions{"good": sessions.New(connect.New(good, "good", owner, []byte("secret"), w.store))}
		report, err := Sweep(t.Context(), w.store, providers, Options{Grace: grace, Provider: "good"}, nil)
		if err != nil || report.Err() != nil {
			t.Errorf("%v, %v", err, report.Err())
		}
		want(t, "sweep", verdicts(report), "")
	})
}

func TestTheVerdictsThatAct(t *testing.T) {
	t.Parallel()
	for verdict, want := range map[Verdict]bool{
		Kept: false, Busy: false, Orphan: true, Young: false, Unrecorded: false, Foreign: false, Interrupted: true, Outdated: true,
	} {
		if got := (Finding{Verdict: verdict}).Acts(); got != want {
			t.Errorf("%s: %t", verdict, got)
		}
	}
}

func TestTheErrorOfAReportIsItsFirst(t *testing.T) {
	t.Parallel()
	one, two, three := errors.New("one"), errors.New("two"), errors.New("three")
	findings := []Finding{{}, {Err: two}, {Err: three}, {}}
	for _, test := range []struct {
		report Report
		want   error
	}{
		{Report{}, nil},
		{Report{Findings: findings[:1]}, nil},
		{Report{Findings: findings}, two},
		{Report{Findings: findings, Failures: map[string]error{"b": three, "a": one}}, one},
	} {
		if got := test.report.Err(); !errors.Is(got, test.want) {
			t.Errorf("%+v: %v", test.report, got)
		}
	}
}

// meanwhile are records in which another host takes a session between the reading of the records and what is done about
// it, and which cannot forget.
type meanwhile struct {
	*records.MemoryStore
	take func()
}

func (m meanwhile) Owed(ctx context.Context, session string) ([]records.Attempt, error) {
	owed, err := m.MemoryStore.Owed(ctx, session)
	if session == "" {
		m.take()
	}
	return owed, err
}

func (m meanwhile) Forget(context.Context, time.Time) (int, error) {
	return 0, &records.UnusableError{Where: "records.db", Problem: "the disk is full"}
}

func TestAnInterruptedSessionThatIsTakenUpIsBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, provider.Sandbox{ID: "half", Session: "s1", Attempt: "a1", CreatedAt: time.Now()})
		w.write(records.Record{Session: "s1", Attempt: "a1", State: records.StateCreating}, false).End()
		store := meanwhile{w.store, func() {
			if _, _, err := w.records.Store("another host").Take(t.Context(), "s1"); err != nil {
				t.Error(err)
			}
		}}
		report, err := Recover(t.Context(), store, w.providers(), nil)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "recover", verdicts(report), "=busy")
		want(t, "left", w.cloud.left(), "half")
	})
}

func TestRecordsThatCannotForgetAreAFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := Sweep(t.Context(), meanwhile{w.store, func() {}}, w.providers(), Options{}, nil)
	var e *connect.Error
	if !errors.As(err, &e) || e.Code != connect.CodeRecordsUnusable {
		t.Errorf("got %v", err)
	}
}

func TestASandboxIsOldEnoughWhenItsGraceIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		time.Sleep(time.Hour)
		w.cloud = newCloud(provider.Sandbox{ID: "sb", Session: "s1", CreatedAt: time.Now()})
		time.Sleep(grace - time.Nanosecond)
		want(t, "before", verdicts(w.sweep(Options{Grace: grace})), "sb=young")
		time.Sleep(time.Nanosecond)
		want(t, "then", verdicts(w.sweep(Options{Grace: grace})), "sb=orphan(destroyed)")
	})
}

// unreadable records cannot be read.
type unreadable struct{ records.Store }

func (unreadable) List(context.Context) ([]records.Record, error) {
	return nil, &records.UnusableError{Where: "records.db", Problem: "the file is damaged"}
}

func TestNothingIsSweptWithoutTheRecords(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, provider.Sandbox{ID: "sb", Session: "s1", CreatedAt: time.Now()})
		time.Sleep(time.Hour)
		_, err := Sweep(t.Context(), unreadable{w.store}, w.providers(), Options{Unrecorded: true}, nil)
		var e *connect.Error
		if !errors.As(err, &e) || e.Code != connect.CodeRecordsUnusable {
			t.Errorf("got %v", err)
		}
		want(t, "left", w.cloud.left(), "sb")
	})
}
