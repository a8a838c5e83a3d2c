package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) { os.Exit(cloudtest.Main(m, 16)) }

const (
	owner = "tests"
	// canary is the API key: it may be nowhere but in the one header it belongs in.
	canary = "ak_canary_5f0d"
)

// brisk are times for tests: short, but not too short for a slow machine.
var brisk = cloud.Times{
	Retry: cloud.Retry{Tries: 3, First: 20 * time.Millisecond, Most: 40 * time.Millisecond, Longest: 10 * time.Second},
	Lost:  200 * time.Millisecond, Rivals: time.Second, FirstLook: 200 * time.Millisecond, Patience: 100 * time.Millisecond,
	LookServer: 300 * time.Millisecond, LookCloud: 300 * time.Millisecond, Script: 4 * time.Second,
}

// newCloud starts a simulated Runloop for one test.
func newCloud(t *testing.T, options sim.Options) *sim.Cloud {
	t.Helper()
	if err := simcloud.Isolation(); err != nil {
		t.Skip(err)
	}
	if options.APIKey == "" {
		options.APIKey = canary
	}
	options.PathDirs = append(options.PathDirs, filepath.Dir(testbin.Build(t, "./examples/action-server")))
	simulated, err := sim.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(simulated.Close)
	return simulated
}

// newRunloop returns a provider for a cloud; change, which may be nil, changes its configuration.
func newRunloop(t *testing.T, simulated *sim.Cloud, change func(*Config)) *Runloop {
	t.Helper()
	return newRunloopWith(t, simulated, change, brisk)
}

// newRunloopWith is newRunloop with other times than brisk ones.
func newRunloopWith(t *testing.T, simulated *sim.Cloud, change func(*Config), times cloud.Times) *Runloop {
	t.Helper()
	config, err := configFor(simulated, change).checked()
	if err != nil {
		t.Fatal(err)
	}
	r := newProvider(config, testLog(t), times)
	r.boxes.hold, r.boxes.api.Limit, r.boxes.api.Retry = 500*time.Millisecond, 2*time.Second, brisk.Retry
	t.Cleanup(func() { r.Close() })
	return r
}

func configFor(simulated *sim.Cloud, change func(*Config)) Config {
	environment := simulated.Environment()
	config := Config{
		APIKey: environment["RUNLOOP_API_KEY"], BaseURL: environment["RUNLOOP_BASE_URL"], TunnelURL: environment["RUNLOOP_TUNNEL_URL"],
		Tunnel: "authenticated", KeepAlive: true, OnIdle: "suspend",
	}
	if change != nil {
		change(&config)
	}
	return config
}

// testLog fails the test if the canary is logged.
func testLog(t *testing.T) hclog.Logger {
	log := &logBuffer{}
	t.Cleanup(func() {
		if text := log.String(); strings.Contains(text, canary) {
			t.Errorf("the API key was logged:\n%s", text)
		}
	})
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: log})
}

type logBuffer struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.text.String()
}

func createRequest(session string) provider.CreateRequest {
	return provider.CreateRequest{
		Session: session, Owner: owner, Attempt: "attempt-of-" + session, Server: actionServer(),
		Labels: map[string]string{"team": "blue"}, Lifetime: time.Hour,
	}
}

func create(t *testing.T, r *Runloop, session string) provider.Sandbox {
	t.Helper()
	sandbox, err := r.Create(t.Context(), createRequest(session))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return sandbox
}

// attach attaches to the session s1.
func attach(t *testing.T, r *Runloop) provider.Sandbox {
	t.Helper()
	sandbox, err := r.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, Server: actionServer()})
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return sandbox
}

// actionServer is the example server, without a key.
func actionServer() provider.Server {
	return provider.Server{
		Command: []string{"berth-action-server", "--port", "{port}"}, Port: 8000,
		Health: provider.HealthCheck{Paths: []string{"/alive"}, JSONFields: map[string]string{"status": "ok"}},
	}
}

// shell is a server that is a shell script.
func shell(script string) provider.Server {
	server := actionServer()
	server.Command = []string{"sh", "-c", script}
	return server
}

func startRequest(sandbox provider.Sandbox, server provider.Server) provider.StartServerRequest {
	return provider.StartServerRequest{Session: sandbox.Session, Owner: sandbox.Owner, SandboxID: sandbox.ID, Server: server}
}

func start(t *testing.T, r *Runloop, sandbox provider.Sandbox, server provider.Server) provider.Endpoints {
	t.Helper()
	endpoints, err := r.StartServer(t.Context(), startRequest(sandbox, server))
	if err != nil {
		t.Fatalf("StartServer: %v", err)
	}
	return endpoints
}

func pingRequest(sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingRequest {
	return provider.PingRequest{
		Session: sandbox.Session, Owner: sandbox.Owner, SandboxID: sandbox.ID, Endpoint: endpoints.Server, Health: actionServer().Health,
	}
}

func ping(t *testing.T, r *Runloop, sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingResult {
	t.Helper()
	result, err := r.Ping(t.Context(), pingRequest(sandbox, endpoints))
	if err != nil {
		t.Fatalf("Ping: %v", err)
	}
	return result
}

// pingUntil pings until an answer satisfies the condition, and gives it.
func pingUntil(t *testing.T, r *Runloop, sandbox provider.Sandbox, endpoints provider.Endpoints, what string, condition func(provider.PingResult) bool) provider.PingResult {
	t.Helper()
	var result provider.PingResult
	cloudtest.Eventually(t, what, func() bool {
		result = ping(t, r, sandbox, endpoints)
		return condition(result)
	})
	return result
}

func alive(result provider.PingResult) bool { return result.Status == provider.PingAlive }

func ref(sandbox provider.Sandbox) provider.SandboxRef {
	return provider.SandboxRef{Owner: sandbox.Owner, SandboxID: sandbox.ID}
}

// box reads the one devbox of a sandbox.
func box(t *testing.T, cloud *sim.Cloud, sandbox provider.Sandbox) sim.View {
	t.Helper()
	for _, view := range cloud.Devboxes() {
		if view.ID == sandbox.ID {
			return view
		}
	}
	t.Fatalf("there is no devbox %s", sandbox.ID)
	return sim.View{}
}

// run runs a command in a devbox and returns what it printed.
func run(t *testing.T, r *Runloop, sandbox provider.Sandbox, command string) string {
	t.Helper()
	result, err := r.boxes.api.execute(t.Context(), sandbox.ID, command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.TrimRight(result.Stdout, "\n")
}
