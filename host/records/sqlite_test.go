package records

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// clock moves by hand: its shift is what stores add to the real time.
type clock struct{ offset atomic.Int64 }

func (c *clock) shift() time.Duration    { return time.Duration(c.offset.Load()) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// long is a lease that no test outlasts without moving its clock.
const long = 10 * time.Minute

func openSQL(t testing.TB, o Options) *SQL {
	t.Helper()
	if o.Owner == "" {
		o.Owner = "tests"
	}
	if o.Lease == 0 {
		o.Lease = long
	}
	s, err := Open(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// sqlRecords are records that Options without a clock describe.
func sqlRecords(t *testing.T, o Options) records {
	var c clock
	o.shift = c.shift
	return records{
		open:   func() Store { return openSQL(t, o) },
		expire: func() { c.advance(long) },
	}
}

func TestSQLiteIsAStore(t *testing.T) {
	t.Parallel()
	testStore(t, func(t *testing.T) records { return sqlRecords(t, Options{Dir: t.TempDir()}) })
}

func TestTheFilesOfTheRecordsAreForTheirUserOnly(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "state?dir#1 %41")
	s := openSQL(t, Options{Dir: dir})
	take(t, s, "s1")
	files := 0
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if !entry.IsDir() {
			files++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files != 5 { // the database, its journal and index, the lock and the holder
		t.Errorf("there are %d files", files)
	}
	wantNil(t, "Close", s.Close())
	if left, _ := os.ReadDir(filepath.Join(dir, "holders")); len(left) > 0 {
		t.Errorf("the holder's file is left")
	}
}

func TestWhatHasToSurviveAPowerCutIsForcedToTheDisk(t *testing.T) {
	t.Parallel()
	s := openSQL(t, Options{Dir: t.TempDir()})
	take(t, s, "s1")
	for durable, want := range map[bool]int{true: 2, false: 1} { // FULL, NORMAL
		var level int
		err := s.update(testContext(t), durable, func(ctx context.Context, q querier) error {
			return q.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&level)
		})
		wantNil(t, "asking", err)
		if level != want {
			t.Errorf("durable %v: the level is %d instead of %d", durable, level, want)
		}
	}
}

func TestTheSessionOfASandboxIsFoundWithoutReadingAllSessions(t *testing.T) {
	t.Parallel()
	s := openSQL(t, Options{Dir: t.TempDir()})
	rows, err := s.db.QueryContext(testContext(t), "EXPLAIN QUERY PLAN "+selectNaming, s.owner, "acme", "sb", StateGone)
	wantNil(t, "the query", err)
	defer rows.Close()
	var plan []string
	for rows.Next() {
		var id, parent, unused int
		var step string
		wantNil(t, "Scan", rows.Scan(&id, &parent, &unused, &step))
		plan = append(plan, step)
	}
	wantNil(t, "the rows", rows.Err())
	if want := "SEARCH sessions USING INDEX sessions_sandbox (owner=? AND provider=? AND sandbox_id=?)"; !slices.Contains(plan, want) {
		t.Errorf("the plan lacks %q:\n%s", want, strings.Join(plan, "\n"))
	}
}
