package records

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// written makes records with one session and returns the path of their file, which nobody has open.
func written(t testing.TB, o Options) string {
	t.Helper()
	s := openSQL(t, o)
	lease, _ := take(t, s, "s1")
	wantNil(t, "Release", s.Release(testContext(t), lease, sample("s1")))
	wantNil(t, "Close", s.Close())
	return filepath.Join(o.Dir, "records.db")
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	return must(os.ReadFile(path))(t)
}

func TestDamagedRecordsAreRefusedAndLeftAsTheyAre(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		damage func([]byte) []byte
		says   string
	}{
		"AnotherKindOfFile": {func([]byte) []byte { return bytes.Repeat([]byte("not a database\n"), 1000) }, "damaged"},
		"Emptied":           {func([]byte) []byte { return nil }, "holds no records"},
		"CutOff":            {func(b []byte) []byte { return b[:len(b)/2] }, "damaged"},
		"WithoutItsBeginning": {func(b []byte) []byte {
			return append(make([]byte, 4096), b[4096:]...)
		}, "damaged"},
		"OverwrittenInside": {func(b []byte) []byte {
			return append(b[:4096:4096], bytes.Repeat([]byte{0xff}, len(b)-4096)...)
		}, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := Options{Dir: t.TempDir(), Owner: "tests"}
			path := written(t, o)
			damaged := test.damage(readFile(t, path))
			wantNil(t, "writing", os.WriteFile(path, damaged, 0o600))
			_, err := Open(testContext(t), o)
			refused := wantUnusable(t, err, path, test.says)
			if !strings.Contains(refused.Hint, "Move the file away") {
				t.Errorf("the hint is %q", refused.Hint)
			}
			if !bytes.Equal(readFile(t, path), damaged) {
				t.Error("the file was changed")
			}
		})
	}
}

func TestDamageThatIsMetLaterIsNoLostLease(t *testing.T) {
	t.Parallel()
	o := Options{Dir: t.TempDir(), Owner: "tests"}
	path := written(t, o)
	// The version and the owner are as they were; everything that has the session's name in it is not.
	content := readFile(t, path)
	for at := 0; at < len(content); at += 4096 {
		if page := content[at : at+4096]; bytes.Contains(page, []byte("sb-1")) {
			copy(page, bytes.Repeat([]byte{0xff}, len(page)))
		}
	}
	wantNil(t, "writing", os.WriteFile(path, content, 0o600))
	s := openSQL(t, o)
	_, _, err := s.Take(testContext(t), "s1")
	wantUnusable(t, err, "damaged")
	_, err = s.Get(testContext(t), "s1")
	wantUnusable(t, err, "damaged")
}

func TestRecordsThatAreRemovedOrReplacedWhileOpenAreNoticed(t *testing.T) {
	t.Parallel()
	for name, disturb := range map[string]func(*testing.T, string){
		"Removed": func(t *testing.T, path string) { wantNil(t, "removing", os.Remove(path)) },
		"Moved":   func(t *testing.T, path string) { wantNil(t, "moving", os.Rename(path, path+".old")) },
		"Replaced": func(t *testing.T, path string) {
			wantNil(t, "moving", os.Rename(written(t, Options{Dir: t.TempDir()}), path))
		},
		"RemovedWithTheDirectory": func(t *testing.T, path string) {
			wantNil(t, "moving", os.Rename(filepath.Dir(path), filepath.Dir(path)+".old"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			var c clock
			o := Options{Dir: filepath.Join(t.TempDir(), "state"), Owner: "tests"}
			path := written(t, o)
			s := openWith(t, o, &c)
			lease, record := take(t, s, "s1")
			disturb(t, path)
			before, _ := os.ReadFile(path)

			said := "no such file"
			if name == "Replaced" {
				said = "another file is in its place"
			}
			wantUnusable(t, s.Check(ctx, lease), path, said)
			wantUnusable(t, s.Save(ctx, lease, record), path)
			wantUnusable(t, s.Release(ctx, lease, record), path)
			_, _, err := s.Take(ctx, "s2")
			wantUnusable(t, err, path)
			_, err = s.List(ctx)
			wantUnusable(t, err, path)
			_, err = s.Forget(ctx, time.Now())
			wantUnusable(t, err, filepath.Dir(path))
			wantUnusable(t, s.renew(ctx, s.currentHolder()), path)
			if !s.Valid() {
				t.Error("the lease is lost though there is time left")
			}
			c.advance(long)
			if s.Valid() {
				t.Error("the lease is valid though no heartbeat was written")
			}
			s.Close()
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("what is at the path now was written to")
			}
		})
	}
}

func TestAJournalWithoutItsDatabaseIsNotTakenForNewRecords(t *testing.T) {
	t.Parallel()
	o := Options{Dir: t.TempDir(), Owner: "tests"}
	path := written(t, o)
	s := openSQL(t, o)
	take(t, s, "s1")
	wantNil(t, "removing", os.Remove(path))
	_, err := Open(testContext(t), o)
	wantUnusable(t, err, "journal")
	if _, err := os.Stat(path); err == nil {
		t.Error("there is a new database")
	}
	s.Close()
	wantNil(t, "removing", os.Remove(path+"-wal"))
	if all := must(openSQL(t, o).List(testContext(t)))(t); len(all) != 0 {
		t.Errorf("new records hold %v", all)
	}
}

func TestWhatAnInterruptedBeginningLeftIsReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"records.db.new", "records.db.new-journal"} {
		wantNil(t, "writing", os.WriteFile(filepath.Join(dir, name), []byte("half of it"), 0o600))
	}
	take(t, openSQL(t, Options{Dir: dir}), "s1")
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestAStateDirectoryThatCannotBeMadeIsSaid(t *testing.T) {
	t.Parallel()
	blocked := filepath.Join(t.TempDir(), "file")
	wantNil(t, "writing", os.WriteFile(blocked, nil, 0o600))
	_, err := Open(testContext(t), Options{Dir: filepath.Join(blocked, "state"), Owner: "tests"})
	wantUnusable(t, err, blocked, "cannot be made")
}

func TestWhatSQLiteCannotDoIsSaidWithWhatToDo(t *testing.T) {
	t.Parallel()
	missing := must(openSQLite(filepath.Join(t.TempDir(), "no", "records.db")))(t)
	defer missing.Close()
	for name, test := range map[string]struct {
		err     error
		problem string
		passes  bool
	}{
		"no file":               {missing.PingContext(testContext(t)), "the file cannot be opened", false},
		"a disk that is silent": {context.DeadlineExceeded, "reading or writing the file failed", true},
		"a full disk":           {syscall.ENOSPC, "the disk is full", false},
		"a read-only disk":      {syscall.EROFS, "they cannot be written", false},
		"anything else":         {errors.New("no such column"), "the database refused", false},
	} {
		e := (&sqliteFile{path: "records.db"}).explain(test.err)
		if e.Problem != test.problem || e.Passes != test.passes || e.Hint == "" || !errors.Is(e, test.err) {
			t.Errorf("%s: %+v", name, e)
		}
	}
}
