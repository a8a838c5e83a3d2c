package records

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/internal/syncbuf"
)

func TestAHolderIsNamedByItsProcessAndMachine(t *testing.T) {
	t.Parallel()
	o := Options{Dir: t.TempDir()}
	take(t, openSQL(t, o), "s1")
	want := fmt.Sprintf("process %d on %s", os.Getpid(), must(os.Hostname())(t))
	if got := wantBusy(t, openSQL(t, o), "s1").Holder; got != want {
		t.Errorf("the holder is said to be %q, want %q", got, want)
	}
}

// TestAHolderWithoutALeaseIsLeftToTheNextOne: closing costs a write only where a lease is to be given up.
func TestAHolderWithoutALeaseIsLeftToTheNextOne(t *testing.T) {
	t.Parallel()
	for released, want := range map[bool]int{true: 1, false: 0} {
		o := Options{Dir: t.TempDir()}
		looker := openSQL(t, o)
		s := openSQL(t, o)
		lease, record := take(t, s, "s1")
		if released {
			wantNil(t, "Release", s.Release(testContext(t), lease, record))
		}
		wantNil(t, "Close", s.Close())
		var rows int
		wantNil(t, "counting", looker.db.QueryRowContext(testContext(t), `SELECT COUNT(*) FROM holders`).Scan(&rows))
		if rows != want {
			t.Errorf("released: %t: %d holders are left in the records, want %d", released, rows, want)
		}
		if left := files(t, filepath.Join(o.Dir, "holders")); left != 0 {
			t.Errorf("released: %t: %d files are left", released, left)
		}
	}
}

func TestReplacingAnExpiredHolderIsNothingToTell(t *testing.T) {
	t.Parallel()
	var log syncbuf.Buffer
	s := openSQL(t, Options{Dir: t.TempDir(), Log: hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: &log})})
	take(t, s, "s1")
	s.currentHolder().expire()
	take(t, s, "s2")
	if log.String() != "" {
		t.Errorf("the log says %s", log.String())
	}
	if left := files(t, s.dir); left != 1 {
		t.Errorf("there are files of %d holders", left)
	}
}

func TestLeasesThatWereLostAreToldTheLog(t *testing.T) {
	t.Parallel()
	var log syncbuf.Buffer
	s := openSQL(t, Options{Dir: t.TempDir(), Lease: 300 * time.Millisecond, Log: hclog.New(&hclog.LoggerOptions{Output: &log})})
	take(t, s, "s1")
	s.currentHolder().expire()
	eventually(t, "the log tells it", func() bool { return strings.Contains(log.String(), "did not renew its leases in time") })
}

// failing is a database that is out of reach for as long as it is broken.
type failing struct {
	database
	broken atomic.Bool
}

func (f *failing) check() error {
	if f.broken.Load() {
		return &UnusableError{Where: "records.db", Problem: "the disk does not answer", Hint: "wait"}
	}
	return f.database.check()
}

func TestAHeartbeatThatFailsIsToldTheLogAndRepeatedSoon(t *testing.T) {
	t.Parallel()
	var log syncbuf.Buffer
	o := Options{Dir: t.TempDir(), Lease: 6 * time.Second, Log: hclog.New(&hclog.LoggerOptions{Output: &log})}
	other, s := openSQL(t, o), openSQL(t, o)
	database := &failing{database: s.database}
	s.database = database
	lease, _ := take(t, s, "s1")
	end := wantBusy(t, other, "s1").Until
	database.broken.Store(true)
	eventually(t, "the log tells it", func() bool { return strings.Contains(log.String(), "could not be renewed yet") })
	database.broken.Store(false)
	eventually(t, "the end moves", func() bool { return wantBusy(t, other, "s1").Until.After(end) })
	wantNil(t, "Check", s.Check(testContext(t), lease))
}

// TestOnlyFilesOfHoldersThatAreNotJustBeginningAreLookedAt: of a crowd that begins, each would look at all the others. A
// file from the future tells nothing of its age.
func TestOnlyFilesOfHoldersThatAreNotJustBeginningAreLookedAt(t *testing.T) {
	t.Parallel()
	o := Options{Dir: t.TempDir()}
	dir := openSQL(t, o).dir
	for name, age := range map[string]time.Duration{"old": time.Hour, "older": 2 * time.Hour, "new": 0, "future": -time.Hour} {
		path := filepath.Join(dir, name)
		wantNil(t, "writing", os.WriteFile(path, nil, 0o600))
		wantNil(t, "setting its time", os.Chtimes(path, time.Now().Add(-age), time.Now().Add(-age)))
	}
	openSQL(t, o)
	var left []string
	for _, entry := range must(os.ReadDir(dir))(t) {
		left = append(left, entry.Name())
	}
	if !slices.Equal(left, []string{"new"}) {
		t.Errorf("left: %q", left)
	}
}
