// Package stdio knows whether the process was started with a standard output.
//
// Go's runtime opens /dev/null in place of a standard stream that is closed, before any Go code runs. Whatever is written
// there then seems to have arrived. So on Linux the process begins a few instructions earlier: the linker is told to,
// with -E berth_entry, by the Makefile. A binary that is linked without it takes a closed output for /dev/null.
package stdio

import (
	"io"
	"io/fs"
	"os"
	"syscall"
)

// stdoutFlags is what fcntl(1, F_GETFD) returned when the process began: an error number, negated, if it was closed.
var stdoutFlags int64

// Stdout returns the standard output. Writing to it fails if the process was started without one.
func Stdout() io.Writer {
	if stdoutFlags < 0 {
		return closed{}
	}
	return os.Stdout
}

type closed struct{}

func (closed) Write([]byte) (int, error) {
	return 0, &fs.PathError{Op: "write", Path: os.Stdout.Name(), Err: syscall.EBADF}
}
