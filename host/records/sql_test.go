package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pressly/goose/v3"
)

// onBoth runs a test on new records in SQLite and in PostgreSQL.
func onBoth(t *testing.T, test func(*testing.T, Options)) {
	t.Parallel()
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		test(t, Options{Dir: t.TempDir()})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		test(t, Options{Dir: t.TempDir(), URL: newDatabase(t)})
	})
}

// openWith opens with a clock of its own.
func openWith(t testing.TB, o Options, c *clock) *SQL {
	t.Helper()
	o.shift = c.shift
	return openSQL(t, o)
}

func wantUnusable(t testing.TB, err error, parts ...string) *UnusableError {
	t.Helper()
	var unusable *UnusableError
	if !errors.As(err, &unusable) || errors.Is(err, ErrLost) {
		t.Fatalf("the error is %v and should be an UnusableError", err)
	}
	if unusable.Where == "" || unusable.Problem == "" || unusable.Hint == "" {
		t.Errorf("the error leaves something out: %+v", *unusable)
	}
	for _, part := range parts {
		if !strings.Contains(unusable.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, unusable)
		}
	}
	return unusable
}

func TestOwnersDoNotSeeEachOther(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		var c clock
		ours := openSQL(t, o)
		o.Owner = "others"
		c.advance(time.Minute)
		theirs := openWith(t, o, &c)
		lease, _ := take(t, ours, "s1")
		wantNil(t, "Save", ours.Save(ctx, lease, sample("s1")))
		if all := must(theirs.List(ctx))(t); len(all) != 0 {
			t.Errorf("another owner sees %v", all)
		}
		_, record := take(t, theirs, "s1")
		wantRecord(t, record, Record{Session: "s1", State: StateGone})
		wantLost(t, "the lease of another owner", theirs.Check(ctx, lease))
		if n := must(theirs.Forget(ctx, time.Now().Add(time.Hour)))(t); n != 0 {
			t.Errorf("%d records were forgotten", n)
		}
		// Who comes later knows nothing of what was before.
		if first, second := must(ours.Began(ctx))(t), must(theirs.Began(ctx))(t); second.Sub(first) < 30*time.Second {
			t.Errorf("the records were begun at %v and %v", first, second)
		}
	})
}

func TestALeaseIsTakenOverWhenItsTimeHasPassedAndNotBefore(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		var c clock
		first := openSQL(t, o)
		o.Dir = other(t, o)
		second := openWith(t, o, &c)
		lease, _ := take(t, first, "s1")
		kept, _ := take(t, first, "s2")
		busy := wantBusy(t, second, "s1")
		if left := time.Until(busy.Until); left < long-time.Minute || left > long+time.Minute {
			t.Errorf("the lease is said to end in %v", left)
		}
		c.advance(long - time.Minute)
		wantBusy(t, second, "s1")
		c.advance(time.Minute)
		take(t, second, "s1")

		// The first has a clock by which there is time left, but it is dead in the records: with all its leases, for good.
		if !first.Valid() {
			t.Fatal("the clock of the first has moved as well")
		}
		wantLost(t, "Save", first.Save(ctx, lease, sample("s1")))
		if first.Valid() {
			t.Error("the first does not know that it is lost")
		}
		wantLost(t, "Check of another session", first.Check(ctx, kept))
		take(t, second, "s2")
	})
}

// other is the state directory of another machine where there can be one: on PostgreSQL.
func other(t testing.TB, o Options) string {
	if o.URL == "" {
		return o.Dir
	}
	return t.TempDir()
}

func TestAClockThatWasSetBackDoesNotMakeALeaseLast(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		var c clock
		c.advance(24 * time.Hour)
		first := openWith(t, o, &c)
		second := openSQL(t, o)
		lease, _ := take(t, first, "s1")
		if holder := must(second.Get(testContext(t), "s1"))(t).Holder; holder != "" {
			t.Errorf("%s is shown as the holder", holder)
		}
		take(t, second, "s1")
		wantLost(t, "Check", first.Check(testContext(t), lease))

		c.offset.Store(int64(long / 2))
		take(t, first, "s2")
		wantBusy(t, second, "s2") // it was set back by less than a lease
	})
}

