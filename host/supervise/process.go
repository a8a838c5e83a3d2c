package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// pipeGrace is how long output is read after the process ended. Usually the output ends too, but a child outside
	// the process group may keep it open forever.
	pipeGrace = 200 * time.Millisecond
	// startAttempts and startPause bridge the moment in which a newly installed file is still open for writing.
	startAttempts = 5
	startPause    = 100 * time.Millisecond
)

// process is one run of a plugin's executable, and implements go-plugin's runner. go-plugin reads only the handshake
// line; all other output goes to out. The process leads its own process group, which is killed as a whole. The end of
// its private stdin tells the process to exit, and comes also when the host dies.
type process struct {
	mtls bool // the handshake must include a certificate
	out  *output

	// Set before the start.
	path string
	dir  string   // for its socket
	env  []string // complete: nothing is inherited

	// Both ends of the pipes that go-plugin takes for the plugin's stdout and stderr.
	handshake, silence             *io.PipeReader
	handshakeWriter, silenceWriter *io.PipeWriter

	done chan struct{} // closed when the process has ended and its output was read

	mu      sync.Mutex
	running *os.Process      // nil before the start and after the end
	pid     int              // 0 before the start
	stdin   io.Closer        // nil before the start
	end     *os.ProcessState // nil until the end
	killed  bool             // also prevents a start
	why     string           // why it was killed, if there is a reason to report
	refused string           // what is wrong with the handshake line
}

func newProcess(mtls bool, out *output) *process {
	p := &process{mtls: mtls, out: out, done: make(chan struct{})}
	p.handshake, p.handshakeWriter = io.Pipe()
	p.silence, p.silenceWriter = io.Pipe()
	return p
}

// Start runs the executable.
func (p *process) Start(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := p.start()
		if !errors.Is(err, syscall.ETXTBSY) || attempt == startAttempts {
			return err
		}
		select {
		case <-time.After(startPause):
		case <-ctx.Done():
			return err
		}
	}
}

func (p *process) start() error {
	keepDescriptors()
	command := &exec.Cmd{Path: p.path, Args: []string{p.path}, Env: p.env, SysProcAttr: processAttributes()}
	stdin, err := command.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	stderr, err := command.StderrPipe()
	if err != nil {
		return err
	}
	started := make(chan error)
	go func() {
		// The kernel ties the parent's death signal to the thread that started the child, so that thread must live as
		// long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.launch(command, stdin)
		started <- err
		if err == nil {
			p.wait(command.Process, stdout, stderr)
		}
	}()
	return <-started
}

func (p *process) launch(command *exec.Cmd, stdin io.Closer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		return errors.New("it was stopped before it was started")
	}
	if err := command.Start(); err != nil {
		return err
	}
	p.running, p.pid, p.stdin = command.Process, command.Process.Pid, stdin
	return nil
}

// wait waits for the end of the process. It does not use the command's Wait, which would also wait for any other
// process that has the pipes open.
func (p *process) wait(running *os.Process, stdout, stderr io.ReadCloser) {
	var readers sync.WaitGroup
	readers.Go(func() { p.readStdout(stdout) })
	readers.Go(func() { p.out.copyFrom(stderr) })

	end, _ := running.Wait()
	p.mu.Lock()
	p.running, p.end = nil, end // from now on the pid may belong to another process
	p.mu.Unlock()
	_ = syscall.Kill(-p.pid, syscall.SIGKILL) // kills the children left in its group

	cut := time.AfterFunc(pipeGrace, func() {
		stdout.Close()
		stderr.Close()
	})
	readers.Wait()
	cut.Stop()
	stdout.Close()
	stderr.Close()
	p.stdin.Close()
	close(p.done)
	p.handshakeWriter.Close()
	p.silenceWriter.Close()
}

// readStdout passes on a correct handshake and logs everything else that the plugin prints.
func (p *process) readStdout(stdout io.Reader) {
	reader := bufio.NewReaderSize(stdout, maxLine)
	line, _ := reader.ReadSlice('\n')
	if len(line) > 0 {
		if problem := handshakeProblem(string(line), p.mtls); problem != "" {
			p.refuse(problem)
		} else {
			_, _ = p.handshakeWriter.Write(line) // fails if nobody waits for it any more
		}
	}
	p.out.copyFrom(reader)
}

func (p *process) refuse(problem string) {
	p.mu.Lock()
	p.refused = problem
	p.mu.Unlock()
	p.kill("")
}

// Wait returns when the process has ended. It returns no error: see ending.
func (p *process) Wait(context.Context) error {
	<-p.done
	return nil
}

// Kill kills the process group at once.
func (p *process) Kill(context.Context) error {
	p.kill("")
	return nil
}

// kill kills the process group at once, or prevents the process from being started. why is shown to users; only the
// first reason is kept. It may be called at any time, repeatedly.
func (p *process) kill(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end != nil {
		return
	}
	p.killed = true
	if p.why == "" {
		p.why = why
	}
	if p.running != nil {
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		_ = p.running.Kill() // if it left its own group
	}
}

// closeStdin asks the process to exit.
func (p *process) closeStdin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stdin != nil {
		p.stdin.Close()
	}
}

// ending describes how the process ended: "exit status 3", "signal: killed (it did not answer ...)".
func (p *process) ending() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.end == nil:
		return "still running"
	case p.why != "":
		return fmt.Sprintf("%s (%s)", p.end, p.why)
	}
	return p.end.String()
}

// endedByItself reports whether the process ended without being killed by the host.
func (p *process) endedByItself() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end != nil && !p.killed
}

func (p *process) handshakeRefused() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// id returns the process id, or 0 before the start.
func (p *process) id() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// ID returns the process id, or "" before the start.
func (p *process) ID() string {
	if id := p.id(); id != 0 {
		return strconv.Itoa(id)
	}
	return ""
}

// Stdout returns the stream with the handshake line.
func (p *process) Stdout() io.ReadCloser { return p.handshake }

// Stderr returns an empty stream: go-plugin's reader panics on lines it does not expect.
func (p *process) Stderr() io.ReadCloser { return p.silence }

// Name returns the executable's path.
func (p *process) Name() string { return p.path }

// Diagnose returns nothing: see connection.startProblem.
func (p *process) Diagnose(context.Context) string { return "" }
