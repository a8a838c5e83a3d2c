package cli_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stuckPipe returns the end of a pipe that is full and that nobody reads.
func stuckPipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	must(t, w.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
	for err == nil {
		_, err = w.Write(make([]byte, 4096))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	w.Fd() // blocking again, as programs have it
	return w
}

// pipeWithoutReader returns the end of a pipe whose reader has gone.
func pipeWithoutReader(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	r.Close()
	t.Cleanup(func() { w.Close() })
	return w
}

// fullDevice returns a file on a disk that is full.
func fullDevice(t *testing.T) *os.File {
	t.Helper()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("/dev/full is missing, which stands for a full disk: %v", err)
	}
	t.Cleanup(func() { full.Close() })
	return full
}

// failingOutputs are the ways in which an output does not take what is written to it.
var failingOutputs = map[string]func(*testing.T) *os.File{
	"full": fullDevice, "without a reader": pipeWithoutReader, "not read": stuckPipe,
}

func TestAConnectThatNobodyIsToldOfIsUndone(t *testing.T) {
	t.Parallel()
	for name, output := range failingOutputs {
		for _, form := range []string{"json", "text", "env"} {
			t.Run(name+", "+form, func(t *testing.T) {
				t.Parallel()
				m := newMachine(t)
				m.configureMock()
				c := m.prepare("connect", "s1", "-o", form)
				c.exec.Stdout = output(t)
				must(t, c.exec.Start())
				code, says := 9, "the result could not be written to standard output"
				if name == "not read" {
					c.saying("ready (").interrupt(syscall.SIGTERM)
					code, says = 130, "interrupted, undoing what was made"
				}
				r := c.wait()
				if r.code != code {
					t.Errorf("exit code %d: %s", r.code, r.stderr)
				}
				wants(t, r.stderr, says, "nothing of this attempt is left")
				if living := m.living("mock"); len(living) > 0 {
					t.Errorf("%v is left", living)
				}
				m.leavesNothing()
			})
		}
	}
}

func TestAConnectWithoutStandardOutputIsUndone(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("host/stdio is missing an entry for this system, so that a closed output looks like /dev/null")
	}
	m := newMachine(t)
	m.configureMock()
	c := m.prepare()
	c.exec.Args = []string{"sh", "-c", `exec "$0" connect s1 -o json >&-`, c.exec.Path}
	c.exec.Path = "/bin/sh"
	must(t, c.exec.Start())
	if r := c.wait(); r.code != 9 || !strings.Contains(r.stderr, "bad file descriptor") {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
	m.leavesNothing()

	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0) // as Python and Node discard an output
	must(t, err)
	defer null.Close()
	c = m.prepare("connect", "s1")
	c.exec.Stdout = null
	must(t, c.exec.Start())
	if r := c.wait(); r.code != 0 || len(m.living("mock")) != 1 {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
}

func TestWhatAnUndeliveredConnectFoundIsLeftAsItIsRecorded(t *testing.T) {
	t.Parallel()
	for _, suspended := range []bool{false, true} {
		m := newMachine(t)
		m.configureMock()
		id := m.connect("s1").Sandbox.ID
		if suspended {
			m.fine("disconnect", "s1", "--action", "suspend")
		}
		c := m.prepare("connect", "s1", "-o", "json", "--progress", "ndjson")
		c.exec.Stdout = pipeWithoutReader(t)
		must(t, c.exec.Start())
		r := c.wait()
		events := r.events(t)
		if last := events[len(events)-1]; r.code != 9 || last.Phase != "ready" || last.Status != "failed" {
			t.Errorf("exit code %d: %+v", r.code, events)
		}
		if s := m.sessions(); len(s) != 1 || s[0].SandboxID != id || s[0].State != "running" || len(m.living("mock")) != 1 {
			t.Errorf("%+v, and there are %v", s, m.living("mock"))
		}
	}
}

func TestAConnectThatDiesBeforeAnybodyWasToldIsRecovered(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	c := m.prepare("connect", "s1", "-o", "json")
	c.exec.Stdout = stuckPipe(t)
	must(t, c.exec.Start())
	c.saying("ready (").kill()
	m.fine("recover")
	if living := m.living("mock"); len(living) > 0 {
		t.Errorf("%v is left", living)
	}
	if s := m.sessions(); len(s) > 0 {
		t.Errorf("%+v", s)
	}
}

func TestAReaderOfStandardErrorCostsTextOnly(t *testing.T) {
	t.Parallel()
	for name, output := range failingOutputs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.configureMock()
			for _, line := range []string{
				"connect s1 -o json --log-level trace", "connect s1 -o json --progress ndjson", "ping s1 --log-level trace",
				"sessions --log-level trace", "disconnect s1 --log-level trace", "gc --log-level trace", "recover --log-level trace",
				"plugin describe mock --log-level trace",
			} {
				c := m.prepare(strings.Fields(line)...)
				c.exec.Stderr = output(t)
				must(t, c.exec.Start())
				if r := c.wait(); r.code != 0 || r.stdout == "" {
					t.Errorf("%s: exit code %d: %s", line, r.code, r.stdout)
				}
			}
			m.leavesNothing()
		})
	}
}

