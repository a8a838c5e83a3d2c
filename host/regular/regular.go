// Package regular opens the files that berth reads and locks. A path may lead to something that only looks like a file: a
// pipe that nobody writes to, a device without an end, a directory. Those are refused at once instead of being waited for.
package regular

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Open opens a regular file for reading.
func Open(path string) (*os.File, error) { return OpenFile(path, os.O_RDONLY, 0) }

// OpenFile opens a regular file as os.OpenFile does. Anything else at the path, also behind a symbolic link, is an
// *fs.PathError that says what it is. It never waits for another process.
func OpenFile(path string, flag int, perm os.FileMode) (*os.File, error) {
	file, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, perm) // opening a pipe would wait for its other end
	if err != nil {
		if info, failed := os.Stat(path); failed == nil && !info.Mode().IsRegular() {
			return nil, irregular(path, info.Mode()) // the system's error is that of the attempt, such as "no such device"
		}
		if Dangling(path) {
			err = &fs.PathError{Op: "open", Path: path, Err: errDangling} // a file that is away is not one that never was
		}
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = irregular(path, info.Mode())
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Dangling reports whether the path is a symbolic link to nothing, such as to a disk that is not mounted.
func Dangling(path string) bool {
	_, missing := os.Stat(path)
	_, err := os.Lstat(path)
	return err == nil && errors.Is(missing, fs.ErrNotExist)
}

var errDangling = errors.New("it is a symbolic link to nothing")

// Read returns the content of a regular file of at most limit bytes.
func Read(path string, limit int64) ([]byte, error) {
	file, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("it is longer than %s", size(limit))}
	}
	return content, nil
}

// ErrIrregular is the cause of every refusal of something that is no regular file.
var ErrIrregular = errors.New("not a regular file")

func irregular(path string, mode fs.FileMode) error {
	what := "something else"
	switch mode.Type() {
	case fs.ModeDir:
		what = "a directory"
	case fs.ModeNamedPipe:
		what = "a pipe"
	case fs.ModeSocket:
		what = "a socket"
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		what = "a device"
	}
	return &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("it is %s, %w", what, ErrIrregular)}
}

func size(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
