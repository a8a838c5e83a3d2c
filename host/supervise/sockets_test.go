package supervise

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestOnlyWhatDeadHostsOfThisUserLeftIsRemoved(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir := func(name string, content ...string) string {
		path := filepath.Join(parent, name)
		must(t, os.Mkdir(path, 0o700))
		for _, file := range content {
			must(t, os.WriteFile(filepath.Join(path, file), nil, 0o600))
		}
		return path
	}
	old := func(path string) string {
		must(t, os.Chtimes(path, time.Time{}, time.Now().Add(-2*makingTime)))
		return path
	}
	alive := dir("berth-1", "plugin1")
	lock, err := lockOwned(alive)
	must(t, err)
	defer lock.Close()
	pipe := dir("berth-2")
	must(t, syscall.Mkfifo(filepath.Join(pipe, ownerLock), 0o600))
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	must(t, os.Mkdir(elsewhere, 0o700))
	must(t, os.WriteFile(filepath.Join(elsewhere, ownerLock), nil, 0o600))
	link := filepath.Join(parent, "berth-3")
	must(t, os.Symlink(elsewhere, link))
	file := filepath.Join(parent, "berth-4")
	must(t, os.WriteFile(file, nil, 0o600))
	stay := []string{
		old(alive), pipe, link, file, elsewhere, dir("berth-5"), old(dir("berth-6", "of another program")),
		dir("berth-bin-7", ownerLock), dir("other-8", ownerLock),
	}
	gone := []string{dir("berth-9", ownerLock, "plugin2"), old(dir("berth-10")), old(dir("berth-11", ownerLock+".new"))}

	removeAbandonedIn(parent)
	for _, path := range stay {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s is gone: %v", path, err)
		}
	}
	for _, path := range gone {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", path, err)
		}
	}
}

func TestASocketDirectoryIsItsHostsUntilItIsRemoved(t *testing.T) {
	t.Parallel()
	d, err := newSocketDir()
	must(t, err)
	removeIfAbandoned(d.path)
	if _, err := os.Stat(d.path); err != nil {
		t.Fatal(err)
	}
	d.remove()
	d.remove()
	if _, err := os.Stat(d.path); !os.IsNotExist(err) {
		t.Errorf("it is there: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
