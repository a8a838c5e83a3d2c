package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/syncbuf"
	"github.com/berth-dev/berth/internal/testbin"
)

// patience is how long a test waits for what must happen: far longer than it takes.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	// These tests mostly wait for other processes, so more of them than there are processors may run at a time.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(testbin.Main(m))
}

// machine is the place of one user: a home, a working directory, and the processes that run there because of berth.
type machine struct {
	*testing.T
	bin     string // the executables, as in bin/
	dir     string // below it are home, state and work; every process there has it in its environment or arguments
	sockets string // where plugins get their sockets
	env     []string
}

// newMachine makes a machine. When the test ends, whatever still runs on it is killed.
func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{T: t, bin: testbin.BuildTree(t), dir: t.TempDir()}
	for _, name := range []string{"home", "state", "work"} {
		must(t, os.Mkdir(filepath.Join(m.dir, name), 0o700))
	}
	var err error
	m.sockets, err = os.MkdirTemp("/tmp", "b-") // the path of a socket must be short
	must(t, err)
	m.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(m.dir, "home"),
		"XDG_STATE_HOME=" + filepath.Join(m.dir, "state"), "XDG_RUNTIME_DIR=" + m.sockets,
		"GORACE=atexit_sleep_ms=0", // the race detector otherwise waits a second at the end of a process
	}
	t.Cleanup(func() {
		m.eventually("everything on the machine is dead", func() bool {
			left := m.processes()
			for _, p := range left {
				syscall.Kill(p.pid, syscall.SIGKILL)
			}
			return len(left) == 0
		})
		os.RemoveAll(m.sockets)
	})
	return m
}

// configure writes the working directory's config.hcl, which berth takes if it is told nothing else.
func (m *machine) configure(text string) {
	m.Helper()
	must(m.T, os.WriteFile(filepath.Join(m.dir, "work", "config.hcl"), []byte(text), 0o600))
}

// configureMock writes a config.hcl with nothing but a mock provider: its cloud is a file, so that it outlives the
// plugin. attributes are further lines of its config block.
func (m *machine) configureMock(attributes ...string) {
	m.Helper()
	m.configure(m.mockBlock("mock", attributes...))
}

func (m *machine) mockBlock(label string, attributes ...string) string {
	return fmt.Sprintf(`
		provider %q {
			plugin = "mock"
			%s
			config {
				state = "%s/cloud-%s.json"
				%s
			}
		}
	`, label, swift, m.dir, label, strings.Join(attributes, "\n"))
}

// swift are lines of a provider block that undo what the race detector costs most: a second's wait at the end of every
// process, and the making of certificates. And they give a crowded machine its time.
const swift = `
	env           = { GORACE = "atexit_sleep_ms=0" }
	mtls          = false
	start_timeout = "1m"
`

// localBlock is the local provider as it is without a configuration, only swifter.
const localBlock = `
	provider "local" {
		` + swift + `
		server { env = { GORACE = "atexit_sleep_ms=0" } }
	}
`

func faults(list ...string) string {
	encoded, _ := json.Marshal(list)
	return "faults = " + string(encoded)
}

// result is what a user sees of a command that ended.
type result struct {
	code           int
	stdout, stderr string
}

// berth runs the command to its end.
func (m *machine) berth(args ...string) result {
	m.Helper()
	return m.start(args...).wait()
}

