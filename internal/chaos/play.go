package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/host/records"
)

// result is how a case went. All counts should be 0.
type result struct {
	testCase
	counts
	missed bool // the host never came to the moment
	notes  []string
	took   time.Duration

	moments []moment // all of an undisturbed run
	calls   []call
}

// counts are what may not happen.
type counts struct {
	leaked      int // sandboxes that no record names
	duplicated  int // sandboxes of a session beyond one
	swept       int // live sandboxes that were ended or harmed
	disagreeing int // records that are not as the cloud is
	woken       int // changing calls of a host that was stopped for longer than its lease
	failed      int // commands, and everything else
}

func (c counts) total() int {
	return c.leaked + c.duplicated + c.swept + c.disagreeing + c.woken + c.failed
}

func (c *counts) add(more counts) {
	c.leaked += more.leaked
	c.duplicated += more.duplicated
	c.swept += more.swept
	c.disagreeing += more.disagreeing
	c.woken += more.woken
	c.failed += more.failed
}

const (
	shortLease = 1500 * time.Millisecond // of a host that is stopped
	stopTime   = 1800 * time.Millisecond
	jump       = 3 * time.Hour
)

// play lets a case happen in a world of its own, and looks at what is left.
func (w *worker) play(ctx context.Context, c testCase) (r result) {
	began := time.Now()
	r.testCase = c
	n, err := w.newWorld(ctx, c.provider, c.postgres, c.action == fillDisk)
	if err == nil {
		n.stderr = w.outputsOf(c).stderr
		err = n.play(ctx, &r)
		if cleaned := n.clean(ctx); cleaned != nil {
			err = errors.Join(err, fmt.Errorf("clearing up: %w", cleaned))
		}
		r.notes = n.notes
	}
	if err != nil {
		r.failed++
		r.notes = append(r.notes, err.Error())
	}
	r.took = time.Since(began)
	return r
}

func (n *world) play(ctx context.Context, r *result) error {
	command := commandOf(r.command)
	if err := n.prepare(ctx, command); err != nil {
		return fmt.Errorf("preparing: %w", err)
	}
	if err := n.forget(ctx); err != nil {
		return err
	}
	if r.action == loseAnswer {
		if err := n.loseAnswers(ctx, r.step, r.skip); err != nil {
			return err
		}
	}

	waitAt, reach := r.step+":"+r.end, r.step+":"+r.end
	switch {
	case r.action == nothing || r.action == loseAnswer || r.action == loseOutput:
		waitAt, reach = everyMoment, ""
	case r.end == "during":
		waitAt, reach = everyMoment, r.step+":before"
	}
	var env []string
	if r.action == stopHost {
		env = []string{leaseVariable + "=" + shortLease.String()}
	}
	disturbed, err := n.start(ctx, waitAt, n.outputsOf(r.testCase), env, command.args...)
	if err != nil {
		return err
	}
	defer func() { // whatever happened: it ends
		_ = disturbed.Process.Kill()
		disturbed.wait()
	}()
	after := func() {}
	if reach != "" {
		m, reached := disturbed.reach(reach)
		if r.missed = !reached; reached {
			if r.end == "during" {
				time.Sleep(r.delay)
			}
			after, err = n.disturb(ctx, r, disturbed, m)
			if r.missed = errors.Is(err, os.ErrProcessDone); err != nil && !r.missed {
				return fmt.Errorf("%s: %w", r.action, err)
			}
		}
	}
	disturbed.wait()
	after()
	n.note("%s", disturbed)
	r.moments = disturbed.moments
	if r.calls, err = n.calls(ctx); err != nil {
		return err
	}
	if r.action == loseAnswer { // by then the cloud is well again
		if err := n.forget(ctx); err != nil {
			return err
		}
	}
	undisturbed := r.action == nothing || r.action == loseOutput
	if undisturbed && !disturbed.outputs.expected(disturbed.ProcessState.ExitCode()) {
		r.failed++
	}
	return n.aftermath(ctx, r, disturbed)
}

