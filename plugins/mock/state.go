package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// tombstoneLife is how long a destroyed sandbox is kept for outdated listings.
const tombstoneLife = time.Minute

// world is the state of the cloud. Nothing in it changes by itself: what a sandbox or a server is doing follows from
// the recorded times and the current time.
type world struct {
	Sandboxes map[string]*sandbox `json:"sandboxes"`
	// Names maps provider.SandboxName to the id of the latest sandbox of that name.
	Names map[string]string `json:"names"`
	// Calls counts the calls of each method, for faults that affect only one of them.
	Calls map[string]int `json:"calls"`
	// Account is a hash of the cloud's key, or empty until one is used.
	Account string `json:"account,omitempty"`
}

type sandbox struct {
	ID        string            `json:"id"`
	Owner     string            `json:"owner"`
	Session   string            `json:"session"`
	Attempt   string            `json:"attempt"`
	Labels    map[string]string `json:"labels"`
	CreatedAt time.Time         `json:"created_at"`
	ExpiresAt time.Time         `json:"expires_at,omitzero"`
	// DestroyedAt is set in tombstones.
	DestroyedAt time.Time `json:"destroyed_at,omitzero"`
	Suspended   bool      `json:"suspended"`
	// Token opens the sandbox's endpoints.
	Token string `json:"token"`
	// Server is nil if none was started since the sandbox was created or woken.
	Server *server `json:"server"`
}

type server struct {
	Port      int       `json:"port"`
	StartedAt time.Time `json:"started_at"`
	ReadyAt   time.Time `json:"ready_at"`
	// DiesAt is zero if the server lives as long as its sandbox runs.
	DiesAt   time.Time `json:"dies_at,omitzero"`
	ExitCode int       `json:"exit_code"`
	// Fields is the answer of its health path.
	Fields map[string]string `json:"fields"`
	// Lines is its output, if its command tells.
	Lines []string `json:"lines,omitempty"`
}

func (s *sandbox) liveAt(t time.Time) bool {
	destroyed := !s.DestroyedAt.IsZero() && !t.Before(s.DestroyedAt)
	expired := !s.ExpiresAt.IsZero() && !t.Before(s.ExpiresAt)
	return !t.Before(s.CreatedAt) && !destroyed && !expired
}

func (s *sandbox) forgottenAt(t time.Time) bool {
	return !s.liveAt(t) && !s.liveAt(t.Add(-tombstoneLife)) && t.Sub(s.CreatedAt) > tombstoneLife
}

func (s *server) diedBy(t time.Time) bool  { return !s.DiesAt.IsZero() && !t.Before(s.DiesAt) }
func (s *server) readyBy(t time.Time) bool { return !t.Before(s.ReadyAt) }

// log returns what the server has written until t.
func (s *server) log(t time.Time) []string {
	if s.Lines != nil {
		return s.Lines
	}
	lines := []string{fmt.Sprintf("mock server: starting on port %d", s.Port)}
	if s.readyBy(t) && (s.DiesAt.IsZero() || s.ReadyAt.Before(s.DiesAt)) {
		lines = append(lines, "mock server: ready")
	}
	if s.diedBy(t) {
		lines = append(lines, "mock server: fatal: told to die", fmt.Sprintf("mock server: exiting with code %d", s.ExitCode))
	}
	return lines
}

// named returns the session's live sandbox, or nil.
func (w *world) named(now time.Time, owner, session string) *sandbox {
	s := w.Sandboxes[w.Names[provider.SandboxName(owner, session)]]
	if s == nil || !s.liveAt(now) {
		return nil
	}
	return s
}

// find returns the live sandbox with this id. It refuses another owner's.
func (w *world) find(now time.Time, ref provider.SandboxRef) (*sandbox, error) {
	s := w.Sandboxes[ref.SandboxID]
	switch {
	case s == nil || !s.liveAt(now):
		return nil, &provider.Error{
			Code: provider.CodeNotFound, Reason: provider.ReasonGone, SandboxID: ref.SandboxID,
			Message: fmt.Sprintf("sandbox %s no longer exists", ref.SandboxID),
		}
	case s.Owner != ref.Owner:
		return nil, foreign(ref.SandboxID, "owner")
	}
	return s, nil
}

