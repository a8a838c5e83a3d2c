package records

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// records are one set of records in a test. They are cleaned up with it.
type records struct {
	// open makes another host.
	open func() Store
	// expire ends all leases, as if none had been renewed in time.
	expire func()
}

func memoryRecords(*testing.T) records {
	m := NewMemory()
	var stores []*MemoryStore
	return records{
		open: func() Store {
			s := m.Store(fmt.Sprintf("host %d", len(stores)+1))
			stores = append(stores, s)
			return s
		},
		expire: func() {
			for _, s := range stores {
				s.End()
			}
		},
	}
}

func TestMemoryIsAStore(t *testing.T) {
	t.Parallel()
	testStore(t, memoryRecords)
}

// testStore is what every Store does.
func testStore(t *testing.T, begin func(*testing.T) records) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, records)
	}{
		{"ASessionWithoutARecordIsTakenAsGone", takesUnknown},
		{"WhatIsSavedIsReadBack", readsBack},
		{"AWriteOfWhatIsThereAlreadyIsNoChange", keepsTheTime},
		{"ASessionHasOneLeaseAtATime", refusesBusy},
		{"TokensGrowAndTheRecordGoesFromHostToHost", handsOver},
		{"ALeaseThatWasReleasedHoldsNoMore", releasedIsLost},
		{"ALeaseWhoseTimePassedIsLostForGood", expiredIsLost},
		{"TheLeaseOfALapsedHostIsTakenOver", takesOver},
		{"AHostThatLapsedBeginsAnew", beginsAnew},
		{"TheHolderIsShownOnlyWhileTheLeaseHolds", showsHolder},
		{"AllRecordsAreListedBySession", lists},
		{"TheSessionOfASandboxIsFound", namesSandbox},
		{"WhatIsGoneForLongIsForgotten", forgets},
		{"OfManyHostsOneGetsTheSession", oneWins},
		{"CloseGivesUpAllLeases", closes},
		{"AStoreWithoutALeaseIsValid", idle},
		{"TheRecordsKnowWhenTheyWereBegun", began},
		{"ALaterAttemptNeverOverwritesWhatIsOwed", keepsWhatIsOwed},
		{"WhatTheRecordNamesIsNotOwed", owesNothingOfItsOwn},
		{"AnAttemptIsWrittenUnderTheLease", fencesAttempts},
		{"AGenerationIsThatOfItsAttempt", keepsTheGeneration},
		{"AttemptsThatOweNothingAreForgottenAndOthersNot", forgetsAttempts},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, begin(t))
		})
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func wantNil(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func wantLost(t testing.TB, what string, err error) {
	t.Helper()
	var unusable *UnusableError
	if !errors.Is(err, ErrLost) || errors.As(err, &unusable) {
		t.Fatalf("%s: the error is %v and should be ErrLost", what, err)
	}
}

func take(t testing.TB, s Store, session string) (Lease, Record) {
	t.Helper()
	lease, record, err := s.Take(testContext(t), session)
	if err != nil {
		t.Fatalf("takeing %s: %v", session, err)
	}
	return lease, record
}

func wantBusy(t testing.TB, s Store, session string) *BusyError {
	t.Helper()
	_, _, err := s.Take(testContext(t), session)
	var busy *BusyError
	if !errors.As(err, &busy) {
		t.Fatalf("takeing %s: the error is %v and should be a BusyError", session, err)
	}
	if busy.Session != session || busy.Holder == "" {
		t.Errorf("the BusyError says %+v", *busy)
	}
	return busy
}

// wantRecord compares all but the times that the store sets.
func wantRecord(t testing.TB, got, want Record) {
	t.Helper()
	if got.UpdatedAt.IsZero() {
		t.Error("UpdatedAt is not set")
	}
	got.UpdatedAt, want.UpdatedAt = time.Time{}, time.Time{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the record is not the one expected (-want +got):\n%s", diff)
	}
}

func sample(session string) Record {
	at := time.UnixMilli(1_800_000_000_123)
	return Record{
		Session: session, Provider: "local", SandboxID: "sb-1", Attempt: "a-1", State: StateRunning,
		CreatedAt: at, ExpiresAt: at.Add(time.Hour), HeldUntil: at.Add(2 * time.Hour), Generation: "g-1",
	}
}

func takesUnknown(t *testing.T, r records) {
	s := r.open()
	lease, record := take(t, s, "s1")
	wantRecord(t, record, Record{Session: "s1", State: StateGone})
	if lease.Session != "s1" || lease.Token <= 0 {
		t.Errorf("the lease is %+v", lease)
	}
	wantNil(t, "Check", s.Check(testContext(t), lease))
	if _, err := s.Get(testContext(t), "another"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a session without a record Get says %v", err)
	}
}

func readsBack(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	lease, _ := take(t, s, "s1")
	want := sample("s1")
	given := want
	given.Holder, given.UpdatedAt, given.Session, given.Owed = "nobody", time.UnixMilli(1), "not this one", 5
	wantNil(t, "Save", s.Save(ctx, lease, given))
	got := must(s.Get(ctx, "s1"))(t)
	if got.Holder == "" {
		t.Error("the holder is not shown")
	}
	if got.UpdatedAt.UnixMilli() == 1 {
		t.Error("UpdatedAt is what the caller said")
	}
	got.Holder = ""
	wantRecord(t, got, want)

	want = Record{Session: "s1", State: StateGone}
	wantNil(t, "Release", s.Release(ctx, lease, want))
	wantRecord(t, must(s.Get(ctx, "s1"))(t), want) // zero times stay zero
}

func keepsTheTime(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	lease, _ := take(t, s, "s1")
	wantNil(t, "Save", s.Save(ctx, lease, sample("s1")))
	saved := must(s.Get(ctx, "s1"))(t)
	time.Sleep(5 * time.Millisecond) // more than the times are exact to
	wantNil(t, "Release", s.Release(ctx, lease, saved))
	lease, record := take(t, s, "s1")
	if !record.UpdatedAt.Equal(saved.UpdatedAt) {
		t.Errorf("last changed at %s, and then at %s", saved.UpdatedAt, record.UpdatedAt)
	}
	record.State = StateSuspended
	wantNil(t, "Release", s.Release(ctx, lease, record))
	if got := must(s.Get(ctx, "s1"))(t); !got.UpdatedAt.After(saved.UpdatedAt) {
		t.Error("a change is not noted")
	}
}

func refusesBusy(t *testing.T, r records) {
	first, second := r.open(), r.open()
	lease, _ := take(t, first, "s1")
	wantBusy(t, second, "s1")
	wantBusy(t, first, "s1")
	take(t, second, "s2")
	wantNil(t, "Check", first.Check(testContext(t), lease))
	wantLost(t, "the lease in another host's hands", second.Check(testContext(t), lease))
}

func handsOver(t *testing.T, r records) {
	first, second := r.open(), r.open()
	ctx := testContext(t)
	before, _ := take(t, first, "s1")
	wantNil(t, "Release", first.Release(ctx, before, sample("s1")))
	lease, record := take(t, second, "s1")
	wantRecord(t, record, sample("s1"))
	if lease.Token <= before.Token {
		t.Errorf("the tokens are %d, then %d", before.Token, lease.Token)
	}
	wantNil(t, "Release", second.Release(ctx, lease, record))
	again, _ := take(t, first, "s1")
	if again.Token <= lease.Token {
		t.Errorf("the tokens are %d, then %d", lease.Token, again.Token)
	}
	wantLost(t, "the first lease", first.Check(ctx, before))
}

func releasedIsLost(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	lease, _ := take(t, s, "s1")
	wantNil(t, "Release", s.Release(ctx, lease, sample("s1")))
	changed := sample("s1")
	changed.SandboxID = "sb-2"
	wantLost(t, "Check", s.Check(ctx, lease))
	wantLost(t, "Save", s.Save(ctx, lease, changed))
	wantLost(t, "Release", s.Release(ctx, lease, changed))
	wantRecord(t, must(s.Get(ctx, "s1"))(t), sample("s1"))
	if !s.Valid() {
		t.Error("the holder was lost with the lease")
	}
}

func expiredIsLost(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	lease, _ := take(t, s, "s1")
	wantNil(t, "Save", s.Save(ctx, lease, sample("s1")))
	if !s.Valid() {
		t.Fatal("the holder is lost from the start")
	}
	r.expire()
	if s.Valid() {
		t.Error("the holder does not know that its time has passed")
	}
	changed := sample("s1")
	changed.SandboxID = "sb-2"
	wantLost(t, "Check", s.Check(ctx, lease))
	wantLost(t, "Save", s.Save(ctx, lease, changed))
	wantLost(t, "Release", s.Release(ctx, lease, changed))
	wantRecord(t, must(s.Get(ctx, "s1"))(t), sample("s1"))
}

func takesOver(t *testing.T, r records) {
	first, second := r.open(), r.open()
	ctx := testContext(t)
	old, _ := take(t, first, "s1")
	wantNil(t, "Save", first.Save(ctx, old, sample("s1")))
	r.expire()
	lease, record := take(t, second, "s1")
	wantRecord(t, record, sample("s1"))
	if lease.Token <= old.Token {
		t.Errorf("the tokens are %d, then %d", old.Token, lease.Token)
	}
	wantLost(t, "Save of the first", first.Save(ctx, old, Record{State: StateGone}))
	wantLost(t, "Release of the first", first.Release(ctx, old, Record{State: StateGone}))
	wantBusy(t, first, "s1")
	wantNil(t, "Release", second.Release(ctx, lease, record))
	wantRecord(t, must(first.Get(ctx, "s1"))(t), sample("s1"))
}

func beginsAnew(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	old, _ := take(t, s, "s1")
	r.expire()
	lease, _ := take(t, s, "s1")
	if !s.Valid() {
		t.Error("the new holder is lost from the start")
	}
	wantLost(t, "the old lease", s.Check(ctx, old))
	wantNil(t, "the new lease", s.Check(ctx, lease))
}

func showsHolder(t *testing.T, r records) {
	s, reader := r.open(), r.open()
	ctx := testContext(t)
	shown := func(want bool) {
		t.Helper()
		one, all := must(reader.Get(ctx, "s1"))(t), must(reader.List(ctx))(t)
		if len(all) != 1 || all[0].Holder != one.Holder || (one.Holder != "") != want {
			t.Errorf("Get shows the holder %q, List %+v; there should be one: %v", one.Holder, all, want)
		}
	}
	lease, record := take(t, s, "s1")
	shown(true)
	wantNil(t, "Release", s.Release(ctx, lease, record))
	shown(false)
	take(t, s, "s1")
	shown(true)
	r.expire()
	shown(false)
}

func lists(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	if all := must(s.List(ctx))(t); len(all) != 0 {
		t.Errorf("new records hold %v", all)
	}
	for _, session := range []string{"b", "Z", "ä", "a"} {
		lease, _ := take(t, s, session)
		wantNil(t, "Release", s.Release(ctx, lease, sample(session)))
	}
	var sessions []string
	for _, record := range must(s.List(ctx))(t) {
		wantRecord(t, record, sample(record.Session))
		sessions = append(sessions, record.Session)
	}
	if diff := cmp.Diff([]string{"Z", "a", "b", "ä"}, sessions); diff != "" {
		t.Error(diff)
	}
}

func namesSandbox(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	for _, test := range []struct {
		session string
		change  func(*Record)
	}{
		{"has it", func(r *Record) { r.SandboxID = "sb" }},
		{"may have it", func(r *Record) { r.SandboxID, r.State = "sb", StateDestroying }},
		{"has another", func(r *Record) { r.SandboxID = "sb2" }},
		{"had it", func(r *Record) { r.SandboxID, r.State = "sb", StateGone }},
		{"has that of a namesake", func(r *Record) { r.SandboxID, r.Provider = "sb", "other" }},
		{"has none yet", func(r *Record) { r.SandboxID, r.State = "", StateCreating }},
		{"had it before", func(r *Record) { r.SandboxID = "sb2" }},
	} {
		lease, _ := take(t, s, test.session)
		record := sample(test.session)
		record.Provider = "acme"
		if test.session == "had it before" {
			record.SandboxID = "sb"
			wantNil(t, "Save", s.Save(ctx, lease, record))
		}
		test.change(&record)
		wantNil(t, "Release", s.Release(ctx, lease, record))
	}
	sessions := must(s.Naming(ctx, "acme", "sb"))(t)
	slices.Sort(sessions)
	if diff := cmp.Diff([]string{"has it", "may have it"}, sessions); diff != "" {
		t.Error(diff)
	}
}

func forgets(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	write := func(session string, state State) {
		lease, record := take(t, s, session)
		record.State = state
		wantNil(t, "Release", s.Release(ctx, lease, record))
	}
	write("gone", StateGone)
	write("running", StateRunning)
	write("destroying", StateDestroying)
	take(t, s, "busy")
	if n := must(s.Forget(ctx, time.Now().Add(-time.Hour)))(t); n != 0 {
		t.Errorf("%d records that are new were forgotten", n)
	}
	if n := must(s.Forget(ctx, time.Now().Add(time.Hour)))(t); n != 1 {
		t.Errorf("%d records were forgotten instead of one", n)
	}
	var left []string
	for _, record := range must(s.List(ctx))(t) {
		left = append(left, record.Session)
	}
	if diff := cmp.Diff([]string{"busy", "destroying", "running"}, left); diff != "" {
		t.Error(diff)
	}
	r.expire()
	if n := must(s.Forget(ctx, time.Now().Add(time.Hour)))(t); n != 1 {
		t.Errorf("%d records were forgotten instead of the one that nobody holds any more", n)
	}
}

func oneWins(t *testing.T, r records) {
	const hosts, rounds = 4, 5
	ctx := testContext(t)
	inside := make(chan struct{}, 1) // full while somebody holds the session
	var wg sync.WaitGroup
	for range hosts {
		s := r.open()
		wg.Go(func() {
			for won := 0; won < rounds; {
				lease, record, err := s.Take(ctx, "s1")
				var busy *BusyError
				if errors.As(err, &busy) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				won++
				select {
				case inside <- struct{}{}:
				default:
					t.Error("two hosts hold the session")
					return
				}
				record.SandboxID += "x"
				if err := s.Save(ctx, lease, record); err != nil {
					t.Error(err)
				}
				<-inside
				if err := s.Release(ctx, lease, record); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if record := must(r.open().Get(ctx, "s1"))(t); len(record.SandboxID) != hosts*rounds {
		t.Errorf("of %d changes %d are in the record", hosts*rounds, len(record.SandboxID))
	}
}

func closes(t *testing.T, r records) {
	first, second := r.open(), r.open()
	take(t, first, "s1")
	take(t, first, "s2")
	wantNil(t, "Close", first.Close())
	if first.Valid() {
		t.Error("the leases outlive the store")
	}
	take(t, second, "s1")
	take(t, second, "s2")
}

func idle(t *testing.T, r records) {
	s := r.open()
	r.open()
	if !s.Valid() {
		t.Error("a store without a holder has lost it")
	}
}

func began(t *testing.T, r records) {
	before := time.Now().Truncate(time.Millisecond)
	at := must(r.open().Began(testContext(t)))(t)
	if at.Before(before.Add(-time.Minute)) || at.After(time.Now().Add(time.Minute)) {
		t.Errorf("begun at %v", at)
	}
	if again := must(r.open().Began(testContext(t)))(t); !again.Equal(at) {
		t.Errorf("begun at %v, and also at %v", at, again)
	}
}

// tried is the record of a session during an attempt, or after it.
func tried(attempt, provider, sandboxID string, state State) Record {
	return Record{
		Session: "s1", Provider: provider, SandboxID: sandboxID, Attempt: attempt, State: state,
		CreatedAt: time.UnixMilli(1_800_000_000_123), Generation: "g-" + attempt,
	}
}

// wantOwed compares all but the times that the store sets.
func wantOwed(t testing.TB, s Store, session string, want ...Attempt) {
	t.Helper()
	got := must(s.Owed(testContext(t), session))(t)
	for i := range got {
		if got[i].UpdatedAt.IsZero() {
			t.Error("UpdatedAt is not set")
		}
		got[i].UpdatedAt = time.Time{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what is owed is not as expected (-want +got):\n%s", diff)
	}
}

func keepsWhatIsOwed(t *testing.T, r records) {
	s, reader := r.open(), r.open()
	ctx := testContext(t)
	first, second := tried("a-1", "acme", "", StateCreating), tried("a-2", "umbrella", "sb-2", StateDestroying)
	second.CreatedAt = second.CreatedAt.Add(time.Second)
	lease, _ := take(t, s, "s1")
	wantNil(t, "the first attempt", s.Save(ctx, lease, first))
	wantOwed(t, reader, "s1")
	wantNil(t, "the second", s.Save(ctx, lease, second))
	wantOwed(t, reader, "s1", first.OwnAttempt())
	wantNil(t, "the third", s.Release(ctx, lease, tried("a-3", "local", "sb-3", StateRunning)))
	wantOwed(t, reader, "s1", first.OwnAttempt(), second.OwnAttempt())
	wantOwed(t, reader, "s2")

	lease, record := take(t, s, "s1")
	if shown := must(reader.List(ctx))(t); record.Owed != 2 || shown[0].Owed != 2 || record.Attempt != "a-3" {
		t.Errorf("taken: %+v, and listed: %+v", record, shown)
	}
	other, _ := take(t, s, "s0")
	owing := tried("a-0", "acme", "", StateCreating).OwnAttempt()
	wantNil(t, "SaveAttempt", s.SaveAttempt(ctx, other, owing))
	owing.Session = "s0"
	wantOwed(t, reader, "", owing, first.OwnAttempt(), second.OwnAttempt())

	done := second.OwnAttempt()
	done.State = StateGone
	wantNil(t, "SaveAttempt", s.SaveAttempt(ctx, lease, done))
	wantOwed(t, reader, "s1", first.OwnAttempt())
	if record := must(reader.Get(ctx, "s1"))(t); record.Owed != 1 {
		t.Errorf("%+v", record)
	}
}

func owesNothingOfItsOwn(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	lease, _ := take(t, s, "s1")
	wantNil(t, "an attempt", s.Save(ctx, lease, tried("a-1", "acme", "sb-1", StateCreating)))
	wantNil(t, "one after it", s.Save(ctx, lease, tried("a-2", "acme", "", StateCreating)))
	for _, same := range []Record{
		tried("a-1", "acme", "", StateCreating), tried("a-1", "acme", "sb-1", StateRunning), tried("", "acme", "sb-1", StateRunning),
	} {
		wantNil(t, "Save", s.Save(ctx, lease, tried("a-2", "acme", "", StateGone)))
		if owed := must(s.Owed(ctx, "s1"))(t); len(owed) != 1 {
			t.Fatalf("owed: %+v", owed)
		}
		wantNil(t, "Save", s.Save(ctx, lease, same))
		wantOwed(t, s, "s1")
		wantNil(t, "Save", s.Save(ctx, lease, tried("a-1", "acme", "sb-1", StateCreating)))
	}
	wantNil(t, "Save", s.Save(ctx, lease, tried("", "umbrella", "sb-1", StateRunning))) // ids are those of a provider
	wantOwed(t, s, "s1", tried("a-1", "acme", "sb-1", StateCreating).OwnAttempt())
	wantNil(t, "Save", s.Save(ctx, lease, tried("", "acme", "sb-1", StateGone)))
	wantOwed(t, s, "s1", tried("a-1", "acme", "sb-1", StateCreating).OwnAttempt())
}

func fencesAttempts(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	lease, _ := take(t, s, "s1")
	owing := tried("a-1", "acme", "", StateCreating).OwnAttempt()
	wantNil(t, "SaveAttempt", s.SaveAttempt(ctx, lease, owing))
	wantNil(t, "SaveAttempt once more", s.SaveAttempt(ctx, lease, owing))
	done := owing
	done.State = StateGone
	wantNil(t, "Release", s.Release(ctx, lease, Record{Session: "s1", State: StateGone}))
	wantLost(t, "SaveAttempt under a lease that was released", s.SaveAttempt(ctx, lease, done))
	lease, _ = take(t, s, "s1")
	r.expire()
	wantLost(t, "SaveAttempt", s.SaveAttempt(ctx, lease, done))
	wantOwed(t, r.open(), "s1", owing)
}

func keepsTheGeneration(t *testing.T, r records) {
	s, reader := r.open(), r.open()
	ctx := testContext(t)
	generation := func(want string) {
		t.Helper()
		got := must(reader.Get(ctx, "s1"))(t).Generation
		lease, record := take(t, s, "s1")
		wantNil(t, "Release", s.Release(ctx, lease, record))
		if got != want || record.Generation != want {
			t.Errorf("the generation is %q and %q, and should be %q", got, record.Generation, want)
		}
	}
	save := func(record Record) {
		t.Helper()
		lease, _ := take(t, s, "s1")
		wantNil(t, "Release", s.Release(ctx, lease, record))
	}
	record := tried("a-1", "acme", "sb-1", StateRunning)
	save(record)
	generation("g-a-1")
	record.Generation = "replaced"
	save(record)
	generation("replaced")
	save(tried("a-2", "acme", "sb-2", StateRunning))
	generation("g-a-2")
	without := tried("", "acme", "sb-3", StateRunning)
	save(without)
	generation("")
}

func forgetsAttempts(t *testing.T, r records) {
	s := r.open()
	ctx := testContext(t)
	lease, _ := take(t, s, "s1")
	for _, record := range []Record{
		tried("a-1", "acme", "sb-1", StateDestroying), tried("a-2", "acme", "sb-2", StateGone), tried("a-3", "acme", "sb-3", StateRunning),
	} {
		wantNil(t, "Save", s.Save(ctx, lease, record))
	}
	wantNil(t, "Release", s.Release(ctx, lease, tried("a-3", "acme", "sb-3", StateRunning)))
	must(s.Forget(ctx, time.Now().Add(-time.Hour)))(t)
	must(s.Forget(ctx, time.Now().Add(time.Hour)))(t)
	wantOwed(t, s, "s1", tried("a-1", "acme", "sb-1", StateDestroying).OwnAttempt())
	if record := must(s.Get(ctx, "s1"))(t); record.Generation != "g-a-3" {
		t.Errorf("the session's own attempt: %+v", record)
	}
}
