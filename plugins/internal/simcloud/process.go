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
	Dir   string            // the working directory inside the box. Empty: the home directory
	Stdin bool              // give the process a Stdin to write to; otherwise it reads nothing
}

// Process is a command that was started in a box, in a process group of its own.
type Process struct {
	PID    int            // its number, and its group's, inside the box
	Output *Output        // what it and its children printed
	Stdin  io.WriteCloser // nil unless ExecSpec.Stdin. Closed when the process ends

	machine *machine
	outputs []*os.File // our ends of stdout and stderr
	exited  chan struct{}
	exit    Exit // valid once exited is closed
}

// Exit is how a process ended.
type Exit struct {
	Code   int            // its exit code; -1 if a signal ended it
	Signal syscall.Signal // the signal that ended it, or 0. A box that stops kills
}

// Exited is closed when the process has ended and what it printed is in its Output.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Wait waits for the end of the process; children it left behind may go on. The error is ctx's.
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

// Exit says how the process ended; false while it runs.
func (p *Process) Exit() (Exit, bool) {
	select {
	case <-p.exited:
		return p.exit, true
	default:
		return Exit{}, false
	}
}

// Signal signals the process alone. os.ErrProcessDone if it has ended.
func (p *Process) Signal(ctx context.Context, signal syscall.Signal) error {
	return p.machine.signal(ctx, p.PID, signal)
}

// SignalGroup signals the process's group: what it started and left in its group too, also after its own end.
// os.ErrProcessDone if none is left.
func (p *Process) SignalGroup(ctx context.Context, signal syscall.Signal) error {
	return p.machine.signal(ctx, -p.PID, signal)
}