// findOf is find for a call that may name the session too. It refuses the sandbox of another one.
func (w *world) findOf(now time.Time, ref provider.SandboxRef, session string) (*sandbox, error) {
	s, err := w.find(now, ref)
	if err == nil && session != "" && s.Session != session {
		return nil, foreign(ref.SandboxID, "session")
	}
	return s, err
}

func foreign(id, whose string) error {
	err := provider.Errorf(provider.CodeConflict, "sandbox %s belongs to another %s", id, whose)
	err.SandboxID = id
	return err
}

func (w *world) add(s *sandbox) {
	w.Sandboxes[s.ID] = s
	w.Names[provider.SandboxName(s.Owner, s.Session)] = s.ID
}

func (w *world) live(now time.Time) int {
	count := 0
	for _, s := range w.Sandboxes {
		if s.liveAt(now) {
			count++
		}
	}
	return count
}

// removeExpired removes what ended long ago.
func (w *world) removeExpired(now time.Time) {
	for id, s := range w.Sandboxes {
		if s.forgottenAt(now) {
			delete(w.Sandboxes, id)
			if name := provider.SandboxName(s.Owner, s.Session); w.Names[name] == id {
				delete(w.Names, name)
			}
		}
	}
}

// store keeps the world in memory, or in a file that several processes share.
type store struct {
	// path is empty for memory.
	path string
	// account is a hash of the key in use. It may be empty.
	account string
	// door is asked before anything else, unless it is nil.
	door *door

	mutex     sync.Mutex
	world     world
	lastSweep time.Time
}

func newWorld() world {
	return world{Sandboxes: map[string]*sandbox{}, Names: map[string]string{}, Calls: map[string]int{}}
}

// admit returns an error for a wrong key.
func (s *store) admit(w *world) error {
	switch {
	case s.account == "":
		return nil
	case w.Account == "":
		w.Account = s.account
	case w.Account != s.account:
		return provider.Errorf(provider.CodeDenied, "the cloud belongs to another api_key")
	}
	return nil
}

func newStore(path string) *store { return &store{path: path, world: newWorld()} }

// do calls f with exclusive access to the world, if the cloud answers and this process is admitted.
func (s *store) do(ctx context.Context, f func(w *world) error) error {
	if err := s.door.ask(ctx, http.MethodGet); err != nil {
		return err
	}
	return s.doAnyway(ctx, func(w *world) error {
		if err := s.admit(w); err != nil {
			return err
		}
		return f(w)
	})
}

// doAnyway calls f with exclusive access to the world. In a file, f's changes are kept only if f succeeds. In memory, f
// must not fail after a change. ctx limits the wait for other processes.
func (s *store) doAnyway(ctx context.Context, f func(w *world) error) error {
	if s.path != "" {
		return s.doInFile(ctx, f)
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if now := time.Now(); now.Sub(s.lastSweep) > tombstoneLife {
		s.world.removeExpired(now)
		s.lastSweep = now
	}
	return f(&s.world)
}

func (s *store) doInFile(ctx context.Context, f func(w *world) error) error {
	unlock, err := lock(ctx, s.path+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	before, err := os.ReadFile(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w := newWorld()
	if len(before) > 0 {
		if err := json.Unmarshal(before, &w); err != nil {
			return fmt.Errorf("%s does not hold a mock cloud: %w", s.path, err)
		}
	}
	if err := f(&w); err != nil {
		return err
	}
	w.removeExpired(time.Now())
	after, err := json.MarshalIndent(w, "", " ")
	if err != nil || bytes.Equal(before, after) {
		return err
	}
	return replace(s.path, after)
}

// lock takes an advisory lock that is released at the latest when the process ends. The file stays: if it were removed,
// two processes could both have a lock of that name.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			file.Close()
			return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
		}
		if err := sleep(ctx, 2*time.Millisecond); err != nil {
			file.Close()
			return nil, err
		}
	}
}

// replace writes a file atomically, so that a process killed half-way leaves the old one.
func replace(path string, text []byte) error {
	fresh := path + ".new"
	if err := os.WriteFile(fresh, text, 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
