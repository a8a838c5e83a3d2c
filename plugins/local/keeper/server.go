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

// killTime is how long the kernel may take to end killed processes.
const killTime = 5 * time.Second

// server is a started process with its process group. When the process ends, the rest of its group is killed.
type server struct {
	spec   Spec
	family *family

	// ended is closed when the process and its group are gone and the log is complete. Then exitCode is valid.
	ended    chan struct{}
	exitCode int

	mutex sync.Mutex
	// group is the process group, or 0 once the number may belong to somebody else.
	group int
}

// family is what a keeper knows of the processes that descend from it.
type family struct {
	// mark is the value of Mark.
	mark string
	// mutex is locked while a server is started or collected, so that nobody else collects it.
	mutex  sync.Mutex
	server int // the server's process number until it is collected, or 0
}

// start starts a server and copies its output to log.
func (f *family) start(spec Spec, log io.Writer) (*server, error) {
	output, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	command := &exec.Cmd{
		Path: spec.Path, Args: spec.Args, Env: append(spec.Env, Mark+"="+f.mark), Dir: spec.Dir,
		Stdout: input, Stderr: input, SysProcAttr: serverProcess(),
	}
	s := &server{spec: spec, family: f, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel kills the server when the thread that started it ends, so that it ends with the keeper. Therefore
		// this thread lives, and does nothing else, until the server has ended.
		runtime.LockOSThread()
		f.mutex.Lock()
		err := command.Start()
		if err == nil {
			s.group, f.server = command.Process.Pid, command.Process.Pid
		}
		f.mutex.Unlock()
		input.Close()
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

// wait returns when the server has ended with all its processes.
func (s *server) wait(command *exec.Cmd, output *os.File, log io.Writer) {
	defer close(s.ended)
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(log, output) // until the last process that can write has ended
		close(copied)
	}()

	group := command.Process.Pid
	if awaitExit(group) {
		s.signal(syscall.SIGKILL)
		s.forgetGroup()
	}
	s.family.collect(command)
	s.forgetGroup()
	s.exitCode = exitCode(command.ProcessState)
	sweep(s.family.mark)
	s.family.reap() // what ended before the server was collected may have been missed
	awaitEmpty(group)

	select {
	case <-copied:
	case <-time.After(time.Second): // a process outside the group has the pipe open
		_ = output.SetReadDeadline(time.Now())
		<-copied
	}
	output.Close()
}

// collect takes over the exit code of the server, which has ended.
func (f *family) collect(command *exec.Cmd) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	_ = command.Wait() // the result is in ProcessState
	f.server = 0
}

// stop asks the server to exit, and kills it after grace. It returns when none of its processes is left.
func (s *server) stop(grace time.Duration) error {
	if s.spec.Isolated {
		// The group's leader is bwrap, which would kill the server before it can exit by itself.
		s.signalInner(syscall.SIGTERM)
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
		_ = syscall.Kill(-s.group, signal) // the group may have ended already
	}
}

// signalInner signals what runs inside the server's isolation.
func (s *server) signalInner(signal syscall.Signal) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.group != 0 {
		mark := s.family.mark
		signalAll(inner(s.group, mark), func(pid int) bool { return descends(pid, mark) }, signal)
	}
}

// forgetGroup must be called before the process is reaped, because its number may be reused afterwards.
func (s *server) forgetGroup() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.group = 0
}

// awaitEmpty waits until a process group that was killed is empty.
func awaitEmpty(group int) {
	for deadline := time.Now().Add(killTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if syscall.Kill(-group, 0) != nil {
			return
		}
	}
}

// exitCode returns the code that a shell would show: 128 plus the signal for a process that was killed.
func exitCode(state *os.ProcessState) int {
	status, ok := state.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}