func TestTheHeartbeatKeepsAllLeasesAlive(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.Lease = 6 * time.Second
		first, second := openSQL(t, o), openSQL(t, o)
		lease, _ := take(t, first, "s1")
		began := wantBusy(t, second, "s1").Until
		eventually(t, "the heartbeat moves the end of the lease twice", func() bool {
			return wantBusy(t, second, "s1").Until.Sub(began) > 3*time.Second
		})
		wantNil(t, "Check", first.Check(testContext(t), lease))
	})
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestAHeartbeatThatComesTooLateRevivesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		var c clock
		s := openWith(t, o, &c)
		take(t, s, "s1")
		h := s.currentHolder()
		c.advance(time.Minute)
		wantNil(t, "a heartbeat in time", s.renew(ctx, h))
		c.advance(long - time.Second)
		if !s.Valid() {
			t.Error("the heartbeat was not counted")
		}
		h.renewed(time.Now().Add(24 * time.Hour)) // for this process there is time left, but not in the records
		c.advance(time.Minute)
		wantNil(t, "a heartbeat too late", s.renew(ctx, h))
		if s.Valid() {
			t.Error("a heartbeat that came too late was taken for one in time")
		}
		if holder := must(s.Get(ctx, "s1"))(t).Holder; holder != "" {
			t.Errorf("the session has the holder %q", holder)
		}
	})
}

func TestTheRecordsDecideWhetherALeaseHolds(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		for name, write := range map[string]func(*SQL, Lease) error{
			"Check":   func(s *SQL, l Lease) error { return s.Check(ctx, l) },
			"Save":    func(s *SQL, l Lease) error { return s.Save(ctx, l, Record{State: StateGone}) },
			"Release": func(s *SQL, l Lease) error { return s.Release(ctx, l, Record{State: StateGone}) },
		} {
			var c clock
			s := openWith(t, o, &c)
			lease, _ := take(t, s, name)
			wantNil(t, "Save", s.Save(ctx, lease, sample(name)))
			s.currentHolder().renewed(time.Now().Add(24 * time.Hour)) // for this process there is time left
			c.advance(long)
			if !s.Valid() {
				t.Fatal("the process knows it already")
			}
			wantLost(t, name, write(s, lease))
			if s.Valid() {
				t.Error("the process does not know it now")
			}
			wantRecord(t, must(s.Get(ctx, name))(t), sample(name))
		}
	})
}

func TestAHostCountsItsTimeByWhicheverClockIsAhead(t *testing.T) {
	t.Parallel()
	start := time.Now()
	now := start
	h := &holder{ttl: time.Minute, now: func() time.Time { return now }}
	h.renewed(start)
	if !h.valid() {
		t.Error("expired at once")
	}
	// A time without a monotonic reading stands for a machine that slept: only the clock on the wall has moved.
	now = start.Round(0).Add(59 * time.Second)
	if !h.valid() {
		t.Error("expired too early")
	}
	now = start.Round(0).Add(time.Minute)
	if h.valid() {
		t.Error("valid after its time")
	}
	now = start
	if h.valid() {
		t.Error("valid again after a clock was set back")
	}
}

func TestTokensGrowThoughTheRecordWasForgotten(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		var c clock
		s := openWith(t, o, &c)
		var last int64
		for range 6 {
			lease, record := take(t, s, "s1")
			if lease.Token <= last {
				t.Errorf("the tokens are %d, then %d", last, lease.Token)
			}
			last = lease.Token
			wantNil(t, "Release", s.Release(ctx, lease, record))
			c.advance(24 * time.Hour)
			if n := must(s.Forget(ctx, time.Now().Add(c.shift())))(t); n != 1 {
				t.Fatalf("%d records were forgotten", n)
			}
		}
	})
}

