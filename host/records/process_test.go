package records

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hostVariable makes the test binary a host with these Options.
const hostVariable = "BERTH_TEST_HOST"

// host is another process that has the records open. It answers a line for each one it is told.
type host struct {
	t       testing.TB
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
}

func startHost(t testing.TB, o Options) *host {
	t.Helper()
	o.Owner = "tests"
	options, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, command: exec.Command(os.Args[0])}
	h.command.Env = append(os.Environ(), hostVariable+"="+string(options), "GORACE=atexit_sleep_ms=0")
	h.command.Stderr = os.Stderr
	in, err := h.command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.in, h.out = in, bufio.NewScanner(out)
	if err := h.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.kill)
	return h
}

// answer is the host's next one.
func (h *host) answer() string {
	h.t.Helper()
	timer := time.AfterFunc(time.Minute, func() { h.command.Process.Kill() })
	defer timer.Stop()
	if !h.out.Scan() {
		h.t.Fatal("the host has ended")
	}
	return h.out.Text()
}

func (h *host) tell(line string) string {
	h.t.Helper()
	if _, err := io.WriteString(h.in, line+"\n"); err != nil {
		h.t.Fatal(err)
	}
	return h.answer()
}

func (h *host) want(line, want string) {
	h.t.Helper()
	if got := h.tell(line); got != want {
		h.t.Fatalf("%s: the host says %q instead of %q", line, got, want)
	}
}

func (h *host) signal(s os.Signal) {
	h.t.Helper()
	if err := h.command.Process.Signal(s); err != nil {
		h.t.Fatal(err)
	}
}

// kill may be called again.
func (h *host) kill() {
	h.command.Process.Kill()
	h.command.Wait()
}

// beHost is the process of a host.
func beHost(options string) {
	var o Options
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		panic(err)
	}
	ctx := context.Background()
	s, err := Open(ctx, o)
	fmt.Println(inOneWord(err))
	if err != nil {
		return
	}
	var lease Lease
	var record Record
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch verb, session, _ := strings.Cut(lines.Text(), " "); verb {
		case "take":
			var taken Lease
			if taken, record, err = s.Take(ctx, session); err == nil {
				lease = taken
			}
		case "check":
			err = s.Check(ctx, lease)
		case "save":
			err = s.Save(ctx, lease, record)
		case "release":
			err = s.Release(ctx, lease, record)
		case "valid":
			if err = nil; !s.Valid() {
				err = ErrLost
			}
		case "close":
			err = s.Close()
		}
		fmt.Println(inOneWord(err))
	}
}

func inOneWord(err error) string {
	var busy *BusyError
	var unusable *UnusableError
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrLost):
		return "lost"
	case errors.As(err, &busy):
		return "busy"
	case errors.As(err, &unusable):
		return "unusable: " + strings.ReplaceAll(unusable.Error(), "\n", " ")
	}
	return err.Error()
}

func TestAHostThatWasKilledIsReplacedAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.Lease = long
		ctx := testContext(t)
		h := startHost(t, o)
		if got := h.answer(); got != "ok" {
			t.Fatal(got)
		}
		s := openSQL(t, o)
		for _, session := range []string{"s1", "s2", "s3"} {
			h.want("take "+session, "ok")
		}
		h.signal(syscall.SIGSTOP)
		wantBusy(t, s, "s1") // it may go on
		h.kill()

		if record := must(s.Get(ctx, "s1"))(t); record.Holder != "" {
			t.Errorf("%s is shown as the holder", record.Holder)
		}
		take(t, s, "s1")
		take(t, s, "s2") // whose holder is gone for good
		if left := files(t, filepath.Join(o.Dir, "holders")); left != 1 {
			t.Errorf("there are files of %d holders", left)
		}
	})
}

func TestWhatKilledHostsLeftIsClearedAway(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.Lease = long
		h := startHost(t, o)
		h.answer()
		h.want("take s1", "ok")
		h.kill()
		if left := files(t, filepath.Join(o.Dir, "holders")); left != 1 {
			t.Fatalf("there are files of %d holders", left)
		}
		long := time.Now().Add(-2 * young)
		for _, entry := range must(os.ReadDir(filepath.Join(o.Dir, "holders")))(t) {
			wantNil(t, "making it old", os.Chtimes(filepath.Join(o.Dir, "holders", entry.Name()), long, long))
		}
		s := openSQL(t, o)
		if left := files(t, filepath.Join(o.Dir, "holders")); left != 0 {
			t.Errorf("there are files of %d holders", left)
		}
		o.Dir = other(t, o) // from where the process cannot be seen
		take(t, openSQL(t, o), "s1")
		wantBusy(t, s, "s1")
	})
}

