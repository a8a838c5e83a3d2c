package supervise

import (
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

	"github.com/berth-dev/berth/internal/syncbuf"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// patience is how long a test waits for an event, far longer than it should take.
const patience = 20 * time.Second

// hostVariable makes the test binary a host that runs the named plugin and waits to be killed.
const hostVariable = "BERTH_TEST_HOST_OF"

// typedByOperator is in the standard input of the test process. Plugins must not read it.
const typedByOperator = "a line for the host\n"

var (
	socketParent string // of all socket directories
	stdinReader  *os.File
	stdinWriter  *os.File // never closed, so that the host's input does not end
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

// stubProcesses returns the living stub processes of this test process's build.
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

var builtStub = "none" // set by newPlugin, read after all tests
var setBuiltStub sync.Once

// logBuffer is a log that can be read while it is written.
type logBuffer struct{ syncbuf.Buffer }

func (b *logBuffer) logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: b})
}

func configuredWith(configJSON string) func(provider.Description) ([]byte, error) {
	return func(provider.Description) ([]byte, error) { return []byte(configJSON), nil }
}

// newPlugin returns a Plugin that runs the stub without mTLS, and stops it when the test ends. change may be nil.
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
		cancel() // do not wait for calls that a failed test left behind
		p.Stop(ctx)
	})
	return p
}

// newStub returns a Plugin that runs a stub with the given behaviour.
func newStub(t testing.TB, behaviour string) *Plugin {
	t.Helper()
	return newPlugin(t, func(s *Spec) { s.Env = map[string]string{"STUB": behaviour} })
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	return ctx
}

// ask makes the stub do something in a Create call and returns the result.
func ask(t testing.TB, p *Plugin, action string) string {
	t.Helper()
	sandbox, err := p.Create(testContext(t), provider.CreateRequest{Session: action})
	if err != nil {
		t.Fatalf("%s: %v", action, err)
	}
	return sandbox.Detail
}

// askInBackground is ask for calls that do not end by themselves.
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

func (p *Plugin) currentConnection() *connection {
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

// alive reports whether the process runs. A zombie does not.
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

// wantError checks an error's code and reason, and that its message and log tail contain the texts.
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

// beHost runs one plugin, prints its pid and waits to be killed.
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
