// Package sweep finds and ends what hosts have left behind: it finishes what the records say was interrupted, and
// compares what the providers have with the records. A sandbox that nobody owns any more costs money until it ends by
// itself; one that somebody uses must never be touched. So whatever is in doubt is kept, and reported.
package sweep

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/shared/provider"
)

// Retention is how long the record of a session whose sandbox is gone is kept.
const Retention = 7 * 24 * time.Hour

// Options are what a sweep may do.
type Options struct {
	// Grace is how old a sandbox must be to count as an orphan. A younger one may be about to be recorded by a host whose
	// clock differs.
	Grace time.Duration
	// DryRun only reports what would be done.
	DryRun bool
	// Provider is the only provider whose records are finished. Empty: those of all.
	Provider string
	// Unrecorded also destroys the owner's sandboxes that the records cannot know of, such as those that are older.
	Unrecorded bool
}

// Verdict is what a sweep decided about a sandbox or a record.
type Verdict string

const (
	// Kept: a record names the sandbox, and it is as recorded.
	Kept Verdict = "kept"
	// Busy: a host works on the session right now.
	Busy Verdict = "busy"
	// Orphan: no record names the sandbox. It is destroyed.
	Orphan Verdict = "orphan"
	// Young: no record names it, but it is not old enough to tell.
	Young Verdict = "young"
	// Unrecorded: it is older than the records, or was made under other records, so that these cannot tell whose it is. It
	// is kept unless Options.Unrecorded is set.
	Unrecorded Verdict = "unrecorded"
	// Foreign: another owner's. It is never touched.
	Foreign Verdict = "foreign"
	// Interrupted: a record says that a host ended half way. What it left is finished.
	Interrupted Verdict = "interrupted"
	// Outdated: the record differs from what the provider has. The record is corrected.
	Outdated Verdict = "outdated"
)

// Finding is one sandbox or record, the verdict on it, and what was done.
type Finding struct {
	Provider  string
	Session   string
	SandboxID string
	Owner     string
	Verdict   Verdict
	// Why explains the verdict to people.
	Why string
	// Age is the time since the sandbox was made, and zero if that is not known.
	Age time.Duration
	// Done is what was done about it, in words. It is empty if nothing was, as in a dry run.
	Done string
	// Err is why it could not be done.
	Err error
}

// Acts reports whether something is to be done about the verdict.
func (f Finding) Acts() bool {
	return f.Verdict == Orphan || f.Verdict == Interrupted || f.Verdict == Outdated
}

// Report is the result of a sweep.
type Report struct {
	Findings []Finding
	// Failures are the providers that could not be swept, by name.
	Failures map[string]error
	// Forgotten is how many records of long gone sandboxes were removed.
	Forgotten int
}

// Err returns the first error: that of the first provider, by name, else that of the first finding.
func (r Report) Err() error {
	for _, name := range slices.Sorted(maps.Keys(r.Failures)) {
		return r.Failures[name]
	}
	for _, f := range r.Findings {
		if f.Err != nil {
			return f.Err
		}
	}
	return nil
}

// Sweep sweeps providers, given by name, at the same time. It fails as a whole when the records cannot be read: without
// them nothing can be told. found, which may be nil, is called with every finding when it has been dealt with, from one
// goroutine at a time. Errors are *connect.Error.
func Sweep(
	ctx context.Context, store records.Store, providers map[string]*sessions.Sessions, o Options, found func(Finding),
) (Report, error) {
	s := newSweep(store, providers, o, found)
	began, err := store.Began(ctx)
	if err != nil {
		return s.report, connect.RecordsError(err)
	}
	s.began = began
	if err := s.recover(ctx); err != nil {
		return s.report, err
	}
	var sweeps sync.WaitGroup
	for name, on := range providers {
		sweeps.Go(func() {
			if err := s.provider(ctx, name, on); err != nil {
				s.mutex.Lock()
				s.report.Failures[name] = err
				s.mutex.Unlock()
			}
		})
	}
	sweeps.Wait()
	s.sort()
	if !o.DryRun {
		if s.report.Forgotten, err = store.Forget(ctx, time.Now().Add(-Retention)); err != nil {
			return s.report, connect.RecordsError(err)
		}
	}
	return s.report, nil
}

// Recover only finishes what the records say was interrupted. Apart from that it is like Sweep.
func Recover(
	ctx context.Context, store records.Store, providers map[string]*sessions.Sessions, found func(Finding),
) (Report, error) {
	s := newSweep(store, providers, Options{}, found)
	err := s.recover(ctx)
	s.sort()
	return s.report, err
}

// sweep is one sweep under way.
type sweep struct {
	records   records.Store
	providers map[string]*sessions.Sessions
	options   Options
	began     time.Time // when the records were begun
	found     func(Finding)

	mutex  sync.Mutex
	report Report // guarded by mutex
}

