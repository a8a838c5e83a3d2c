// Package pluginpython tests the Python plugin as what it is: an executable that speaks the plugin protocol.
package pluginpython

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
	"github.com/berth-dev/berth/shared/providertest"
)

// patience is how long a test waits for what must happen: far longer than it takes.
const patience = 60 * time.Second

// pluginVariable names the plugin's executable. scripts/plugin-python sets it.
const pluginVariable = "BERTH_PYTHON_PLUGIN"

func TestMain(m *testing.M) {
	os.Exit(testbin.Main(m))
}

func executable(t *testing.T) string {
	t.Helper()
	path := os.Getenv(pluginVariable)
	if path == "" {
		t.Skipf("%s does not name the plugin: scripts/plugin-python builds it, and runs these tests", pluginVariable)
	}
	return path
}

func TestConformance(t *testing.T) {
	t.Parallel()
	providertest.Run(t, providertest.Plugin{Path: executable(t), Config: map[string]any{"root": t.TempDir()}})
}

// --- through berth ---

// machine is a place where berth runs with the Python plugin. Everything that runs because of it has its directory in
// its environment or arguments.
type machine struct {
	*testing.T
	bin, dir, sockets string
}

// newMachine makes a machine. lines are further lines of its provider block.
func newMachine(t *testing.T, lines ...string) *machine {
	t.Helper()
	plugin := executable(t)
	m := &machine{T: t, bin: testbin.BuildTree(t), dir: t.TempDir()}
	var err error
	m.sockets, err = os.MkdirTemp("/tmp", "b-") // the path of a socket must be short
	must(t, err)
	must(t, os.WriteFile(filepath.Join(m.dir, "config.hcl"), fmt.Appendf(nil, `
		host { state_dir = %q }
		server { env = { GORACE = "atexit_sleep_ms=0" } }
		provider "python" {
			path          = %q
			start_timeout = "1m"
			config {
				root = %q
				path = [%q]
			}
			%s
		}
	`, filepath.Join(m.dir, "state"), plugin, m.root(), m.bin, strings.Join(lines, "\n")), 0o600))
	t.Cleanup(func() {
		m.eventually("everything on the machine is dead", func() bool {
			left := m.processes()
			for _, pid := range left {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			return len(left) == 0
		})
		os.RemoveAll(m.sockets)
	})
	return m
}

func (m *machine) root() string { return filepath.Join(m.dir, "sandboxes") }

func (m *machine) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	m.Cleanup(cancel)
	c := exec.CommandContext(ctx, filepath.Join(m.bin, "berth"), append(args, "--config", filepath.Join(m.dir, "config.hcl"))...)
	c.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + m.dir, "XDG_RUNTIME_DIR=" + m.sockets, "GORACE=atexit_sleep_ms=0",
	}
	c.WaitDelay = patience / 10
	return c
}

// berth runs berth and reads the JSON it answers with.
func (m *machine) berth(answer any, args ...string) (code int, stderr string) {
	m.Helper()
	var stdout, errors bytes.Buffer
	c := m.command(append(args, "-o", "json")...)
	c.Stdout, c.Stderr = &stdout, &errors
	_ = c.Run()
	if err := json.Unmarshal(stdout.Bytes(), answer); err != nil {
		m.Fatalf("%s: %v in %q\n%s", strings.Join(args, " "), err, stdout.String(), errors.String())
	}
	return c.ProcessState.ExitCode(), errors.String()
}

type connection struct {
	Sandbox struct{ ID, Origin string }
	URL     string
	Headers map[string]string
}

func (m *machine) connect(session, origin string) connection {
	m.Helper()
	var c connection
	code, stderr := m.berth(&c, "connect", session)
	if code != 0 || c.Sandbox.Origin != origin {
		m.Fatalf("exit code %d, origin %q instead of %q\n%s", code, c.Sandbox.Origin, origin, stderr)
	}
	return c
}

func (m *machine) states() map[string]string {
	m.Helper()
	var answer struct {
		Sessions []struct{ Session, State string }
	}
	if code, stderr := m.berth(&answer, "sessions"); code != 0 {
		m.Fatalf("sessions: exit code %d\n%s", code, stderr)
	}
	states := map[string]string{}
	for _, s := range answer.Sessions {
		states[s.Session] = s.State
	}
	return states
}

// processes are those of this machine. Zombies do not count.
func (m *machine) processes(containing ...string) []int {
	m.Helper()
	withEnvironment := "axEww"
	if runtime.GOOS == "linux" {
		withEnvironment = "axeww"
	}
	listing, err := exec.Command("ps", withEnvironment, "-o", "pid=,stat=,command=").Output()
	must(m.T, err)
	var own []int
	for line := range strings.Lines(string(listing)) {
		fields := strings.Fields(line)
		found := len(fields) > 2 && !strings.HasPrefix(fields[1], "Z") && strings.Contains(line, m.dir)
		for _, part := range containing {
			found = found && strings.Contains(line, part)
		}
		if found {
			pid, _ := strconv.Atoi(fields[0])
			own = append(own, pid)
		}
	}
	return own
}