// disturb does what the case is about. The disturbed host waits, unless the case is about the middle of a step. What is
// to be done once it has ended comes back.
func (n *world) disturb(ctx context.Context, r *result, h *host, m moment) (after func(), err error) {
	after = func() {}
	switch r.action {
	case killHost:
		return after, h.Process.Kill()
	case killPlugin:
		if m.plugin == 0 {
			r.missed = true
			return after, nil
		}
		err := syscall.Kill(m.plugin, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return after, nil // during: the step is over, and the host with it
		}
		return after, err
	case stopHost:
		return after, n.stopAndReplace(ctx, r, h)
	case sweepBeside:
		for _, args := range [][]string{{"recover", "-o", "json"}, sweepArgs} {
			if err := n.mustRun(ctx, r, args...); err != nil {
				return after, err
			}
		}
		return after, nil
	case clockAhead:
		return after, n.shiftRecords(ctx, -jump)
	case clockBehind:
		return after, n.shiftRecords(ctx, jump)
	case restartServer:
		done := n.postgres.restart(ctx)
		return func() { <-done }, nil
	case removeFile:
		return after, n.removeRecords()
	case replaceFile:
		return after, n.replaceRecords(ctx)
	case lockFile:
		files, err := filepath.Glob(filepath.Join(n.state(), "records.db*"))
		change := func(how string) error {
			return exec.CommandContext(ctx, "chattr", append([]string{how}, files...)...).Run()
		}
		return func() { _ = change("-i") }, errors.Join(err, change("+i"))
	case fillDisk:
		file := filepath.Join(n.state(), "full")
		return func() { os.Remove(file) }, fill(file)
	}
	return after, fmt.Errorf("there is no action %q", r.action)
}

// stopAndReplace stops the host for longer than its lease, lets another one do the work, and lets it wake up: it may
// change nothing any more.
func (n *world) stopAndReplace(ctx context.Context, r *result, h *host) error {
	if err := n.stopBetweenWrites(ctx, h); err != nil {
		return err
	}
	time.Sleep(stopTime)
	args := connectArgs
	if r.command == "recover" || r.command == "gc" {
		args = sweepArgs
	}
	if err := n.mustRun(ctx, r, args...); err != nil {
		return err
	}
	if err := n.forget(ctx); err != nil {
		return err
	}
	before, err := n.boxes(ctx, n.owner)
	if err != nil {
		return err
	}
	if err := h.Process.Signal(syscall.SIGCONT); err != nil {
		return err
	}
	h.wait()
	calls, err := n.calls(ctx)
	if err != nil {
		return err
	}
	for _, call := range calls {
		if n.changes(call) {
			r.woken++
			n.note("after it woke the host called %s", call)
		}
	}
	now, err := n.boxes(ctx, n.owner)
	if err == nil && !slices.Equal(settled(before), settled(now)) {
		r.woken++
		n.note("there was %v before the host woke, and now there is %v", before, now)
	}
	return err
}

// settled are the sandboxes that stay, in order.
func settled(boxes []box) []box {
	left := slices.DeleteFunc(slices.Clone(boxes), func(b box) bool { return b.state == vanishing })
	slices.SortFunc(left, func(x, y box) int { return strings.Compare(x.id, y.id) })
	return left
}

// stopBetweenWrites stops a host while it does not write its records: one that is stopped in the middle of a write keeps
// all others from SQLite until it goes on, which is another matter.
func (n *world) stopBetweenWrites(ctx context.Context, h *host) error {
	if n.database != "" {
		return h.Process.Signal(syscall.SIGSTOP)
	}
	return n.onDatabase(ctx, func(conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
			return err
		}
		err := h.Process.Signal(syscall.SIGSTOP)
		_, rolledBack := conn.ExecContext(ctx, "ROLLBACK")
		return errors.Join(err, rolledBack)
	})
}

// onDatabase works on the records as another program.
func (n *world) onDatabase(ctx context.Context, work func(*sql.Conn) error) error {
	driver, source := "sqlite", "file:"+filepath.Join(n.state(), "records.db")+"?mode=rw&_pragma=busy_timeout(20000)"
	if n.database != "" {
		driver, source = "pgx", n.database
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		return err
	}
	defer db.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		conn, err := db.Conn(ctx)
		if err == nil {
			err = work(conn)
			conn.Close()
		}
		// A PostgreSQL server may be in the middle of another case's restart.
		if err == nil || n.database == "" || time.Now().After(deadline) {
			return err
		}
	}
}

