package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/local/keeper"
	"github.com/berth-dev/berth/shared/provider"
)

// The test binary also plays the parts of other processes, named by this variable.
const part = "BERTH_LOCAL_TEST_PART"

func TestMain(m *testing.M) {
	switch os.Getenv(part) {
	case "server":
		playServer()
	case "creator":
		playCreator()
	}
	races, err := os.MkdirTemp("", "berth-races-")
	if err != nil {
		panic(err)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0 log_path="+filepath.Join(races, "keeper")) // keepers inherit it
	code := testbin.Main(m)
	if reports, _ := filepath.Glob(filepath.Join(races, "*")); len(reports) > 0 {
		content, _ := os.ReadFile(reports[0])
		fmt.Fprintf(os.Stderr, "a data race in a keeper:\n%s\n", content)
		code = 1
	}
	os.RemoveAll(races)
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// playServer is an action server with nothing to offer but its health.
func playServer() {
	http.HandleFunc("/alive", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) {
		fmt.Println("last words")
		os.Exit(7)
	})
	err := http.ListenAndServe(net.JoinHostPort(os.Getenv("HOST"), os.Getenv("PORT")), nil)
	fmt.Println(err)
	os.Exit(1)
}

// playCreator creates the sandbox of session s1, to be killed while it does.
func playCreator() {
	l, err := open(context.Background(), Config{Root: os.Getenv("ROOT")}, hclog.NewNullLogger())
	if err == nil {
		l.executable = os.Getenv("EXECUTABLE")
		fmt.Println("creating")
		_, err = l.Create(context.Background(), createRequest("s1"))
	}
	fmt.Println("created", err)
	<-context.Background().Done()
}

const owner = "tests"

// newLocal returns a provider with an empty root. At the end of the test everything it made is destroyed, and nothing
// may be left running.
func newLocal(t *testing.T, config Config) *Local {
	t.Helper()
	if config.Root == "" {
		config.Root = filepath.Join(t.TempDir(), "root")
	}
	l, err := open(t.Context(), config, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	l.executable = testbin.Build(t, "./plugins/local")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		ids, err := l.store.IDs()
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			record, err := l.store.Load(id)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = l.Destroy(ctx, provider.SandboxRef{Owner: record.Owner, SandboxID: id})
			}
			if err != nil {
				t.Error(err)
			}
		}
		l.keepers.Wait()
		l.probe.CloseIdleConnections()
		eventually(t, "no process of the test is left", func() bool { return len(processesOf(config.Root)) == 0 })
	})
	return l
}

func createRequest(session string) provider.CreateRequest {
	return provider.CreateRequest{
		Session: session, Owner: owner, Attempt: "attempt-of-" + session,
		Labels: map[string]string{"team": "blue"}, Lifetime: time.Hour,
	}
}

func create(t *testing.T, l *Local, session string) provider.Sandbox {
	t.Helper()
	sandbox, err := l.Create(t.Context(), createRequest(session))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return sandbox
}

// attach attaches to session s1.
func attach(t *testing.T, l *Local) provider.Sandbox {
	t.Helper()
	sandbox, err := l.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner})
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return sandbox
}

func startRequest(sandbox provider.Sandbox, server provider.Server) provider.StartServerRequest {
	return provider.StartServerRequest{Session: sandbox.Session, Owner: sandbox.Owner, SandboxID: sandbox.ID, Server: server}
}

func start(t *testing.T, l *Local, sandbox provider.Sandbox, server provider.Server) provider.Endpoints {
	t.Helper()
	endpoints, err := l.StartServer(t.Context(), startRequest(sandbox, server))
	if err != nil {
		t.Fatalf("StartServer: %v", err)
	}
	return endpoints
}