func files(t testing.TB, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestAHostThatWasStoppedForTooLongWritesNothingMore(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.Lease = 2 * time.Second
		h := startHost(t, o)
		h.answer()
		h.want("take s1", "ok")
		h.signal(syscall.SIGSTOP)

		o.Lease = long
		s := openSQL(t, o)
		var lease Lease
		eventually(t, "the lease of the stopped host ends", func() bool {
			var err error
			lease, _, err = s.Take(testContext(t), "s1")
			return err == nil
		})
		wantNil(t, "Save", s.Save(testContext(t), lease, sample("s1")))

		h.signal(syscall.SIGCONT)
		h.want("valid", "lost")
		h.want("check", "lost")
		h.want("save", "lost")
		h.want("release", "lost")
		h.want("take s1", "busy")
		h.want("take s2", "ok") // it begins anew
		got := must(s.Get(testContext(t), "s1"))(t)
		got.Holder = ""
		wantRecord(t, got, sample("s1"))
	})
}

func TestManyProcessesBeginTheSameRecordsAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		var hosts []*host
		n := 30
		if o.URL != "" {
			n = 20 // the server's connections are limited
		}
		for range n {
			hosts = append(hosts, startHost(t, o))
		}
		for _, h := range hosts {
			if got := h.answer(); got != "ok" {
				t.Error(got)
			}
		}
		var won sync.Map
		var wg sync.WaitGroup
		for i, h := range hosts { // all at once: one gets it
			wg.Go(func() { won.Store(i, h.tell("take s1")) })
		}
		wg.Wait()
		count := map[string]int{}
		won.Range(func(_, answer any) bool { count[answer.(string)]++; return true })
		if count["ok"] != 1 || count["busy"] != len(hosts)-1 {
			t.Errorf("the answers are %v", count)
		}
		if o.URL == "" {
			wantServedInOrder(t, o, hosts)
		}
	})
}

// wantServedInOrder has the hosts wait for the turn one after another, and sees who wrote when.
func wantServedInOrder(t *testing.T, o Options, hosts []*host) {
	t.Helper()
	s := openSQL(t, o)
	q := s.database.queue()
	turn := must(q.take(testContext(t), patiently))(t)
	var want []string
	var wg sync.WaitGroup
	for i, h := range hosts {
		session := fmt.Sprintf("own-%d", i)
		want = append(want, session)
		wg.Go(func() {
			if answer := h.tell("take " + session); answer != "ok" {
				t.Errorf("%s: %s", session, answer)
			}
		})
		eventually(t, "it waits", func() bool { return q.waiting() == i+1 })
	}
	q.end(turn)
	wg.Wait()
	var got []string
	rows := must(s.db.QueryContext(testContext(t), `SELECT session FROM sessions WHERE session LIKE 'own-%' ORDER BY rowid`))(t)
	defer rows.Close()
	for rows.Next() {
		var session string
		wantNil(t, "reading", rows.Scan(&session))
		got = append(got, session)
	}
	wantNil(t, "reading", rows.Err())
	if !slices.Equal(got, want) {
		t.Errorf("they were served as %v", got)
	}
}

func TestAHolderThatIsJustBeginningIsNotBuried(t *testing.T) {
	t.Parallel()
	s := openSQL(t, Options{Dir: t.TempDir()})
	path := filepath.Join(s.dir, "beginning") // made, and not yet locked
	wantNil(t, "writing", os.WriteFile(path, nil, 0o600))
	locked := make(chan *os.File, 1)
	s.database = &unreliable{database: s.database, lose: once(func() {
		go func() {
			file, err := createLocked(path)
			if err != nil {
				t.Error(err)
			}
			locked <- file
		}()
		time.Sleep(100 * time.Millisecond) // for the lock, if it can be had
	})}
	if _, err := s.removeIfDead(testContext(t), "beginning"); err != nil {
		t.Fatal(err)
	}
	var file *os.File
	select {
	case file = <-locked:
	case <-time.After(30 * time.Second):
		t.Fatal("the lock was never to be had")
	}
	defer file.Close()
	if s.processDead("beginning") {
		t.Error("it is said to have ended")
	}
	there, err := os.Stat(path)
	if err != nil {
		t.Fatalf("its file was removed: %v", err)
	}
	if own := must(file.Stat())(t); !os.SameFile(there, own) {
		t.Error("the file with the lock is another one")
	}
}

func TestALockedDatabaseIsWaitedFor(t *testing.T) {
	t.Parallel()
	o := Options{Dir: t.TempDir()}
	s := openSQL(t, o)
	lease, record := take(t, s, "s1")
	other, _ := firstSchema(t, o)
	ctx := testContext(t)
	conn := must(other.Conn(ctx))(t)
	defer conn.Close()
	_, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE")
	wantNil(t, "locking", err)
	saved := make(chan error, 1)
	go func() { saved <- s.Save(ctx, lease, record) }()
	select {
	case err := <-saved:
		t.Errorf("saved behind the lock: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	_, err = conn.ExecContext(ctx, "COMMIT")
	wantNil(t, "unlocking", err)
	wantNil(t, "Save", <-saved)
}
