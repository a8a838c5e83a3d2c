package supervise

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// patience is how long a test waits for what must happen: far longer than it takes.
const patience = 20 * time.Second

// The test binary is also the host that a test kills: it runs this plugin and waits.
const hostVariable = "BERTH_TEST_HOST_OF"

// typedByOperator waits on the standard input of the test process, where no plugin may read it.
const typedByOperator = "a line for the host\n"

var (
	socketParent string // where all socket directories are made
	stdinReader  *os.File
	stdinWriter  *os.File // never closed: the host's input does not end
)

func TestMain(m *testing.M) {
	if path := os.Getenv(hostVariable); path != "" {
		beHost(path)
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	var err error
	if socketParent, err = os.MkdirTemp("/tmp", "b"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(socketParent)
	os.Setenv("XDG_RUNTIME_DIR", socketParent)
	os.Setenv("BERTH_TEST_SECRET", "not for plugins")
	os.Setenv("LC_ALL", "from-the-host")
	os.Setenv("TZ", "UTC")
	if stdinReader, stdinWriter, err = os.Pipe(); err != nil {
		panic(err)
	}
	io.WriteString(stdinWriter, typedByOperator)
	os.Stdin = stdinReader

	code := testbin.Main(m)
	var problems []string
	if err := goleak.Find(); err != nil {
		problems = append(problems, err.Error())
	}
	if left, _ := os.ReadDir(socketParent); len(left) > 0 {
		problems = append(problems, fmt.Sprintf("%d socket directories are left", len(left)))
	}
	if left := stubProcesses(); len(left) > 0 {
		problems = append(problems, fmt.Sprintf("processes are left:\n%s", strings.Join(left, "\n")))
	}
	if len(problems) > 0 && code == 0 {
		fmt.Fprintln(os.Stderr, strings.Join(problems, "\n"))
		code = 1
	}
	return code
}

func stubPath(t testing.TB) string {
	t.Helper()
	return testbin.Build(t, "./host/supervise/internal/stub")
}

// stubProcesses lists the stubs that live and were started from this test process's build.
func stubProcesses() []string {
	listing, _ := exec.Command("ps", "-axo", "pid=,stat=,command=").Output()
	var stubs []string
	for line := range strings.Lines(string(listing)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && !strings.HasPrefix(fields[1], "Z") && fields[2] == builtStub {
			stubs = append(stubs, strings.TrimSpace(line))
		}
	}
	return stubs
}

var builtStub = "none" // set by newPlugin; read when all tests are over
var setBuiltStub sync.Once

// logBuffer is a log that a test can read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: b})
}

func configuredWith(configJSON string) func(provider.Description) ([]byte, error) {
	return func(provider.Description) ([]byte, error) { return []byte(configJSON), nil }
}

// newPlugin makes a plugin that runs the stub without mTLS, and stops it when the test ends. change may be nil.
func newPlugin(t testing.TB, change func(*Spec)) *Plugin {
	t.Helper()
	spec := Spec{
		Name: "acme", Path: stubPath(t), StartTimeout: patience, DrainTimeout: patience, Configure: configuredWith(`{}`),
	}
	setBuiltStub.Do(func() { builtStub = spec.Path })
	if change != nil {
		change(&spec)
	}
	env := map[string]string{"GORACE": "atexit_sleep_ms=0"} // the race detector delays every exit by a second
	maps.Copy(env, spec.Env)
	spec.Env = env
	p := New(spec)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // calls that a failed test left behind are not waited for
		p.Stop(ctx)
	})
	return p
}

// newStub is newPlugin for a stub with a behaviour.
func newStub(t testing.TB, behaviour string) *Plugin {
	t.Helper()
	return newPlugin(t, func(s *Spec) { s.Env = map[string]string{"STUB": behaviour} })
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

// ask has the stub do something in a Create call and returns what it tells.
func ask(t testing.TB, p *Plugin, action string) string {
	t.Helper()
	sandbox, err := p.Create(testContext(t), provider.CreateRequest{Session: action})
	if err != nil {
		t.Fatalf("%s: %v", action, err)
	}
	return sandbox.Detail
}

// askInBackground is for calls that do not end by themselves.
func askInBackground(t testing.TB, p *Plugin, action string) <-chan error {
	result := make(chan error, 1)
	before := p.callsUnderWay()
	go func() {
		_, err := p.Create(testContext(t), provider.CreateRequest{Session: action})
		result <- err
	}()
	eventually(t, "the call is under way", func() bool { return p.callsUnderWay() > before || len(result) > 0 })
	return result
}

func (p *Plugin) callsUnderWay() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inFlight
}

func (p *Plugin) currentRun() *run {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func receive[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
		panic("unreachable")
	}
}

// alive says whether the process runs; a zombie does not.
func alive(pid int) bool {
	state, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && !strings.HasPrefix(strings.TrimSpace(string(state)), "Z")
}

func kill(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// wantError checks an error's class, reason and what its message and log tail contain.
func wantError(t testing.TB, err error, code provider.Code, reason string, contains ...string) *provider.Error {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	e := provider.AsError(err)
	if e.Code != code || e.Reason != reason {
		t.Errorf("error is %s %q instead of %s %q: %v", e.Code, e.Reason, code, reason, err)
	}
	text := e.Error() + "\n" + strings.Join(e.LogTail, "\n")
	for _, part := range contains {
		if !strings.Contains(text, part) {
			t.Errorf("error does not say %q:\n%s", part, text)
		}
	}
	return e
}

// beHost is a host that runs one plugin, says so, and never gets to stop it.
func beHost(path string) {
	p := New(Spec{
		Name: "acme", Path: path, Configure: configuredWith(`{}`), Env: map[string]string{"STUB": os.Getenv("STUB")},
	})
	if _, err := p.Describe(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.Pid())
	select {}
}

func copyStub(t testing.TB) string {
	t.Helper()
	content, err := os.ReadFile(stubPath(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "copy")
	testbin.Write(t, path, content)
	return path
}