// endsAtOnce starts a server that ends at once, and returns what Ping reports of it.
func endsAtOnce(t *testing.T, l *Local, sandbox provider.Sandbox, server provider.Server) provider.PingResult {
	t.Helper()
	endpoints := start(t, l, sandbox, server)
	var result provider.PingResult
	eventually(t, "Ping reports the end of the server", func() bool {
		result = ping(t, l, sandbox, endpoints)
		return result.Status == provider.PingExited
	})
	if result.ExitCode == nil {
		t.Fatalf("Ping: %+v", result)
	}
	return result
}

func ping(t *testing.T, l *Local, sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingResult {
	t.Helper()
	result, err := l.Ping(t.Context(), provider.PingRequest{
		Session: sandbox.Session, Owner: sandbox.Owner, SandboxID: sandbox.ID,
		Endpoint: endpoints.Server, Health: provider.HealthCheck{Paths: []string{"/alive"}},
	})
	if err != nil {
		t.Fatalf("Ping: %v", err)
	}
	return result
}

func ref(sandbox provider.Sandbox) provider.SandboxRef {
	return provider.SandboxRef{Owner: sandbox.Owner, SandboxID: sandbox.ID}
}

func suspend(t *testing.T, l *Local, sandbox provider.Sandbox) {
	t.Helper()
	if err := l.Suspend(t.Context(), ref(sandbox)); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
}

func destroy(t *testing.T, l *Local, sandbox provider.Sandbox) {
	t.Helper()
	if err := l.Destroy(t.Context(), ref(sandbox)); err != nil {
		t.Fatalf("Destroy: %v", err)
	}
}

func list(t *testing.T, l *Local) []provider.Sandbox {
	t.Helper()
	sandboxes, err := l.List(t.Context(), provider.ListRequest{Owner: owner})
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	return sandboxes
}

// httpServer is the server this test binary plays.
func httpServer() provider.Server {
	return provider.Server{Command: []string{os.Args[0]}, Port: 8000, Env: map[string]string{part: "server"}}
}

// shell is a server that is a shell script.
func shell(script string) provider.Server {
	return provider.Server{Command: []string{"sh", "-c", script}, Port: 8000}
}

// keeperOf is the process number of a sandbox's keeper.
func keeperOf(t *testing.T, l *Local, id string) int {
	t.Helper()
	client, err := keeper.Dial(l.store, id)
	if err != nil {
		t.Fatal(err)
	}
	return client.PID()
}

// pidFrom waits for a process number that a server's script writes to a file in its working directory.
func pidFrom(t *testing.T, l *Local, id, file string) int {
	t.Helper()
	var pid int
	eventually(t, "the server writes "+file, func() bool {
		content, _ := os.ReadFile(filepath.Join(l.store.WorkDir(id), file))
		var err error
		pid, err = strconv.Atoi(strings.TrimSpace(string(content)))
		return err == nil
	})
	return pid
}

// lives reports whether a process runs; one that ended and was not collected does not.
func lives(t *testing.T, pid int) bool {
	t.Helper()
	state := stateOf(t, pid)
	return state != "" && state != "Z"
}

// stateOf returns the letter ps shows for a process, and "" when there is none.
func stateOf(t *testing.T, pid int) string {
	t.Helper()
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		_, fields, _ := strings.Cut(string(stat), ") ")
		return fields[:1]
	}
	output, _ := exec.Command("ps", "-o", "state=", "-p", strconv.Itoa(pid)).Output()
	return strings.TrimSpace(string(output))[:min(1, len(strings.TrimSpace(string(output))))]
}

// processesOf returns the processes with root in their command line or environment: keepers and servers.
func processesOf(root string) []string {
	var found []string
	for _, file := range []string{"cmdline", "environ"} {
		paths, _ := filepath.Glob("/proc/[0-9]*/" + file)
		for _, path := range paths {
			if content, _ := os.ReadFile(path); strings.Contains(string(content), root) {
				found = append(found, path+": "+strings.ReplaceAll(string(content), "\x00", " "))
			}
		}
	}
	return found
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