// fine is berth for a command that must succeed.
func (m *machine) fine(args ...string) result {
	m.Helper()
	r := m.berth(args...)
	if r.code != 0 {
		m.Fatalf("berth %s: exit code %d\n%s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r
}

// command is berth while it runs.
type command struct {
	*machine
	exec           *exec.Cmd
	stop           context.CancelFunc
	began          time.Time // set by those who need it
	stdout, stderr syncbuf.Buffer
}

func (m *machine) start(args ...string) *command {
	m.Helper()
	c := m.prepare(args...)
	must(m.T, c.exec.Start())
	return c
}

func (m *machine) prepare(args ...string) *command {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	c := &command{machine: m, stop: cancel}
	c.exec = exec.CommandContext(ctx, filepath.Join(m.bin, "berth"), args...)
	c.exec.Dir, c.exec.Env = filepath.Join(m.dir, "work"), m.env
	c.exec.Stdout, c.exec.Stderr = &c.stdout, &c.stderr
	c.exec.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does
	c.exec.WaitDelay = patience / 10
	return c
}

// wait waits for the end. Nobody may hold the command's output open after it: a shell's $(...) would not return.
func (c *command) wait() result {
	c.Helper()
	defer c.stop()
	err := c.exec.Wait()
	r := result{c.exec.ProcessState.ExitCode(), c.stdout.String(), c.stderr.String()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || r.code < 0 || strings.Contains(r.stderr, "DATA RACE") {
		c.Fatalf("%s: %v, exit code %d\n%s", c.exec, err, r.code, r.stderr)
	}
	return r
}

// interrupt does what Ctrl-C does in a terminal, or kill to a job, with the signal.
func (c *command) interrupt(signal syscall.Signal) {
	c.Helper()
	must(c.T, syscall.Kill(-c.exec.Process.Pid, signal))
}

// saying waits until standard error has the text.
func (c *command) saying(text string) *command {
	c.Helper()
	c.eventually(fmt.Sprintf("it says %q", text), func() bool { return strings.Contains(c.stderr.String(), text) })
	return c
}

// plugin waits for the command's plugin process.
func (c *command) plugin() (pid int) {
	c.Helper()
	c.eventually("its plugin runs", func() bool {
		for _, p := range c.processes() {
			if p.parent == c.exec.Process.Pid {
				pid = p.pid
			}
		}
		return pid != 0
	})
	return pid
}

type process struct {
	pid, parent int
	command     string
}

// processes are those of this machine. Zombies do not count.
func (m *machine) processes() []process {
	m.Helper()
	withEnvironment := "-axEww"
	if runtime.GOOS == "linux" {
		withEnvironment = "axeww"
	}
	listing, err := exec.Command("ps", withEnvironment, "-o", "pid=,ppid=,stat=,command=").Output()
	must(m.T, err)
	var own []process
	for line := range strings.Lines(string(listing)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || strings.HasPrefix(fields[2], "Z") || !strings.Contains(line, m.dir) {
			continue
		}
		pid, _ := strconv.Atoi(fields[0])
		parent, _ := strconv.Atoi(fields[1])
		own = append(own, process{pid, parent, fields[3]})
	}
	return own
}

// leavesNothing checks that nothing is left of what ran: no process, no socket, no sandbox that the providers know.
func (m *machine) leavesNothing() {
	m.Helper()
	m.eventually("no process is left", func() bool { return len(m.processes()) == 0 })
	entries, err := os.ReadDir(m.sockets)
	must(m.T, err)
	if len(entries) > 0 {
		m.Errorf("%d socket directories are left", len(entries))
	}
	if sessions := m.sessions(); len(sessions) > 0 {
		m.Errorf("sandboxes are left: %+v", sessions)
	}
}

func (m *machine) eventually(what string, condition func() bool) {
	m.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.Fatalf("waited in vain until %s; there are %+v", what, m.processes())
		}
	}
}

// connection is the result of berth connect -o json.
type connection struct {
	Session           string            `json:"session"`
	Provider          string            `json:"provider"`
	Sandbox           sandbox           `json:"sandbox"`
	URL               string            `json:"url"`
	Headers           map[string]string `json:"headers"`
	EndpointExpiresAt *time.Time        `json:"endpoint_expires_at"`
	SandboxExpiresAt  *time.Time        `json:"sandbox_expires_at"`
	URLs              map[string]port   `json:"urls"`
	Pings             int               `json:"pings"`
	Timings           struct {
		Acquire     float64 `json:"acquire"`
		StartServer float64 `json:"start_server"`
		Health      float64 `json:"health"`
		Total       float64 `json:"total"`
	} `json:"timings_ms"`
}

type sandbox struct {
	ID     string `json:"id"`
	Origin string `json:"origin"`
}

type port struct {
	URL               string            `json:"url"`
	Headers           map[string]string `json:"headers"`
	EndpointExpiresAt *time.Time        `json:"endpoint_expires_at"`
}

// failure is an error as programs get it.
type failure struct {
	Code         string   `json:"code"`
	Phase        string   `json:"phase"`
	Message      string   `json:"message"`
	Provider     string   `json:"provider"`
	Session      string   `json:"session"`
	SandboxID    string   `json:"sandbox_id"`
	Retryable    bool     `json:"retryable"`
	RetryAfterMS int64    `json:"retry_after_ms"`
	Cleanup      string   `json:"cleanup"`
	CleanupError string   `json:"cleanup_error"`
	ExitCode     *int     `json:"exit_code"`
	LogTail      []string `json:"log_tail"`
	Pings        int      `json:"pings"`
	Hint         string   `json:"hint"`
}

type session struct {
	Session          string     `json:"session"`
	Provider         string     `json:"provider"`
	SandboxID        string     `json:"sandbox_id"`
	State            string     `json:"state"`
	CreatedAt        *time.Time `json:"created_at"`
	SandboxExpiresAt *time.Time `json:"sandbox_expires_at"`
	Recorded         bool       `json:"recorded"`
	HeldUntil        *time.Time `json:"held_until"`
	Note             string     `json:"note"`
}

// event is a line of --progress ndjson.
type event struct {
	Time      time.Time `json:"time"`
	Session   string    `json:"session"`
	Provider  string    `json:"provider"`
	Attempt   string    `json:"attempt"`
	Phase     string    `json:"phase"`
	Status    string    `json:"status"`
	SandboxID string    `json:"sandbox_id"`
	ElapsedMS float64   `json:"elapsed_ms"`
	Pings     int       `json:"pings"`
	Message   string    `json:"message"`
}

// connect connects a session on the machine's default provider.
func (m *machine) connect(args ...string) connection {
	m.Helper()
	return decodeLine[connection](m.T, m.fine(append([]string{"connect", "-o", "json"}, args...)...).stdout)
}

func (m *machine) sessions() []session {
	m.Helper()
	answer := decodeLine[struct {
		Sessions []session `json:"sessions"`
		Errors   []failure `json:"errors"`
	}](m.T, m.fine("sessions", "-o", "json").stdout)
	if len(answer.Errors) > 0 {
		m.Errorf("sessions: %+v", answer.Errors)
	}
	return answer.Sessions
}

// failure reads the one line that a failed command with -o json prints.
func (r result) failure(t *testing.T) failure {
	t.Helper()
	if r.code == 0 {
		t.Fatalf("it succeeded:\n%s", r.stdout)
	}
	return decodeLine[map[string]failure](t, r.stdout)["error"]
}

func (r result) events(t *testing.T) []event {
	t.Helper()
	var events []event
	for line := range strings.Lines(r.stderr) {
		events = append(events, decodeLine[event](t, line))
	}
	return events
}

// decodeLine reads exactly one line that holds exactly one JSON value, without fields that T lacks.
func decodeLine[T any](t *testing.T, text string) T {
	t.Helper()
	var value T
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&value); err != nil || decoder.More() || strings.Index(text, "\n") != len(text)-1 {
		t.Fatalf("not one line of JSON (%v): %q", err, text)
	}
	return value
}

// files reads everything below the machine's state directory.
func (m *machine) files() map[string]string {
	m.Helper()
	found := map[string]string{}
	must(m.T, filepath.WalkDir(filepath.Join(m.dir, "state"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		found[path] = string(text)
		return err
	}))
	return found
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wants fails the test unless the text has all parts.
func wants(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in\n%s", part, text)
		}
	}
}
