//go:build !linux

package simcloud

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
)

func findIsolation() (mode, error) {
	return 0, fmt.Errorf("%w: they need Linux, this is %s", ErrNoIsolation, runtime.GOOS)
}

func keepBox(string) int {
	fmt.Fprintln(os.Stderr, ErrNoIsolation)
	return 1
}

func searchPath(BoxOptions) string { return "" }

// machine exists only for the compiler: startMachine always fails.
type machine struct{}

func startMachine(context.Context, mode, BoxOptions) (*machine, error) { return nil, ErrNoIsolation }

func (*machine) exec(context.Context, ExecSpec, []string) (*Process, error) {
	return nil, ErrNoIsolation
}
func (*machine) dial(context.Context, *net.TCPAddr) (net.Conn, error) { return nil, ErrNoIsolation }
func (*machine) signal(context.Context, int, syscall.Signal) error    { return ErrNoIsolation }
func (*machine) listening(int) bool                                   { return false }
func (*machine) close()                                               {}
