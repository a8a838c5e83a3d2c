package simcloud

import (
	"context"
	"io"
	"os"
	"syscall"
)

// ExecSpec is a command to run in a box.
type ExecSpec struct {
	Argv  []string          // Argv[0] is looked up in the box's PATH
	Env   map[string]string // added to the box's
	Dir   string            // the working directory inside the box; the default is the home directory
	Stdin bool              // connect Process.Stdin; otherwise the process's stdin is empty
	UID   int               // the user and the group; the default, and where the simulator is not root, is root
}

// Process is a command in a box, in a process group of its own.
type Process struct {
	PID    int            // of the process and its group, inside the box
	Output *Output        // of the process and its children
	Stdin  io.WriteCloser // nil unless ExecSpec.Stdin is set; closed when the process ends

	machine *machine
	outputs []*os.File // our ends of stdout and stderr
	exited  chan struct{}
	exit    Exit // valid once exited is closed
}

// Exit describes how a process ended.
type Exit struct {
	Code   int            // the exit code, or -1 if a signal ended the process
	Signal syscall.Signal // the signal that ended it, or 0; SIGKILL if the box was stopped
}

// Exited returns a channel that is closed when the process has ended and its output is complete.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Wait waits for the end of the process, but not for its children. Its error is ctx's.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.exited:
	case <-ctx.Done():
		if _, ended := p.Exit(); !ended {
			return Exit{}, ctx.Err()
		}
	}
	return p.exit, nil
}

// Exit returns how the process ended. It returns false while the process runs.
func (p *Process) Exit() (Exit, bool) {
	select {
	case <-p.exited:
		return p.exit, true
	default:
		return Exit{}, false
	}
}

// Signal signals only the process. It returns os.ErrProcessDone if it has ended.
func (p *Process) Signal(ctx context.Context, signal syscall.Signal) error {
	return p.machine.signal(ctx, p.PID, signal)
}

// SignalGroup signals the process's group, which includes its children unless they left it, even after the process has
// ended. It returns os.ErrProcessDone if the group is empty.
func (p *Process) SignalGroup(ctx context.Context, signal syscall.Signal) error {
	return p.machine.signal(ctx, -p.PID, signal)
}