func (m *machine) eventually(what string, condition func() bool) {
	m.Helper()
	eventually(m.T, what, condition)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestASessionLivesItsWholeLifeOnThePythonPlugin(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{"WithMTLS": "mtls = true", "WithoutMTLS": "mtls = false"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, line)
			created := m.connect("s1", "created")
			act(t, created)
			attached := m.connect("s1", "attached")
			if attached.Sandbox.ID != created.Sandbox.ID || attached.URL != created.URL {
				t.Errorf("the second connect got %+v, the first %+v", attached, created)
			}
			m.suspend("s1")
			if states := m.states(); states["s1"] != "suspended" {
				t.Errorf("after a suspend: %v", states)
			}
			m.eventually("the suspended server has ended", func() bool { return len(m.processes()) == 0 })
			woken := m.connect("s1", "woken")
			if woken.Sandbox.ID != created.Sandbox.ID {
				t.Errorf("woken as %s instead of %s", woken.Sandbox.ID, created.Sandbox.ID)
			}
			act(t, woken)
			must(t, m.command("disconnect", "s1").Run())
			if states := m.states(); len(states) > 0 {
				t.Errorf("after a disconnect: %v", states)
			}
			m.eventually("no process is left", func() bool { return len(m.processes()) == 0 })
			if left, _ := filepath.Glob(filepath.Join(m.root(), "berth-*")); len(left) > 0 {
				t.Errorf("left on disk: %v", left)
			}
		})
	}
}

func (m *machine) suspend(session string) {
	m.Helper()
	must(m.T, m.command("disconnect", session, "--action", "suspend").Run())
}

// act has the sandbox's server do something, with the key that opens it.
func act(t *testing.T, c connection) {
	t.Helper()
	action := `{"action":{"action":"run","args":{"command":"echo from $((40 + 2))"}}}`
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.URL+"/execute_action", strings.NewReader(action))
	must(t, err)
	for name, value := range c.Headers {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || !strings.Contains(string(body), "from 42") {
		t.Errorf("%s: %s, %v", response.Status, body, err)
	}
}

func TestAServerThatDiesIsReportedWithItsExitCodeAndLog(t *testing.T) {
	t.Parallel()
	m := newMachine(t, `server {
		preset  = "custom"
		port    = 8000
		command = ["sh", "-c", "echo the disk is full >&2; exit 3"]
	}`)
	var failure struct {
		Error struct {
			Code, Cleanup string
			ExitCode      *int     `json:"exit_code"`
			LogTail       []string `json:"log_tail"`
		}
	}
	code, _ := m.berth(&failure, "connect", "s1")
	e := failure.Error
	if e.ExitCode == nil || *e.ExitCode != 3 || strings.Join(e.LogTail, "") != "the disk is full" {
		t.Errorf("exit code %d, %+v", code, failure)
	}
	if e.Code != "server_exited" || e.Cleanup != "done" || len(m.states()) > 0 {
		t.Errorf("%+v, %v", failure, m.states())
	}
}

func TestARefusedConfigurationIsShownAtItsLine(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	file := filepath.Join(m.dir, "config.hcl")
	text, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, bytes.Replace(text, []byte(`root = "/`), []byte(`root = "elsewhere/`), 1), 0o600))
	output, _ := m.command("config", "check").CombinedOutput()
	if !bytes.Contains(output, []byte(`root = "elsewhere/`)) || !bytes.Contains(output, []byte("must be an absolute path")) {
		t.Errorf("it says\n%s", output)
	}
}

func TestAKilledHostLeavesNoPluginBehind(t *testing.T) {
	t.Parallel()
	m := newMachine(t, `server {
		preset  = "custom"
		port    = 8000
		command = ["sleep", "600"]
	}`)
	host := m.command("connect", "s1")
	must(t, host.Start())
	defer host.Wait()
	m.eventually("the server runs, which never answers", func() bool { return len(m.processes("sleep 600")) == 1 })
	plugins := m.pluginsOf(host.Process.Pid)
	if len(plugins) != 1 {
		t.Fatalf("the host's plugins: %v", plugins)
	}
	must(t, host.Process.Kill())
	m.eventually("the plugin has ended", func() bool { return !alive(plugins[0]) })
	must(t, m.command("disconnect", "s1").Run())
	m.eventually("no process is left", func() bool { return len(m.processes()) == 0 })
}