func newSweep(store records.Store, providers map[string]*sessions.Sessions, o Options, found func(Finding)) *sweep {
	return &sweep{records: store, providers: providers, options: o, found: found, report: Report{Failures: map[string]error{}}}
}

func (s *sweep) add(f Finding) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.report.Findings = append(s.report.Findings, f)
	if s.found != nil {
		s.found(f)
	}
}

func (s *sweep) sort() {
	slices.SortStableFunc(s.report.Findings, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(x.Provider, y.Provider), cmp.Compare(x.Session, y.Session), cmp.Compare(x.SandboxID, y.SandboxID))
	})
}

// unfinished is what is to be finished of one attempt: that of a record or, if earlier is set, one before it.
type unfinished struct {
	records.Attempt
	earlier bool
}

// recover finishes every interrupted record and what earlier attempts owe: a few sessions at a time, and of each session
// one thing after the other.
func (s *sweep) recover(ctx context.Context) error {
	all, err := s.records.List(ctx)
	if err != nil {
		return connect.RecordsError(err)
	}
	owed, err := s.records.Owed(ctx, "")
	if err != nil {
		return connect.RecordsError(err)
	}
	bySession := map[string][]unfinished{}
	add := func(u unfinished) {
		if s.options.Provider == "" || s.options.Provider == u.Provider {
			bySession[u.Session] = append(bySession[u.Session], u)
		}
	}
	for _, attempt := range owed {
		add(unfinished{attempt, true})
	}
	for _, record := range all {
		if record.Interrupted() {
			add(unfinished{record.OwnAttempt(), false})
		}
	}
	eachOf(slices.Collect(maps.Values(bySession)), func(ofOne []unfinished) {
		for _, u := range ofOne {
			s.finish(ctx, u)
		}
	})
	return nil
}

func (s *sweep) finish(ctx context.Context, u unfinished) {
	f := Finding{
		Provider: u.Provider, Session: u.Session, SandboxID: u.SandboxID, Verdict: Interrupted, Age: age(u.CreatedAt),
		Why: fmt.Sprintf("a host ended while it was %s the sandbox", u.State),
	}
	if u.earlier {
		f.Why = fmt.Sprintf("an earlier attempt of the session was interrupted while it was %s the sandbox", u.State)
	}
	on := s.providers[u.Provider]
	switch {
	case on == nil:
		f.Err = fmt.Errorf("provider %s cannot be asked", u.Provider)
	case !s.options.DryRun:
		var outcome sessions.Outcome
		var id string
		if u.earlier {
			outcome, id, f.Err = on.Repay(ctx, u.Attempt)
		} else {
			outcome, id, f.Err = on.Recover(ctx, u.Session)
		}
		if id != "" {
			f.SandboxID = id
		}
		switch {
		case f.Err == nil && outcome == sessions.OutcomeBusy:
			f.Verdict, f.Why = Busy, "a host took the session up meanwhile"
		case f.Err == nil:
			f.Done = string(outcome)
		}
	}
	s.add(f)
}

// finished returns the ids of the provider's sandboxes that recover has finished, failed on, or would finish.
func (s *sweep) finished(name string) map[string]bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	ids := map[string]bool{}
	for _, f := range s.report.Findings {
		if f.Provider == name && f.Verdict == Interrupted && f.SandboxID != "" {
			ids[f.SandboxID] = true
		}
	}
	return ids
}

// provider compares what one provider has with the records.
func (s *sweep) provider(ctx context.Context, name string, on *sessions.Sessions) error {
	// The sandboxes come first: whatever is among them was recorded before it was made.
	sandboxes, incomplete := on.Survey(ctx)
	all, err := s.records.List(ctx)
	if err != nil {
		return connect.RecordsError(err)
	}
	bySession, bySandbox := map[string]records.Record{}, map[string]records.Record{}
	for _, record := range all {
		bySession[record.Session] = record
		if record.HasSandbox() && record.SandboxID != "" {
			bySandbox[record.SandboxID] = record
		}
	}
	finished := s.finished(name)
	there := map[string]provider.Sandbox{}
	for _, sandbox := range sandboxes {
		there[sandbox.ID] = sandbox
	}

	eachOf(sandboxes, func(sandbox provider.Sandbox) {
		record := bySession[sandbox.Session]
		if of, recorded := bySandbox[sandbox.ID]; recorded && record.SandboxID != sandbox.ID {
			record = of // the records know better than a label
		}
		f := s.judge(name, on.Owner(), sandbox, record)
		if f.Verdict != Kept && finished[sandbox.ID] {
			return // recover has reported it
		}
		if f.Verdict == Orphan && !s.options.DryRun {
			var removed bool
			if removed, f.Err = on.RemoveOrphan(ctx, sandbox); removed {
				f.Done = "destroyed"
			} else if f.Err == nil {
				f.Verdict, f.Why = Busy, "a host took the session up meanwhile"
			}
		}
		s.add(f)
	})
	if incomplete != nil { // what was not listed may be there all the same
		return incomplete
	}
	eachOf(all, func(record records.Record) {
		if f, outdated := s.compare(name, record, there); outdated {
			if !s.options.DryRun {
				s.correct(ctx, on, &f)
			}
			s.add(f)
		}
	})
	return ctx.Err()
}

