package keeper

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// killTime is how long the kernel may take to end what was killed.
const killTime = 5 * time.Second

// server is a process that was started, with everything in its process group. When the process ends, the rest of its
// group is ended, too.
type server struct {
	spec Spec
	id   string

	// ended is closed when the process and its group are gone and the log is complete. exitCode is valid then.
	ended    chan struct{}
	exitCode int

	mutex sync.Mutex
	// group is the process group's number, 0 once it may belong to somebody else.
	group int
}

// startServer starts a server of the sandbox id. What it prints goes to log.
func startServer(id string, spec Spec, log io.Writer) (*server, error) {
	output, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	command := &exec.Cmd{
		Path: spec.Path, Args: spec.Args, Env: spec.Env, Dir: spec.Dir,
		Stdout: input, Stderr: input, SysProcAttr: serverProcess(),
	}
	s := &server{spec: spec, id: id, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel ends the server when the thread that started it ends, so that it ends with the keeper. This
		// thread therefore lives, and does nothing else, until the server has ended.
		runtime.LockOSThread()
		err := command.Start()
		input.Close()
		if err == nil {
			s.group = command.Process.Pid
		}
		started <- err
		if err == nil {
			s.wait(command, output, log)
		}
	}()
	if err := <-started; err != nil {
		output.Close()
		return nil, err
	}
	return s, nil
}

// wait returns when the server has ended, all of it.
func (s *server) wait(command *exec.Cmd, output *os.File, log io.Writer) {
	defer close(s.ended)
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(log, output) // it ends with the last process that can write
		close(copied)
	}()

	group := command.Process.Pid
	if awaitExit(group) {
		s.signal(syscall.SIGKILL)
		s.forgetGroup()
	}
	_ = command.Wait() // its result is in ProcessState
	s.forgetGroup()
	s.exitCode = exitCode(command.ProcessState)
	Sweep(s.id)
	awaitEmpty(group)

	select {
	case <-copied:
	case <-time.After(time.Second): // a process that is not ours to end has the pipe open
		_ = output.SetReadDeadline(time.Now())
		<-copied
	}
	output.Close()
}

// stop asks the server to end, and kills it after grace. It returns when nothing of the server is left.
func (s *server) stop(grace time.Duration) error {
	if s.spec.Isolated {
		// The group starts with bwrap, which would kill the server before it can end by itself.
		signalStrays(s.id, syscall.SIGTERM)
	} else {
		s.signal(syscall.SIGTERM)
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(grace):
		s.signal(syscall.SIGKILL)
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(killTime):
		return errors.New("the server's processes do not end, although they were killed")
	}
}

func (s *server) running() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

func (s *server) signal(signal syscall.Signal) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.group != 0 {
		_ = syscall.Kill(-s.group, signal) // the group may have ended by itself
	}
}

// forgetGroup must be called before the process is reaped: after that, its number may be reused.
func (s *server) forgetGroup() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.group = 0
}

// awaitEmpty waits until nothing runs in a process group that was killed.
func awaitEmpty(group int) {
	for deadline := time.Now().Add(killTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if syscall.Kill(-group, 0) != nil || onlyZombies(group) {
			return
		}
	}
}

// exitCode is the code a shell would show: 128 and the signal for a process that was killed.
func exitCode(state *os.ProcessState) int {
	status, ok := state.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}