func (m *machine) pluginsOf(host int) []int {
	listing, err := exec.Command("ps", "ax", "-o", "pid=,ppid=").Output()
	must(m.T, err)
	var children []int
	for line := range strings.Lines(string(listing)) {
		var pid, parent int
		if fmt.Sscan(line, &pid, &parent); parent == host {
			children = append(children, pid)
		}
	}
	return children
}

// alive says whether the process runs; a zombie does not.
func alive(pid int) bool {
	state, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && !strings.HasPrefix(strings.TrimSpace(string(state)), "Z")
}

// --- as a process ---

func TestItEndsWithItsInput(t *testing.T) {
	t.Parallel()
	sockets, err := os.MkdirTemp("/tmp", "b-")
	must(t, err)
	defer os.RemoveAll(sockets)
	code, stdout, stderr := run(t, "BERTH_PLUGIN=berth-provider", "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_UNIX_SOCKET_DIR="+sockets)
	if code != 0 || strings.Count(stdout, "\n") != 1 || !strings.HasPrefix(stdout, "1|1|unix|"+sockets+"/plugin") || stderr != "" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if _, err := os.Stat(sockets); !errors.Is(err, os.ErrNotExist) {
		t.Error("its socket is left, which a host that was killed cannot remove")
	}
}

func TestRunByHandItExplainsItself(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := run(t)
	if code != 2 || stdout != "" || !strings.Contains(stderr, `provider "python" {}`) {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestAHostWithAnotherProtocolGetsOneLine(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := run(t, "BERTH_PLUGIN=berth-provider", "PLUGIN_PROTOCOL_VERSIONS=2,3")
	if code != 1 || stdout != "1|1|unix||grpc\n" || strings.Count(stderr, "\n") != 1 ||
		!strings.Contains(stderr, "speaks version 1 of the plugin protocol, this host speaks version 2, 3") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// run runs the plugin with an environment and no input, to its end.
func run(t *testing.T, env ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	plugin := exec.CommandContext(ctx, executable(t))
	plugin.Env = env
	var out, errs bytes.Buffer
	plugin.Stdout, plugin.Stderr = &out, &errs
	_ = plugin.Run()
	return plugin.ProcessState.ExitCode(), out.String(), errs.String()
}

// --- call by call ---

// serving starts the plugin in the foreground, as under a debugger, and returns a client that has configured it.
func serving(t *testing.T, root string) *provider.Client {
	t.Helper()
	plugin := exec.Command(executable(t), "--debug")
	stderr, err := plugin.StderrPipe()
	must(t, err)
	must(t, plugin.Start())
	lines := bufio.NewScanner(stderr)
	t.Cleanup(func() {
		plugin.Process.Signal(os.Interrupt)
		for lines.Scan() { // a plugin nobody reads from would block
			t.Log(lines.Text())
		}
		if err := plugin.Wait(); err != nil {
			t.Errorf("the plugin ended with %v", err)
		}
	})
	var socket string
	for socket == "" && lines.Scan() {
		_, socket, _ = strings.Cut(lines.Text(), provider.ReattachVariable+"=python=")
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	client := provider.NewClient(conn)
	config, _ := json.Marshal(map[string]any{"root": root, "stop_grace": "1s"})
	must(t, client.Configure(testContext(t), config))
	return client
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

var sleeper = provider.Server{Command: []string{"sleep", "600"}, Port: 8000}

func TestTheBackEndKeepsTheContract(t *testing.T) {
	t.Parallel()
	executable(t)
	root := t.TempDir()
	client, other := serving(t, root), serving(t, root) // two processes, one cloud
	ctx := testContext(t)

	t.Run("CreatesAtOnceGiveOneSandbox", func(t *testing.T) {
		var group sync.WaitGroup
		origins, ids := make(chan provider.Origin, 32), sync.Map{}
		for i := range cap(origins) {
			group.Go(func() {
				by := []*provider.Client{client, other}[i%2]
				sandbox, err := by.Create(ctx, provider.CreateRequest{Session: "s", Owner: "me", Attempt: strconv.Itoa(i)})
				if err != nil {
					t.Error(err)
				}
				ids.Store(sandbox.ID, true)
				origins <- sandbox.Origin
			})
		}
		group.Wait()
		close(origins)
		made := 0
		for origin := range origins {
			if origin == provider.OriginCreated {
				made++
			}
		}
		count := 0
		ids.Range(func(any, any) bool { count++; return true })
		if made != 1 || count != 1 {
			t.Errorf("%d were made, with %d ids", made, count)
		}
	})

	t.Run("AStrangersSandboxIsLeftAlone", func(t *testing.T) {
		sandbox, err := client.Create(ctx, provider.CreateRequest{Session: "theirs", Owner: "them"})
		must(t, err)
		ref := provider.SandboxRef{Owner: "me", SandboxID: sandbox.ID}
		_, start := client.StartServer(ctx, provider.StartServerRequest{
			Session: "theirs", Owner: "me", SandboxID: sandbox.ID, Server: sleeper,
		})
		_, renew := client.Renew(ctx, provider.RenewRequest{SandboxRef: ref, Lifetime: time.Hour})
		for call, err := range map[string]error{
			"Destroy": client.Destroy(ctx, ref), "Suspend": client.Suspend(ctx, ref), "StartServer": start, "Renew": renew,
		} {
			if provider.CodeOf(err) != provider.CodeConflict {
				t.Errorf("%s: %v", call, err)
			}
		}
		if list, err := client.List(ctx, provider.ListRequest{Owner: "them"}); err != nil || len(list) != 1 {
			t.Errorf("List: %v, %v", list, err)
		}
	})

	t.Run("ALifeEndsByItself", func(t *testing.T) {
		sandbox, err := client.Create(ctx, provider.CreateRequest{Session: "short", Owner: "brief", Lifetime: 3 * time.Second})
		must(t, err)
		_, err = client.StartServer(ctx, provider.StartServerRequest{
			Session: "short", Owner: "brief", SandboxID: sandbox.ID, Server: sleeper,
		})
		must(t, err)
		// Nobody asks for it: what ends it is the process that keeps its server.
		record := filepath.Join(root, sandbox.ID[:len(sandbox.ID)-len("-12345678")])
		eventually(t, "the sandbox is gone from disk", func() bool {
			_, err := os.Stat(record)
			return errors.Is(err, os.ErrNotExist)
		})
		_, err = client.Attach(ctx, provider.AttachRequest{Session: "short", Owner: "brief", SandboxID: sandbox.ID})
		if e := provider.AsError(err); e == nil || e.Code != provider.CodeNotFound || e.Reason != provider.ReasonGone {
			t.Errorf("Attach: %v", err)
		}
	})

	t.Run("AnUnexpectedExceptionIsAnInternalErrorWithoutItsText", func(t *testing.T) {
		sandbox, err := client.Create(ctx, provider.CreateRequest{Session: "broken", Owner: "clumsy"})
		must(t, err)
		record := filepath.Join(root, sandbox.ID[:len(sandbox.ID)-len("-12345678")], "sandbox.json")
		must(t, os.WriteFile(record, []byte("secret=hunter2"), 0o600))
		_, err = client.Logs(ctx, provider.LogsRequest{SandboxRef: provider.SandboxRef{Owner: "clumsy", SandboxID: sandbox.ID}})
		e := provider.AsError(err)
		if e == nil || e.Code != provider.CodeInternal || e.Reason != provider.ReasonPanic || strings.Contains(e.Message, "hunter2") {
			t.Errorf("Logs: %+v", e)
		}
		must(t, os.Remove(record))
	})

	t.Run("APingEndsInTimeAlthoughTheAnswerTrickles", func(t *testing.T) {
		dripping := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("."))
				_ = http.NewResponseController(w).Flush()
				time.Sleep(50 * time.Millisecond)
			}
		}))
		defer dripping.Close()
		sandbox, err := client.Create(ctx, provider.CreateRequest{Session: "dripping", Owner: "me"})
		must(t, err)
		result, err := client.Ping(ctx, provider.PingRequest{
			Session: "dripping", Owner: "me", SandboxID: sandbox.ID, Endpoint: provider.Endpoint{URL: dripping.URL},
			Health: provider.HealthCheck{Timeout: 300 * time.Millisecond, JSONFields: map[string]string{"status": "ok"}},
		})
		if err != nil || result.Status != provider.PingNotYet {
			t.Errorf("Ping: %+v, %v", result, err)
		}
	})

	t.Run("AServerDiesWithItsWholeGroup", func(t *testing.T) {
		child := filepath.Join(root, "child")
		sandbox, err := client.Create(ctx, provider.CreateRequest{Session: "family", Owner: "me"})
		must(t, err)
		_, err = client.StartServer(ctx, provider.StartServerRequest{
			Session: "family", Owner: "me", SandboxID: sandbox.ID, Server: provider.Server{
				Command: []string{"sh", "-c", `trap "" TERM; sleep 600 & echo $! >` + child + `.new; mv ` + child + `.new ` + child + `; wait; wait`},
			},
		})
		must(t, err)
		var pid int
		eventually(t, "the server has a child", func() bool {
			text, _ := os.ReadFile(child)
			pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
			return pid != 0
		})
		must(t, other.Destroy(ctx, provider.SandboxRef{Owner: "me", SandboxID: sandbox.ID}))
		eventually(t, "the child is gone", func() bool { return !alive(pid) })
	})
}