// judge decides whose a sandbox is. record is that of its session, if there is one. Two provider blocks may name one
// account: then each lists what the other has made, and a record counts whichever of the two it names.
func (s *sweep) judge(name, owner string, sandbox provider.Sandbox, record records.Record) Finding {
	f := Finding{
		Provider: name, Session: sandbox.Session, SandboxID: sandbox.ID, Owner: sandbox.Owner, Age: age(sandbox.CreatedAt),
	}
	// A record of a session whose sandbox is gone, and was another one, does not tell whose this sandbox is.
	tells := record.HasSandbox() || record.SandboxID == sandbox.ID
	switch {
	case sandbox.Owner != owner:
		f.Verdict, f.Why = Foreign, fmt.Sprintf("it belongs to %s", sandbox.Owner)
	case record.Holder != "":
		f.Verdict, f.Why = Busy, record.Holder+" is working on the session"
	case record.HasSandbox() && record.SandboxID == sandbox.ID && !record.Interrupted():
		f.Verdict, f.Why = Kept, fmt.Sprintf("the session's sandbox, recorded as %s", record.State)
	case record.Interrupted():
		f.Verdict, f.Why = Busy, "an interrupted attempt on the session comes first"
	case sandbox.CreatedAt.IsZero():
		f.Verdict, f.Why = Young, "the provider does not say how old it is"
	case sandbox.CreatedAt.Before(s.began.Add(s.options.Grace)) && !s.options.Unrecorded && !tells:
		f.Verdict = Unrecorded
		f.Why = fmt.Sprintf("the records begin at %s and cannot tell whose it is", s.began.UTC().Format(time.RFC3339))
	case s.ofOthers(sandbox) && !s.options.Unrecorded:
		f.Verdict, f.Why = Unrecorded, "other records of the same owner have it: those of another host, or some that were lost"
	case f.Age < s.options.Grace:
		f.Verdict, f.Why = Young, fmt.Sprintf("no record names it, and it is younger than %s", s.options.Grace)
	case record.HasSandbox():
		f.Verdict, f.Why = Orphan, fmt.Sprintf("the session has another sandbox, %s on provider %s", record.SandboxID, record.Provider)
	default:
		f.Verdict, f.Why = Orphan, "no record names it"
	}
	return f
}

// ofOthers reports whether the sandbox was made under other records than these.
func (s *sweep) ofOthers(sandbox provider.Sandbox) bool {
	label := sandbox.Labels[connect.LabelRecords]
	return label != "" && label != connect.RecordsLabel(s.began)
}

// compare reports whether the record differs from what the provider has.
func (s *sweep) compare(name string, record records.Record, there map[string]provider.Sandbox) (Finding, bool) {
	if record.Provider != name || record.Holder != "" || record.Interrupted() || !record.HasSandbox() {
		return Finding{}, false
	}
	f := Finding{
		Provider: name, Session: record.Session, SandboxID: record.SandboxID, Verdict: Outdated, Age: age(record.CreatedAt),
	}
	sandbox, listed := there[record.SandboxID]
	switch {
	case !listed && !recovery.Fresh(record, max(s.options.Grace, recovery.ListingLag)):
		f.Why = fmt.Sprintf("recorded as %s, and the provider does not have it", record.State)
	case listed && sandbox.State == provider.StateSuspended && record.State == records.StateRunning,
		listed && sandbox.State == provider.StateRunning && record.State == records.StateSuspended:
		f.Why = fmt.Sprintf("recorded as %s, and it is %s", record.State, sandbox.State)
	default:
		return Finding{}, false
	}
	return f, true
}

// correct brings the record into agreement with what the provider has, and notes the outcome in f.
func (s *sweep) correct(ctx context.Context, on *sessions.Sessions, f *Finding) {
	state, err := on.Reconcile(ctx, f.Session)
	if err != nil {
		f.Err = err
		return
	}
	f.Done = "recorded as " + string(state)
	if state == "" {
		f.Verdict, f.Why, f.Done = Busy, "a host took the session up meanwhile", ""
	}
}

// width is how many sandboxes or records are dealt with at the same time.
const width = 8

func eachOf[T any](list []T, do func(T)) {
	var group sync.WaitGroup
	turns := make(chan struct{}, width)
	for _, one := range list {
		turns <- struct{}{}
		group.Go(func() {
			defer func() { <-turns }()
			do(one)
		})
	}
	group.Wait()
}

func age(since time.Time) time.Duration {
	if since.IsZero() {
		return 0
	}
	return time.Since(since)
}
