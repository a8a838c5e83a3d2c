package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Lock waits until no other process or goroutine is changing the sandbox with that name. The kernel releases the lock
// of a process that dies.
func (s Store) Lock(ctx context.Context, name string) (unlock func(), err error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		unlock, err := s.tryLock(name)
		if err != nil {
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
		if unlock != nil {
			return unlock, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another change of %s to end: %w", name, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// tryLock returns nil if somebody else has the lock. The file exists only while it is locked.
func (s Store) tryLock(name string) (unlock func(), err error) {
	path := filepath.Join(s.Root, "locks", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	file, err := Open(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	locked, err := flock(file, syscall.LOCK_EX)
	if !locked || err != nil || !isAt(file, path) { // the previous owner may have removed the file that was opened
		file.Close()
		return nil, err
	}
	return func() {
		os.Remove(path)
		release(file)
	}, nil
}

// LockKeeper takes the lock of a sandbox's keeper, or returns nil if there is a living keeper. The lock belongs to the
// open file: a keeper inherits it and keeps it until it exits.
func (s Store) LockKeeper(id string) (*os.File, error) { return s.lockKeeper(id, syscall.LOCK_EX) }

// KeeperLives reports whether a sandbox has a living keeper, or a process is about to start or replace it.
func (s Store) KeeperLives(id string) (bool, error) {
	file, err := s.lockKeeper(id, syscall.LOCK_SH)
	if file != nil {
		release(file)
	}
	return file == nil && err == nil, err
}

func (s Store) lockKeeper(id string, how int) (*os.File, error) {
	path := filepath.Join(s.Dir(id), "keeper.lock")
	file, err := Open(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	locked, err := flock(file, how)
	if err == nil && locked && !isAt(file, path) {
		err = &fs.PathError{Op: "lock", Path: path, Err: fs.ErrNotExist} // the sandbox was erased meanwhile
	}
	if !locked || err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func flock(file *os.File, how int) (locked bool, err error) {
	err = syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// release unlocks at once, even if a process that is just being started has a copy of the descriptor.
func release(file *os.File) {
	_ = syscall.Flock(int(file.Fd()), syscall.LOCK_UN) // closing does the same, but later
	file.Close()
}

func isAt(file *os.File, path string) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	present, err := os.Stat(path)
	return err == nil && os.SameFile(opened, present)
}
