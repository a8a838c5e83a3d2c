package store

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	name  = "berth-s1-0123456789abcdef"
	other = "berth-s2-0123456789abcdef"
)

func publish(t *testing.T, s Store, name string) string {
	t.Helper()
	record := Record{ID: NewID(name), Session: name, CreatedAt: time.Now()}
	if err := s.Publish(record); err != nil {
		t.Fatal(err)
	}
	return record.ID
}

func TestASandboxIsFoundByItsNameUntilItIsErased(t *testing.T) {
	t.Parallel()
	s := Store{Root: filepath.Join(t.TempDir(), "root")}
	if id, err := s.Find(name); id != "" || err != nil {
		t.Errorf("found %q, %v in an empty store", id, err)
	}
	id := publish(t, s, name)
	publish(t, s, name+"-0123456789abcdef") // a session may have the name of another session's sandbox
	if found, err := s.Find(name); found != id || err != nil {
		t.Errorf("found %q, %v, want %q", found, err, id)
	}
	if record, err := s.Load(id); err != nil || record.Session != name {
		t.Errorf("loaded %+v, %v", record, err)
	}
	if err := s.Erase(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if found, err := s.Find(name); found != "" || err != nil {
		t.Errorf("found %q, %v", found, err)
	}
	if _, err := s.Load(id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("loaded: %v", err)
	}
}

func TestAnIDThatIsAPathLeadsNowhere(t *testing.T) {
	t.Parallel()
	s := Store{Root: t.TempDir()}
	id := publish(t, s, name)
	for _, path := range []string{"", ".", "..", "../sandboxes/" + id, id + "/", id + "/work"} {
		if _, err := s.Load(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestALockExcludesOthersAndLeavesNoFile(t *testing.T) {
	t.Parallel()
	s := Store{Root: t.TempDir()}
	var inside, times atomic.Int32
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for times.Load() < 10_000 {
				unlock, err := s.tryLock(name) // Lock without its pauses, which would prevent collisions
				if err != nil {
					t.Error(err)
					return
				}
				if unlock == nil {
					continue
				}
				if inside.Add(1) != 1 {
					t.Error("two got in")
				}
				times.Add(1)
				inside.Add(-1)
				unlock()
			}
		})
	}
	group.Wait()
	if files, err := os.ReadDir(filepath.Join(s.Root, "locks")); err != nil || len(files) != 0 {
		t.Errorf("left %v, %v", files, err)
	}
}

func TestWaitingForALockEndsWithTheContext(t *testing.T) {
	t.Parallel()
	s := Store{Root: t.TempDir()}
	unlock, err := s.Lock(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx, name); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestAKeeperLivesAsLongAsItsLockIsHeld(t *testing.T) {
	t.Parallel()
	s := Store{Root: t.TempDir()}
	id := publish(t, s, name)
	lives := func() bool {
		t.Helper()
		lives, err := s.KeeperLives(id)
		if err != nil {
			t.Fatal(err)
		}
		return lives
	}
	if lives() {
		t.Error("lives before it was started")
	}
	lock, err := s.LockKeeper(id)
	if err != nil || lock == nil {
		t.Fatal(lock, err)
	}
	if second, err := s.LockKeeper(id); second != nil || err != nil || !lives() {
		t.Errorf("a second keeper: %v, %v", second, err)
	}
	lock.Close()
	if lives() {
		t.Error("lives after its death")
	}
	if _, err := s.LockKeeper(NewID(other)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a keeper for nothing: %v", err)
	}
}

func TestLeftoversAreRemovedUnlessSomebodyIsWorkingOnThem(t *testing.T) {
	t.Parallel()
	s := Store{Root: t.TempDir()}
	abandoned, busy := filepath.Join(s.Root, "pending", NewID(name)), filepath.Join(s.Root, "pending", NewID(other))
	for _, dir := range []string{abandoned, busy} {
		if err := os.MkdirAll(filepath.Join(dir, "work"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := s.Lock(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	forgotten := filepath.Join(s.Root, "locks", name)
	if err := os.WriteFile(forgotten, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveLeftovers(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{abandoned: false, forgotten: false, busy: true, filepath.Join(s.Root, "locks", other): true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: there is %v, want %v", path, err == nil, want)
		}
	}
}

func TestATreeWithoutWritePermissionIsErasedAllTheSame(t *testing.T) {
	t.Parallel()
	if os.Getuid() == 0 {
		t.Skip("root needs no permission")
	}
	s := Store{Root: t.TempDir()}
	id := publish(t, s, name)
	deep := filepath.Join(s.WorkDir(id), "module", "cache")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(deep, "file"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{deep, filepath.Dir(deep)} {
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Erase(t.Context(), id); err != nil {
		t.Error(err)
	}
}

func TestAPortBelongsToOneSandboxUntilItIsErased(t *testing.T) {
	t.Parallel()
	s := Store{Root: t.TempDir()}
	first, second := publish(t, s, name), publish(t, s, other)
	port, err := s.PickPort(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	if ephemeralFirst, ephemeralLast := ephemeralPorts(); port >= ephemeralFirst && port <= ephemeralLast {
		t.Errorf("port %d is ephemeral", port)
	}
	reserve := func(id string) string {
		t.Helper()
		reservedFor, err := s.ReservePort(t.Context(), id, port)
		if err != nil {
			t.Fatal(err)
		}
		return reservedFor
	}
	if reservedFor := reserve(second); reservedFor != first {
		t.Errorf("reserved for %q, want the first", reservedFor)
	}
	if reservedFor := reserve(first); reservedFor != first {
		t.Errorf("reserved again: reserved for %q", reservedFor)
	}
	if err := os.RemoveAll(s.Dir(first)); err != nil { // without releasing the port
		t.Fatal(err)
	}
	if reservedFor := reserve(second); reservedFor != second {
		t.Errorf("the port of a sandbox that is gone: reserved for %q", reservedFor)
	}
	if err := s.Erase(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if links, err := os.ReadDir(filepath.Join(s.Root, "ports")); err != nil || len(links) != 0 {
		t.Errorf("left %v, %v", links, err)
	}
}

func TestAPortSomebodyListensOnIsNotClaimed(t *testing.T) {
	t.Parallel()
	s := Store{Root: t.TempDir()}
	id := publish(t, s, name)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if reservedFor, err := s.ReservePort(t.Context(), id, listener.Addr().(*net.TCPAddr).Port); reservedFor != "" || err != nil {
		t.Errorf("reserved for %q, %v", reservedFor, err)
	}
}