// shiftRecords moves every time in the records: the same as the clock having jumped the other way since.
func (n *world) shiftRecords(ctx context.Context, by time.Duration) error {
	return n.onDatabase(ctx, func(conn *sql.Conn) error {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() //nolint:errcheck // after a commit it does nothing
		for _, change := range []string{
			`UPDATE holders SET until = until + $1 WHERE id IN (SELECT holder FROM sessions WHERE owner = $2)`,
			`UPDATE sessions SET created_at = created_at + $1 WHERE created_at <> 0 AND owner = $2`,
			`UPDATE sessions SET expires_at = expires_at + $1 WHERE expires_at <> 0 AND owner = $2`,
			`UPDATE sessions SET updated_at = updated_at + $1 WHERE owner = $2`,
		} {
			if _, err := tx.ExecContext(ctx, change, by.Milliseconds(), n.owner); err != nil {
				return err
			}
		}
		return tx.Commit()
	})
}

func (n *world) removeRecords() error {
	files, err := filepath.Glob(filepath.Join(n.state(), "records.db*"))
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// replaceRecords puts a copy in the place of the file, as from a backup.
func (n *world) replaceRecords(ctx context.Context) error {
	copied := filepath.Join(n.dir, "copy.db")
	err := n.onDatabase(ctx, func(conn *sql.Conn) error {
		_, err := conn.ExecContext(ctx, "VACUUM INTO $1", copied)
		return err
	})
	if err != nil {
		return err
	}
	if err := n.removeRecords(); err != nil {
		return err
	}
	return os.Rename(copied, filepath.Join(n.state(), "records.db"))
}

// fill writes until there is no room left.
func fill(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for block := make([]byte, 4096); ; {
		if _, err := file.Write(block); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// mustRun runs a berth command that has to succeed.
func (n *world) mustRun(ctx context.Context, r *result, args ...string) error {
	h, err := n.berth(ctx, args...)
	if err != nil {
		return err
	}
	n.note("%s", h)
	if !h.ok() {
		r.failed++
	}
	return nil
}

// aftermath is what an operator does: recover and sweep. Then everything has to be in order, and the session can be
// connected again.
func (n *world) aftermath(ctx context.Context, r *result, disturbed *host) error {
	live, err := n.live(ctx, r, disturbed)
	if err != nil {
		return err
	}
	steps := [][]string{{"recover", "-o", "json"}, sweepArgs}
	if r.action == removeFile && !r.missed {
		// The records are new. What is in use is connected again; what is left then belongs to nobody.
		steps = append(steps, []string{"connect", bystander, "-o", "json"})
		if slices.ContainsFunc(live, func(b box) bool { return b.session == victim }) {
			steps = append(steps, connectArgs)
		}
		steps = append(steps, append(slices.Clone(sweepArgs), "--unrecorded"))
	}
	for _, args := range steps {
		if err := n.mustRun(ctx, r, args...); err != nil {
			return err
		}
	}
	if err := n.audit(ctx, r, live); err != nil {
		return err
	}
	again, err := n.berth(ctx, connectArgs...)
	if err != nil {
		return err
	}
	n.note("%s", again)
	if !again.ok() {
		r.failed++
		return nil
	}
	c := again.connected()
	return n.audit(ctx, r, append(live, box{id: c.Sandbox.ID, session: victim, owner: n.owner}))
}

// live are the sandboxes that somebody relies on: those that the records call so, and the one that the disturbed command
// said it had connected.
func (n *world) live(ctx context.Context, r *result, disturbed *host) (live []box, err error) {
	there, err := n.boxes(ctx, "")
	if err != nil {
		return nil, err
	}
	isThere := func(id string) bool {
		return slices.ContainsFunc(there, func(b box) bool { return b.id == id && b.state != vanishing })
	}
	for _, b := range there {
		if b.owner == stranger+n.owner {
			live = append(live, b)
		}
	}
	live = append(live, box{id: n.bystander.SandboxID, session: bystander, owner: n.owner})
	if id := disturbed.connected().Sandbox.ID; disturbed.ok() && id != "" {
		live = append(live, box{id: id, session: victim, owner: n.owner})
	}
	if r.action == removeFile && !r.missed {
		return live, nil // there is nothing in the records
	}
	store, err := n.records(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close() //nolint:contextcheck // it ends whatever it began
	all, err := store.List(ctx)
	for _, record := range all {
		alone := r.action != stopHost // else another host was told of it
		if r.command == "connect-new" && record.Session == victim && record.State == records.StateRunning && alone && !disturbed.outputs.delivers() {
			r.leaked++
			n.note("leaked: nobody was told of %+v", record)
		}
		kept := record.State == records.StateRunning || record.State == records.StateSuspended
		if kept && isThere(record.SandboxID) {
			live = append(live, box{id: record.SandboxID, session: record.Session, owner: n.owner})
		}
	}
	return live, err
}