func TestWhatIsForgottenIsDeleted(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		s := openSQL(t, o)
		lease, _ := take(t, s, "s1")
		for _, state := range []State{StateGone, StateDestroying, StateRunning} {
			wantNil(t, "Save", s.Save(ctx, lease, tried("a-"+string(state), "acme", "sb-"+string(state), state)))
		}
		wantNil(t, "Release", s.Release(ctx, lease, tried("a-running", "acme", "sb-running", StateRunning)))
		gone, record := take(t, s, "s2")
		wantNil(t, "Release", s.Release(ctx, gone, record))
		if n := must(s.Forget(ctx, time.Now().Add(time.Hour)))(t); n != 1 {
			t.Errorf("%d sessions are said to have been forgotten", n)
		}
		for table, want := range map[string]int{"attempts": 2, "sessions": 1} {
			var rows int
			wantNil(t, "counting", s.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM `+table).Scan(&rows))
			if rows != want {
				t.Errorf("%s: %d rows are left, want %d", table, rows, want)
			}
		}
	})
}

func TestWhenTheRecordsWereBegunIsReadOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		s := openSQL(t, o)
		first := must(s.Began(testContext(t)))(t)
		_, err := s.db.ExecContext(testContext(t), `UPDATE about SET began = 1`)
		wantNil(t, "changing it", err)
		if again := must(s.Began(testContext(t)))(t); !again.Equal(first) {
			t.Errorf("begun at %v, and then at %v", first, again)
		}
		if anew := must(openSQL(t, o).Began(testContext(t)))(t); anew.UnixMilli() != 1 {
			t.Errorf("another host says %v", anew)
		}
	})
}

func TestACancelledCallIsNeitherALostLeaseNorUnusableRecords(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		s := openSQL(t, o)
		lease, record := take(t, s, "s1")
		ctx, cancel := context.WithCancel(testContext(t))
		cancel()
		_, _, taken := s.Take(ctx, "s2")
		for i, err := range []error{taken, s.Check(ctx, lease), s.Save(ctx, lease, record), s.Release(ctx, lease, record)} {
			if !errors.Is(err, context.Canceled) || errors.Is(err, ErrLost) {
				t.Errorf("call %d: the error is %v", i, err)
			}
		}
		wantNil(t, "Check", s.Check(testContext(t), lease))
	})
}

func TestADatabaseOutOfReachIsNoLostLeaseUntilTheTimeHasPassed(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		var c clock
		s := openWith(t, o, &c)
		s.database = &unreliable{database: s.database} // which tries nothing again
		lease, _ := take(t, s, "s1")
		s.db.Close()
		wantUnusable(t, s.Check(testContext(t), lease))
		if !s.Valid() {
			t.Error("the lease is lost though there is time left")
		}
		c.advance(long)
		if s.Valid() {
			t.Error("the lease is valid though it was not renewed")
		}
		wantLost(t, "Check", s.Check(testContext(t), lease))
	})
}

// unreliable does its work, but the answer may be lost.
type unreliable struct {
	database
	lose    func() bool // asked after each try; nil loses nothing, and nothing is tried again either
	working bool
}

var errAnswerLost = errors.New("the answer was lost")

func (u *unreliable) prepare(ctx context.Context, conn *sql.Conn, durable bool) error {
	u.working = true
	return u.database.prepare(ctx, conn, durable)
}

func (u *unreliable) check() error {
	if u.working {
		u.working = false
		if u.lose != nil && u.lose() {
			return errAnswerLost
		}
	}
	return u.database.check()
}

func (u *unreliable) transient(err error) bool { return u.lose != nil && errors.Is(err, errAnswerLost) }

// once is true the first time, after it has done what is given.
func once(do func()) func() bool {
	done := false
	return func() bool {
		if done {
			return false
		}
		done = true
		do()
		return true
	}
}

func TestWhatWasDoneIsRecognisedWhenItsAnswerWasLost(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		s, reader := openSQL(t, o), openSQL(t, o)
		u := &unreliable{database: s.database}
		s.database = u
		take(t, s, "first") // the holder is begun

		u.lose = once(func() {})
		lease, _ := take(t, s, "s1")
		wantNil(t, "Check", s.Check(ctx, lease))
		wantBusy(t, s, "s1")

		u.lose = once(func() {})
		wantNil(t, "Save", s.Save(ctx, lease, sample("s1")))
		u.lose = once(func() {})
		wantNil(t, "Release", s.Release(ctx, lease, sample("s1")))
		wantRecord(t, must(reader.Get(ctx, "s1"))(t), sample("s1"))
		u.lose = nil
		wantLost(t, "the lease that was released", s.Release(ctx, lease, sample("s1")))
	})
}

func TestANewHolderIsRecognisedWhenTheAnswerWasLost(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		s := openSQL(t, o)
		s.database = &unreliable{database: s.database, lose: once(func() {})}
		lease, _ := take(t, s, "s1")
		wantNil(t, "Check", s.Check(testContext(t), lease))
	})
}

func TestAReleaseWhoseAnswerWasLostIsToldFromALostLease(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		var c clock
		s, second := openWith(t, o, &c), openWith(t, o, &c)
		u := &unreliable{database: s.database}
		s.database = u

		lease, record := take(t, s, "taken at once")
		u.lose = once(func() { take(t, second, "taken at once") })
		wantNil(t, "Release, then taken by another", s.Release(ctx, lease, record))

		lease, record = take(t, s, "expired")
		u.lose = once(func() { c.advance(long) })
		wantNil(t, "Release, then the holder expired", s.Release(ctx, lease, record))

		lease, record = take(t, s, "expired and taken")
		u.lose = once(func() {
			c.advance(long)
			take(t, second, "expired and taken")
		})
		wantLost(t, "Release, of which nothing can be told any more", s.Release(ctx, lease, record))
	})
}

func TestRecordsOfTheFirstSchemaAreBroughtUp(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		db, dialect := firstSchema(t, o)
		wantNil(t, "making the first schema", migrate(ctx, db, dialect, 1))
		for _, statement := range []string{
			`INSERT INTO about (owner, began) VALUES ('tests', 1700000000000)`,
			`INSERT INTO sessions (owner, session, provider, sandbox_id, attempt, state, holder, token, created_at, updated_at,
				expires_at) VALUES ('tests', 's1', 'local', 'sb-1', 'a-1', 'running', 'x', 7, 1800000000123, 1, 1800003600123)`,
		} {
			_, err := db.ExecContext(ctx, statement)
			wantNil(t, statement, err)
		}
		db.Close()

		s := openSQL(t, o)
		want := sample("s1")
		want.HeldUntil, want.Generation = time.Time{}, ""
		wantRecord(t, must(s.Get(ctx, "s1"))(t), want)
		if began := must(s.Began(ctx))(t); began.UnixMilli() != 1700000000000 {
			t.Errorf("begun at %v", began)
		}
		lease, _ := take(t, s, "s1")
		if lease.Token <= 7 {
			t.Errorf("the token is %d", lease.Token)
		}
		wantNil(t, "Release", s.Release(ctx, lease, sample("s1")))
		wantRecord(t, must(openSQL(t, o).Get(ctx, "s1"))(t), sample("s1"))
	})
}

// firstSchema opens an empty database without berth's help.
func firstSchema(t testing.TB, o Options) (*sql.DB, goose.Dialect) {
	t.Helper()
	driver, source, dialect := "pgx", o.URL, goose.DialectPostgres
	if o.URL == "" {
		driver, source, dialect = "sqlite", o.Dir+"/records.db", goose.DialectSQLite3
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db, dialect
}

func TestRecordsFromTheFutureAreRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		ctx := testContext(t)
		s := openSQL(t, o)
		lease, _ := take(t, s, "s1")
		wantNil(t, "Release", s.Release(ctx, lease, sample("s1")))
		_, err := s.db.ExecContext(ctx, `INSERT INTO berth_schema (version_id, is_applied) VALUES (7, true)`)
		wantNil(t, "a version from the future", err)
		wantNil(t, "Close", s.Close())

		o.Owner = "tests"
		_, err = Open(ctx, o)
		refused := wantUnusable(t, err, "older than schema version 7", fmt.Sprintf("versions up to %d", schema))
		if !strings.Contains(refused.Hint, "newer berth") {
			t.Errorf("the hint is %q", refused.Hint)
		}
		db, _ := firstSchema(t, o)
		var left int
		wantNil(t, "counting", db.QueryRowContext(ctx, `SELECT COUNT(*) FROM sessions`).Scan(&left))
		if left != 1 {
			t.Errorf("%d records are left", left)
		}
	})
}

func TestManyHostsBeginTheSameRecordsAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.Owner = "tests"
		var begun sync.Map
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				ctx := testContext(t)
				s, err := Open(ctx, o)
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				if _, _, err := s.Take(ctx, fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
				at, err := s.Began(ctx)
				if err != nil {
					t.Error(err)
				}
				begun.Store(at, true)
			})
		}
		wg.Wait()
		times := 0
		begun.Range(func(any, any) bool { times++; return true })
		if times != 1 {
			t.Errorf("the records were begun at %d times", times)
		}
		if all := must(openSQL(t, o).List(testContext(t)))(t); len(all) != 20 {
			t.Errorf("there are %d records", len(all))
		}
	})
}

func TestAnUnknownKindOfDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	_, err := Open(testContext(t), Options{Dir: t.TempDir(), Owner: "tests", URL: "mysql://me:canary@host/db"})
	if refused := wantUnusable(t, err); strings.Contains(refused.Error()+refused.Hint, "canary") {
		t.Error(refused)
	}
}

func TestHostsThatComeAndGoLeaveTheLeasesOfOthersAlone(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.Owner = "tests"
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				ctx := testContext(t)
				for range 15 {
					s, err := Open(ctx, o)
					if err != nil {
						t.Error(err)
						return
					}
					lease, record, err := s.Take(ctx, fmt.Sprint(i))
					if err == nil {
						err = errors.Join(s.Check(ctx, lease), s.Save(ctx, lease, record), s.Release(ctx, lease, record))
					}
					if err := errors.Join(err, s.Close()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if left := files(t, o.Dir+"/holders"); left > 0 {
			t.Errorf("there are files of %d holders", left)
		}
	})
}
