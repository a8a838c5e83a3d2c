package records

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/berth-dev/berth/host/regular"
)

// young is the age up to which a holder's file is not looked at without need.
const young = time.Minute

// holder is this host's row in the holders table. All leases of the host are valid while the row is, so one heartbeat
// renews them all, however many there are.
//
// A holder also keeps a lock on a file named after its ID. The kernel drops the lock when the process dies, however it
// dies, so hosts on the same machine need not wait for the row to expire. A process that is merely stopped keeps it.
type holder struct {
	id   string
	ttl  time.Duration
	now  func() time.Time
	file *os.File

	mutex     sync.Mutex
	renewedAt time.Time // when the last successful renewal began
	expired   bool
}

// renewed records a successful renewal that began at the given time.
func (h *holder) renewed(at time.Time) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.renewedAt = at
}

// remaining returns the time until the holder expires, and zero once it has. It is computed rather than signalled by a
// timer, so that it is right in the instant after the process was stopped. It reads both the monotonic and the wall
// clock: the first may stand still while the machine sleeps, the second can be set back.
func (h *holder) remaining() time.Duration {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	now := h.now()
	remaining := h.ttl - max(now.Sub(h.renewedAt), now.Round(0).Sub(h.renewedAt.Round(0)))
	if remaining <= 0 {
		h.expired = true // for good, whatever a clock says later
	}
	if h.expired {
		return 0
	}
	return remaining
}

func (h *holder) valid() bool { return h.remaining() > 0 }

// expire makes the holder invalid for good.
func (h *holder) expire() {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.expired = true
}

// Valid implements Store.
func (s *SQL) Valid() bool {
	h := s.currentHolder()
	return h == nil || h.valid()
}

func (s *SQL) currentHolder() *holder {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.holder
}

// withHolder calls f with the store's holder. If there is none, or the last one has expired, it calls f with a new one and
// with the change that registers it: a host that begins to work on a session writes once for both.
func (s *SQL) withHolder(ctx context.Context, f func(h *holder, register change) error) error {
	if h := s.currentHolder(); h != nil && h.valid() {
		return f(h, unchanged)
	}
	began := time.Now()
	select {
	case s.registering <- struct{}{}:
	case <-ctx.Done(): // the call that registers one waits for the records
		if s.writer != nil {
			return s.explain(ctx, began, s.writer.queue.explain(ctx.Err(), began))
		}
		return s.explain(ctx, began, ctx.Err())
	}
	if old := s.currentHolder(); old != nil && old.valid() { // registered by another call
		<-s.registering
		return f(old, unchanged)
	}
	defer func() { <-s.registering }()
	if s.lifetime.Err() != nil {
		return s.closedError()
	}
	return s.replaceHolder(ctx, f)
}

func unchanged(context.Context, querier) error { return nil }

// replaceHolder makes a holder and has f register it. It locks the holder's file first, so that whoever sees the row can
// rely on the lock.
func (s *SQL) replaceHolder(ctx context.Context, f func(h *holder, register change) error) error {
	h := &holder{id: rand.Text(), ttl: s.ttl, now: s.now}
	var err error
	if h.file, err = createLocked(filepath.Join(s.dir, h.id)); err != nil {
		return &UnusableError{
			Where: s.dir, Problem: "this host cannot make itself known there", Cause: err,
			Hint: "make the directory writable, or free space on its disk",
		}
	}
	err = f(h, func(ctx context.Context, q querier) error {
		h.renewed(s.now())
		if _, err := s.exec(ctx, q, `DELETE FROM holders WHERE until <= {now}`); err != nil {
			return err
		}
		_, err := s.exec(ctx, q, `INSERT INTO holders (id, description, until, ttl) VALUES ($1, $2, {now} + $3, $3)
			ON CONFLICT (id) DO UPDATE SET until = excluded.until`, h.id, describeProcess(), h.ttl.Milliseconds())
		return err
	})
	if err != nil {
		os.Remove(h.file.Name())
		h.file.Close()
		return err
	}
	s.mutex.Lock()
	old := s.holder
	s.holder = h
	s.mutex.Unlock()
	s.heartbeats.Go(func() { s.heartbeat(s.lifetime, h) })
	if old != nil {
		if err := s.unregister(ctx, old); err != nil {
			s.log.Debug("an expired holder could not be deleted from the records", "error", err)
		}
	}
	return nil
}

func (s *SQL) now() time.Time { return time.Now().Add(s.shift()) }

func describeProcess() string {
	name, err := os.Hostname()
	if err != nil {
		name = "a machine without a name"
	}
	return fmt.Sprintf("process %d on %s", os.Getpid(), name)
}

