package records

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// holder is this host as the database knows it. All its leases live as long as its row, which its heartbeat keeps alive:
// however many leases there are, it is one write.
//
// A holder also keeps a lock on a file that bears its id. The kernel gives that up when the process ends, however it
// ends, so that hosts on the same machine need not wait for the lease's time. A process that is stopped keeps it.
type holder struct {
	id   string
	ttl  time.Duration
	now  func() time.Time
	file *os.File

	mutex  sync.Mutex
	beat   time.Time // when the last heartbeat that was heard began
	lapsed bool
}

// heard says that a heartbeat was, which began at that time.
func (h *holder) heard(beat time.Time) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.beat = beat
}

// left is the time until the holder lapses, and not positive once it has. It is computed, so that it is right in the
// instant after a pause of any length. Both clocks of the process are asked: the steady one may stand still while the
// machine sleeps, and the other can be set back.
func (h *holder) left() time.Duration {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	now := h.now()
	left := h.ttl - max(now.Sub(h.beat), now.Round(0).Sub(h.beat.Round(0)))
	if left <= 0 {
		h.lapsed = true // for good, whatever a clock says later
	}
	if h.lapsed {
		return 0
	}
	return left
}

func (h *holder) valid() bool { return h.left() > 0 }

// lapse ends the holder: for good.
func (h *holder) lapse() {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.lapsed = true
}

// Valid is Store.Valid.
func (s *SQL) Valid() bool {
	h := s.currentHolder()
	return h == nil || h.valid()
}

func (s *SQL) currentHolder() *holder {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.holder
}

// liveHolder returns this store's holder, which it begins if there is none that lives.
func (s *SQL) liveHolder(ctx context.Context) (*holder, error) {
	if h := s.currentHolder(); h != nil && h.valid() {
		return h, nil
	}
	select {
	case s.beginning <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.beginning }()
	if s.life.Err() != nil {
		return nil, &UnusableError{Where: s.dir, Problem: "they were closed", Hint: "open them again"}
	}
	old := s.currentHolder()
	if old != nil && old.valid() {
		return old, nil // another call began it
	}
	h, err := s.beginHolder(ctx)
	if err != nil {
		return nil, err
	}
	s.mutex.Lock()
	s.holder = h
	s.mutex.Unlock()
	s.beats.Go(func() { s.keepAlive(s.life, h) })
	if old != nil {
		if err := s.end(ctx, old); err != nil {
			s.log.Debug("the records still have a holder that has lapsed", "error", err)
		}
	}
	return h, nil
}

// beginHolder makes a new holder known. Its file is locked first: whoever sees the row can rely on the lock.
func (s *SQL) beginHolder(ctx context.Context) (*holder, error) {
	h := &holder{id: rand.Text(), ttl: s.ttl, now: s.now}
	var err error
	if h.file, err = lockNew(filepath.Join(s.dir, h.id)); err != nil {
		return nil, &UnusableError{
			Where: s.dir, Problem: "this host cannot make itself known there", Cause: err,
			Hint: "make the directory writable, or free space on its disk",
		}
	}
	var beat time.Time
	err = s.do(ctx, false, func(ctx context.Context, conn *sql.Conn) error {
		beat = s.now()
		_, err := s.exec(ctx, conn, `INSERT INTO holders (id, description, until, ttl) VALUES ($1, $2, {now} + $3, $3)
			ON CONFLICT (id) DO UPDATE SET until = excluded.until`, h.id, describeProcess(), h.ttl.Milliseconds())
		return err
	})
	if err != nil {
		os.Remove(h.file.Name())
		h.file.Close()
		return nil, err
	}
	h.heard(beat)
	return h, nil
}

func (s *SQL) now() time.Time { return time.Now().Add(s.shift()) }

func describeProcess() string {
	name, err := os.Hostname()
	if err != nil {
		name = "a machine without a name"
	}
	return fmt.Sprintf("process %d on %s", os.Getpid(), name)
}

// keepAlive is the heartbeat. It ends with the holder, or with ctx.
func (s *SQL) keepAlive(ctx context.Context, h *holder) {
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
			s.log.Warn("this host was not heard of in time and has lost its leases", "error", err)
			return
		case err != nil:
			s.log.Warn("a heartbeat did not reach the records", "error", err)
			pause = h.ttl / 30
		}
	}
}

// renew is one heartbeat. It waits for no other call of this store, and not longer than the holder lives.
func (s *SQL) renew(ctx context.Context, h *holder) error {
	ctx, cancel := context.WithTimeout(ctx, h.left())
	defer cancel()
	return s.again(ctx, func(ctx context.Context) error {
		beat := s.now()
		var n int64
		err := s.try(ctx, false, func(ctx context.Context, conn *sql.Conn) error {
			var err error
			n, err = s.exec(ctx, conn, `UPDATE holders SET until = {now} + ttl WHERE id = $1 AND until > {now}`, h.id)
			return err
		})
		switch {
		case err != nil:
			return err
		case n == 0:
			h.lapse()
		default:
			h.heard(beat)
		}
		return nil
	})
}

// end takes a holder that has lapsed out of the database. If that fails, its file stays, unlocked, for others to see.
func (s *SQL) end(ctx context.Context, h *holder) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	defer h.file.Close()
	err := s.remove(ctx, h.id)
	if err == nil {
		os.Remove(h.file.Name())
	}
	return err
}

func (s *SQL) remove(ctx context.Context, id string) error {
	return s.do(ctx, false, func(ctx context.Context, conn *sql.Conn) error {
		_, err := s.exec(ctx, conn, `DELETE FROM holders WHERE id = $1`, id)
		return err
	})
}

// processEnded says that the process of a holder was on this machine and is no more. When in doubt it is not.
func (s *SQL) processEnded(id string) bool {
	file := s.lockOfDead(id)
	if file == nil {
		return false
	}
	file.Close()
	return true
}

// lockOfDead takes the lock of a holder whose process has ended, and is nil when that lives or was never here.
func (s *SQL) lockOfDead(id string) *os.File {
	file, err := os.Open(filepath.Join(s.dir, id))
	if err != nil {
		return nil
	}
	if flock(file, syscall.LOCK_SH|syscall.LOCK_NB) != nil { // shared: those who look do not disturb each other
		file.Close()
		return nil
	}
	return file
}

// bury removes a holder if its process has ended, and says whether it had. It keeps the lock meanwhile: the file may be
// that of a holder which is just being begun, and that then finds the file gone before it makes itself known.
func (s *SQL) bury(ctx context.Context, id string) (bool, error) {
	file := s.lockOfDead(id)
	if file == nil {
		return false, nil
	}
	defer file.Close()
	if err := s.remove(ctx, id); err != nil {
		return false, err
	}
	os.Remove(file.Name())
	return true, nil
}

// buryDead buries all whose processes ended on this machine.
func (s *SQL) buryDead(ctx context.Context) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return &UnusableError{
			Where: s.dir, Problem: "the hosts at work on this machine cannot be listed", Cause: err,
			Hint: "make the directory readable",
		}
	}
	for _, entry := range entries {
		if _, err := s.bury(ctx, entry.Name()); err != nil {
			return err
		}
	}
	return nil
}

// lockNew makes a file and locks it. Somebody who takes it for a dead process's may remove it in between.
func lockNew(path string) (*os.File, error) {
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
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