func TestAnOutputThatNobodyTakesKeepsNothingFromEnding(t *testing.T) {
	t.Parallel()
	for name, output := range failingOutputs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.configureMock(faults("ping=not_yet"))
			// ends runs a command, and terminates it when it is due.
			ends := func(line string, want int, due func(c *command) bool) {
				c := m.prepare(strings.Fields(line)...)
				c.exec.Stdout, c.exec.Stderr = output(t), output(t)
				must(t, c.exec.Start())
				c.began = time.Now()
				if due != nil {
					m.eventually("it is due", func() bool { return due(c) })
					_ = c.exec.Process.Signal(syscall.SIGTERM) // it may have ended by itself
				}
				began := time.Now()
				if r := c.wait(); want != 0 && r.code != want || r.code <= 0 || time.Since(began) > 15*time.Second {
					t.Errorf("%s: exit code %d after %s", line, r.code, time.Since(began))
				}
			}
			// Its plugin runs, or did so unseen, or it has ended: it knows what to do about signals.
			atWork := func(c *command) bool {
				all := m.processes()
				return time.Since(c.began) > 3*time.Second || slices.ContainsFunc(all, func(p process) bool { return p.parent == c.exec.Process.Pid }) ||
					!slices.ContainsFunc(all, func(p process) bool { return p.pid == c.exec.Process.Pid })
			}
			made := func(n int) func(*command) bool {
				return func(*command) bool { return len(m.living("mock")) == n }
			}
			m.fine("sessions") // there are records, so that the time is the connect's
			ends("connect s1 --timeout 2s --log-level trace", 124, nil)
			ends("connect s1 --log-level trace", 130, made(1))
			if living := m.living("mock"); len(living) > 0 {
				t.Errorf("%v is left", living)
			}
			m.configureMock()
			m.fine("connect", "s1")
			ends("sessions", 0, atWork)
			ends("hold s1 --log-level trace", 130, atWork)
			ends("plugin call mock List --timeout 5s", 9, nil)
			ends("disconnect s1", 0, made(0))
			m.fine("recover") // it may have been terminated before it had recorded the end
			m.leavesNothing()
		})
	}
}

func TestAReaderThatLeavesAfterALineCostsTextOnly(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	r, w, err := os.Pipe()
	must(t, err)
	c := m.prepare("connect", "s1", "--log-level", "trace") // 2>&1 | head -n1
	c.exec.Stdout, c.exec.Stderr = w, w
	must(t, c.exec.Start())
	w.Close()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if r := c.wait(); r.code != 9 {
		t.Errorf("exit code %d", r.code)
	}
	m.leavesNothing()
}

func TestAnInterruptedConnectWithoutReadersIsUndone(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock(faults("ping=not_yet"))
	c := m.prepare("connect", "s1", "-o", "json")
	c.exec.Stdout, c.exec.Stderr = pipeWithoutReader(t), pipeWithoutReader(t)
	must(t, c.exec.Start())
	m.eventually("there is a sandbox", func() bool { return len(m.living("mock")) == 1 })
	c.interrupt(syscall.SIGINT)
	if r := c.wait(); r.code != 130 {
		t.Errorf("exit code %d", r.code)
	}
	m.leavesNothing()
}

func TestNoLibraryWritesToTheOutputs(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	m.env = append(m.env, "GRPC_GO_LOG_SEVERITY_LEVEL=info", "GRPC_GO_LOG_VERBOSITY_LEVEL=99", "GRPC_GO_LOG_FORMATTER=json", "GODEBUG=http2debug=2")
	r := m.fine("connect", "s1", "--progress", "ndjson", "-o", "json")
	decodeLine[connection](t, r.stdout)
	for _, e := range r.events(t) {
		if e.Phase == "" {
			t.Errorf("%+v is no event of ours", e)
		}
	}
	if r := m.fine("sessions"); r.stderr != "" {
		t.Error(r.stderr)
	}
}

func TestASlowReaderGetsTheWholeResult(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.configureMock()
	c := m.prepare("plugin", "describe", "mock", "-o", "markdown")
	whole := m.fine("plugin", "describe", "mock", "-o", "markdown").stdout
	r, w, err := os.Pipe()
	must(t, err)
	stuck := false
	if runtime.GOOS == "linux" { // a page, so that the result does not fit
		_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, w.Fd(), 1031, 4096)
		stuck = errno == 0 && len(whole) > 4096
	}
	c.exec.Stdout = w
	must(t, c.exec.Start())
	w.Close()
	ended := make(chan result, 1)
	go func() { ended <- c.wait() }()
	if stuck {
		select {
		case r := <-ended:
			t.Errorf("it did not wait: exit code %d: %s", r.code, r.stderr)
		case <-time.After(300 * time.Millisecond):
		}
	}
	text, err := io.ReadAll(r)
	if err != nil || string(text) != whole {
		t.Errorf("%v: %s", err, text)
	}
	if r := <-ended; r.code != 0 {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
}