// heartbeat renews the holder three times per ttl, until it expires or ctx ends.
func (s *SQL) heartbeat(ctx context.Context, h *holder) {
	for pause := h.ttl / 3; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = h.ttl / 3
		err := s.renew(ctx, h)
		switch {
		case ctx.Err() != nil:
			return
		case !h.valid():
			s.log.Warn("this host did not renew its leases in time and has lost them", "error", err)
			return
		case err != nil:
			s.log.Warn("the leases could not be renewed yet", "error", err)
			pause = h.ttl / 30
		}
	}
}

// renew extends the holder by its ttl. It needs no connection slot, so other calls cannot delay it, and gives up when
// the holder expires.
func (s *SQL) renew(ctx context.Context, h *holder) error {
	ctx, cancel := context.WithTimeout(ctx, h.remaining())
	defer cancel()
	return s.retrying(ctx, func(ctx context.Context) error {
		var start time.Time
		var n int64
		move := func(ctx context.Context, q querier) (err error) {
			start = s.now()
			n, err = s.exec(ctx, q, `UPDATE holders SET until = {now} + ttl WHERE id = $1 AND until > {now}`, h.id)
			return err
		}
		var err error
		if s.writer != nil {
			err = s.writer.hurry(ctx, move)
		} else {
			err = s.transaction(ctx, false, move)
		}
		switch {
		case err != nil:
			return err
		case n == 0:
			h.expire()
		default:
			h.renewed(start)
		}
		return nil
	})
}

// dismiss ends the holder of a store that is being closed. If it has no leases, it need not be deleted from the database:
// nothing refers to it, and the next holder that is registered after its time deletes it.
func (s *SQL) dismiss(h *holder) error {
	if s.leases.Load() > 0 {
		return s.unregister(context.Background(), h)
	}
	os.Remove(h.file.Name())
	return h.file.Close()
}

// unregister deletes an expired holder from the database and its file. If that fails the file stays, unlocked, and
// removeDeadHolders finishes the job.
func (s *SQL) unregister(ctx context.Context, h *holder) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	defer h.file.Close()
	err := s.deleteHolder(ctx, h.id)
	if err == nil {
		os.Remove(h.file.Name())
	}
	return err
}

func (s *SQL) deleteHolder(ctx context.Context, id string) error {
	return s.update(ctx, false, func(ctx context.Context, q querier) error {
		_, err := s.exec(ctx, q, `DELETE FROM holders WHERE id = $1`, id)
		return err
	})
}

// processDead reports whether the holder's process ran on this machine and is known to have died.
func (s *SQL) processDead(id string) bool {
	file := s.lockIfDead(id)
	if file == nil {
		return false
	}
	file.Close()
	return true
}

// lockIfDead locks and returns the file of a holder whose process has died. It returns nil if the process is alive or
// never ran on this machine.
func (s *SQL) lockIfDead(id string) *os.File {
	file, err := regular.Open(filepath.Join(s.dir, id))
	if err != nil {
		return nil
	}
	if flock(file, syscall.LOCK_SH|syscall.LOCK_NB) != nil { // shared: concurrent checks must not take each other for the owner
		file.Close()
		return nil
	}
	return file
}

// removeIfDead removes a holder whose process has died, and reports whether it had. It keeps the file locked meanwhile:
// the file may belong to a holder that is just being registered, which then finds its file gone and makes another.
func (s *SQL) removeIfDead(ctx context.Context, id string) (bool, error) {
	file := s.lockIfDead(id)
	if file == nil {
		return false, nil
	}
	defer file.Close()
	if err := s.deleteHolder(ctx, id); err != nil {
		return false, err
	}
	os.Remove(file.Name())
	return true, nil
}

// removeDeadHolders removes the holders whose processes died on this machine. It leaves those alone that have just been
// made: of a crowd that begins, each would look at all the others.
func (s *SQL) removeDeadHolders(ctx context.Context) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return &UnusableError{
			Where: s.dir, Problem: "the hosts at work on this machine cannot be listed", Cause: err,
			Hint: "make the directory readable",
		}
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			continue // removed meanwhile
		}
		if age := time.Since(info.ModTime()); age >= 0 && age < young {
			continue
		}
		if _, err := s.removeIfDead(ctx, entry.Name()); err != nil {
			return err
		}
	}
	return nil
}

// createLocked creates a file and locks it. Between the two steps another process may take the file for that of a dead
// process and remove it; createLocked then starts over.
func createLocked(path string) (*os.File, error) {
	for {
		file, err := regular.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(file, syscall.LOCK_EX); err != nil {
			file.Close()
			return nil, err
		}
		locked, err := file.Stat()
		if err != nil {
			file.Close()
			return nil, err
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(locked, there) {
			return file, nil
		}
		file.Close()
	}
}

func flock(file *os.File, how int) error {
	for {
		err := syscall.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
