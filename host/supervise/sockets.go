package supervise

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/berth-dev/berth/host/regular"
)

const (
	// maxSocketPath is the longest path of a unix socket, in bytes, that all supported systems allow.
	maxSocketPath = 103
	// ownerLock is the file in a socket's directory that its host has locked. The kernel drops the lock when the host dies,
	// however it dies, and a plugin does not inherit it.
	ownerLock = "owner"
	// makingTime is far longer than a directory is without its lock while it is made.
	makingTime = time.Hour
)

// socketDir is a directory for one plugin's socket that only this user can enter.
type socketDir struct {
	path string
	lock *os.File
}

// cleanOnce removes at the first plugin of a process what dead hosts have left.
var cleanOnce = sync.OnceFunc(RemoveAbandoned)

// newSocketDir makes a directory. The caller removes it.
func newSocketDir() (*socketDir, error) {
	cleanOnce()
	var err error
	for _, parent := range socketParents() {
		var dir string
		if dir, err = os.MkdirTemp(parent, "berth-"); err != nil {
			continue
		}
		path := filepath.Join(dir, "plugin1234567890")
		if len(path) > maxSocketPath {
			os.Remove(dir)
			err = fmt.Errorf("the path of the plugin's socket, %s, would have %d bytes, and at most %d are possible: "+
				"set TMPDIR to a shorter directory", path, len(path), maxSocketPath)
			continue
		}
		var lock *os.File
		if lock, err = lockOwned(dir); err == nil {
			return &socketDir{dir, lock}, nil
		}
		os.RemoveAll(dir)
	}
	return nil, fmt.Errorf("making a directory for the plugin's socket: %w", err)
}

// lockOwned makes the lock of a new directory. It is locked before it has its name: nobody sees it without its owner.
func lockOwned(dir string) (*os.File, error) {
	path := filepath.Join(dir, ownerLock)
	lock, err := regular.OpenFile(path+".new", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
		err = os.Rename(lock.Name(), path)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// remove removes the directory and what is in it. It may be called more than once.
func (d *socketDir) remove() {
	os.RemoveAll(d.path)
	d.lock.Close()
}

func socketParents() []string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return []string{dir, os.TempDir()}
	}
	return []string{os.TempDir()}
}

var socketDirName = regexp.MustCompile(`^berth-[0-9]+$`)

// RemoveAbandoned removes the socket directories of this user's hosts that have died: those whose lock nobody has. Whatever
// may be another's, or alive, stays. What cannot be removed stays for the next time.
func RemoveAbandoned() {
	for _, parent := range socketParents() {
		removeAbandonedIn(parent)
	}
}

func removeAbandonedIn(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if entry.IsDir() && socketDirName.MatchString(entry.Name()) {
			removeIfAbandoned(filepath.Join(parent, entry.Name()))
		}
	}
}

func removeIfAbandoned(dir string) {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || !isOwn(info) {
		return
	}
	lock, err := regular.OpenFile(filepath.Join(dir, ownerLock), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		if time.Since(info.ModTime()) > makingTime {
			os.Remove(filepath.Join(dir, ownerLock+".new"))
			os.Remove(dir) // only if it is empty: its host died in the moment before it had the lock
		}
		return
	}
	if err != nil {
		return
	}
	defer lock.Close()
	if info, err := lock.Stat(); err != nil || !isOwn(info) {
		return
	}
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		os.RemoveAll(dir)
	}
}

// isOwn reports whether a file belongs to this user.
func isOwn(info os.FileInfo) bool {
	system, known := info.Sys().(*syscall.Stat_t)
	return known && int(system.Uid) == os.Getuid()
}
