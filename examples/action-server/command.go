package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	// outputHalf is how many bytes are kept from each end of a command's output.
	outputHalf = 128 << 10
	// pipeGrace is how long output is read after the command's shell has ended. A background process may keep the pipe
	// open forever.
	pipeGrace = 250 * time.Millisecond
)

type commandResult struct {
	output   string
	exitCode int
	pid      int
	// note tells people why the command has no exit code of its own.
	note string
}

// command runs a command line in a shell with its own process group. When the timeout passes or ctx ends, the whole
// group is killed. Background processes of a command that ended by itself go on until the server stops. They should not
// write to the output, which is closed.
func (s *server) command(ctx context.Context, line, dir string, timeout time.Duration) (commandResult, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var output boundedOutput
	shell := exec.CommandContext(limited, shellPath(), "-c", line)
	shell.Dir = dir
	shell.Stdout, shell.Stderr = &output, &output
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	shell.Cancel = func() error { return endGroup(shell.Process.Pid) }
	shell.WaitDelay = pipeGrace
	if err := shell.Start(); err != nil {
		return commandResult{}, err
	}
	_ = shell.Wait() // the process state and limited have the result
	group := shell.Process.Pid

	result := commandResult{output: output.String(), exitCode: exitCode(shell.ProcessState), pid: group}
	switch {
	case limited.Err() == nil:
		s.keepLeftovers(group)
		return result, nil
	case ctx.Err() != nil:
		result.note = "\n[The command was ended because the client or the server stopped.]"
	default:
		result.note = fmt.Sprintf("\n[The command was ended because it ran longer than %s.]", timeout)
	}
	_ = endGroup(group) // even if the shell ended before the timeout
	result.exitCode = -1
	return result, nil
}

func shellPath() string {
	if path, err := exec.LookPath("bash"); err == nil {
		return path
	}
	return "/bin/sh"
}

func exitCode(state *os.ProcessState) int {
	if status := state.Sys().(syscall.WaitStatus); status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

func endGroup(group int) error { return syscall.Kill(-group, syscall.SIGKILL) }

// keepLeftovers remembers a group that still has processes, and drops those that are empty.
func (s *server) keepLeftovers(group int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.leftovers[group] = true
	for group := range s.leftovers {
		if syscall.Kill(-group, 0) != nil {
			delete(s.leftovers, group)
		}
	}
}

// endLeftovers kills the background processes of commands.
func (s *server) endLeftovers() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for group := range s.leftovers {
		_ = endGroup(group)
	}
}

// boundedOutput keeps the beginning and the end of what is written to it.
type boundedOutput struct {
	head, tail []byte
	dropped    int
}

func (b *boundedOutput) Write(p []byte) (int, error) {
	written := len(p)
	n := min(len(p), outputHalf-len(b.head))
	b.head = append(b.head, p[:n]...)
	b.tail = append(b.tail, p[n:]...)
	if excess := len(b.tail) - outputHalf; excess > outputHalf { // trim from time to time, not at every write
		b.drop(excess)
	}
	return written, nil
}

func (b *boundedOutput) drop(n int) {
	b.tail = b.tail[:copy(b.tail, b.tail[n:])]
	b.dropped += n
}

// String returns what was kept, as valid UTF-8 without trailing line breaks.
func (b *boundedOutput) String() string {
	if excess := len(b.tail) - outputHalf; excess > 0 {
		b.drop(excess)
	}
	text := string(b.head)
	if b.dropped > 0 {
		text += fmt.Sprintf("\n[... %d bytes of output left out ...]\n", b.dropped)
	}
	return strings.TrimRight(strings.ToValidUTF8(text+string(b.tail), "\uFFFD"), "\r\n")
}
