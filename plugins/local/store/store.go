// Package store implements the local provider's tree on disk. The provider has no other state: any number of processes
// share the tree, and each may be killed at any time.
//
//	ROOT/sandboxes/ID/          a sandbox, which exists as long as this directory does
//	    sandbox.json            its Record
//	    work/                   the server's home and working directory
//	    server.log server.log.1 the server's output
//	    keeper.json             how to reach its keeper
//	    keeper.lock             locked while the keeper lives
//	    keeper.log              errors of the keeper
//	ROOT/ports/PORT             a symbolic link to the sandbox for which the port is reserved
//	ROOT/locks/NAME             locked while the sandbox of one session is being changed
//	ROOT/pending/ID             a sandbox that is being created or removed
//
// A sandbox appears complete, by one rename from pending/, and disappears by one rename back. Its ID is the name
// derived from owner and session, by which every process finds it, and a random part that tells a new sandbox from an
// old one.
package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// Store is a tree on disk. It is empty until the first sandbox is created.
type Store struct {
	// Root is an absolute path.
	Root string
}

// Record describes a sandbox. Whoever writes it must have locked the session.
type Record struct {
	ID      string            `json:"id"`
	Session string            `json:"session"`
	Owner   string            `json:"owner"`
	Attempt string            `json:"attempt"`
	Labels  map[string]string `json:"labels,omitempty"`
	// CreatedAt and ExpiresAt are wall-clock times; a zero ExpiresAt means never.
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// Port and ExtraPorts are the loopback ports reserved for the sandbox; zero before its first server.
	Port       int            `json:"port,omitempty"`
	ExtraPorts map[string]int `json:"extra_ports,omitempty"`
}

// Expired reports whether the sandbox has expired.
func (r Record) Expired() bool { return !r.ExpiresAt.IsZero() && !time.Now().Before(r.ExpiresAt) }

var idPattern = regexp.MustCompile(`^berth-[a-z0-9-]*-[0-9a-f]{16}-[0-9a-f]{8}$`)

const suffixLength = len("-01234567")

// NewID returns a new ID for a sandbox of the session with that name (provider.SandboxName).
func NewID(name string) string {
	random := make([]byte, 4)
	rand.Read(random)
	return name + "-" + hex.EncodeToString(random)
}

// NameOf returns the session's part of an ID.
func NameOf(id string) string { return id[:len(id)-suffixLength] }

// Dir returns the directory of a sandbox.
func (s Store) Dir(id string) string { return filepath.Join(s.Root, "sandboxes", id) }

// WorkDir returns the home and working directory of a sandbox's server.
func (s Store) WorkDir(id string) string { return filepath.Join(s.Dir(id), "work") }

// ServerLog returns the path of the log of a sandbox's server.
func (s Store) ServerLog(id string) string { return filepath.Join(s.Dir(id), "server.log") }

// IDs returns the IDs of all sandboxes.
func (s Store) IDs() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.Root, "sandboxes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, entry := range entries {
		if entry.IsDir() && idPattern.MatchString(entry.Name()) {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}

// Find returns the ID of the sandbox with that name, or "" if there is none.
func (s Store) Find(name string) (string, error) {
	ids, err := s.IDs()
	for _, id := range ids {
		if NameOf(id) == name {
			return id, nil
		}
	}
	return "", err
}

// Load reads a sandbox's record. If there is no such sandbox, the error is fs.ErrNotExist, even if the ID is malformed.
func (s Store) Load(id string) (Record, error) {
	if !idPattern.MatchString(id) {
		return Record{}, fs.ErrNotExist
	}
	var record Record
	err := ReadJSON(filepath.Join(s.Dir(id), "sandbox.json"), &record)
	return record, err
}

// Save replaces the record of an existing sandbox. The caller must have locked the session.
func (s Store) Save(record Record) error {
	return WriteJSON(filepath.Join(s.Dir(record.ID), "sandbox.json"), record)
}

// Publish creates a sandbox. The caller must have locked the session.
func (s Store) Publish(record Record) error {
	pending := filepath.Join(s.Root, "pending", record.ID)
	if err := os.MkdirAll(filepath.Join(pending, "work"), 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.Root, "sandboxes"), 0o700); err != nil {
		return err
	}
	if err := WriteJSON(filepath.Join(pending, "sandbox.json"), record); err != nil {
		return err
	}
	return os.Rename(pending, s.Dir(record.ID))
}

// Erase removes a sandbox whose processes have ended, and releases its ports. The caller must have locked the session
// and the keeper's lock.
func (s Store) Erase(ctx context.Context, id string) error {
	pending := filepath.Join(s.Root, "pending", id)
	if err := os.MkdirAll(filepath.Dir(pending), 0o700); err != nil {
		return err
	}
	if err := os.Rename(s.Dir(id), pending); err != nil {
		return err
	}
	return errors.Join(s.releasePorts(ctx, id), removeTree(pending))
}

// RemoveLeftovers removes what killed processes left half created or half removed. It never waits, and skips what is in
// use.
func (s Store) RemoveLeftovers() error {
	locks, _ := os.ReadDir(filepath.Join(s.Root, "locks"))
	for _, entry := range locks {
		if unlock, err := s.tryLock(entry.Name()); err == nil && unlock != nil {
			unlock()
		}
	}
	pending, _ := os.ReadDir(filepath.Join(s.Root, "pending"))
	var problems []error
	for _, entry := range pending {
		if !idPattern.MatchString(entry.Name()) {
			continue
		}
		if unlock, err := s.tryLock(NameOf(entry.Name())); err == nil && unlock != nil {
			problems = append(problems, removeTree(filepath.Join(s.Root, "pending", entry.Name())))
			unlock()
		}
	}
	return errors.Join(problems...)
}

// removeTree removes a directory, even if its owner revoked his own right to do so, as module caches do.
func removeTree(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, _ error) error {
		if entry != nil && entry.IsDir() {
			_ = os.Chmod(path, 0o700) // the second attempt reports what this cannot fix
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// WriteJSON replaces a file atomically. Only its owner can read it.
func WriteJSON(path string, value any) error {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = file.Write(append(content, '\n'))
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
	}
	return err
}

// ReadJSON reads a file written by WriteJSON.
func ReadJSON(path string, value any) error {
	content, err := ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(content, value); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Open is os.OpenFile for regular files. It refuses whatever else stands there, such as a pipe, on which everybody would wait.
func Open(path string, flag int, mode fs.FileMode) (*os.File, error) {
	file, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, mode)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// ReadFile is os.ReadFile for regular files, as Open is.
func ReadFile(path string) ([]byte, error) {
	file, err := Open(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(file)
}
