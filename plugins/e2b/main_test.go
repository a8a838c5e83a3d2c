package main

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) { os.Exit(cloudtest.Main(m, 6)) }

const (
	owner = "tests"
	// canary is the API key: it must be nowhere but in one header.
	canary = "e2b_ca9a47ca9a47ca9a47ca9a47ca9a47ca9a47ca9a"
)

// quick are times for tests: long enough for a busy machine where they are patience, short where they are waited for.
var quick = times{
	call: 20 * time.Second, slowCall: 20 * time.Second,
	pause: 5 * time.Millisecond, longestPause: 20 * time.Millisecond, longestAsked: 2 * time.Second,
	undo: 10 * time.Second, settle: 100 * time.Millisecond, rivals: time.Second, transition: 5 * time.Second,
	start: 20 * time.Second, script: 10 * time.Second, secondLook: 3 * time.Second,
	patience: 50 * time.Millisecond, askServer: 100 * time.Millisecond, askControl: 200 * time.Millisecond,
}

// newCloud starts a simulated E2B that finds the action server in its sandboxes.
func newCloud(t *testing.T, options sim.Options) *sim.Cloud {
	t.Helper()
	if err := simcloud.Isolation(); err != nil {
		t.Skip(err)
	}
	options.Key = canary
	options.PathDirs = append(options.PathDirs, filepath.Dir(testbin.Build(t, "./examples/action-server")))
	cloud, err := sim.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	return cloud
}

func configFor(cloud *sim.Cloud) Config {
	return Config{
		APIKey: canary, Domain: "e2b.app", APIURL: cloud.APIURL, SandboxURL: cloud.SandboxURL, Template: "base", OnTimeout: "kill", Internet: true,
	}
}

// newProvider gives a provider for the cloud: every one is like a process of its own, it remembers nothing of another.
func newProvider(t *testing.T, cloud *sim.Cloud, changes ...func(*Config, *times)) *E2B {
	t.Helper()
	config, times := configFor(cloud), quick
	for _, change := range changes {
		change(&config, &times)
	}
	p := newE2B(config, hclog.NewNullLogger(), times)
	t.Cleanup(func() { p.Close() })
	return p
}

func setup(t *testing.T) (*sim.Cloud, *E2B) {
	t.Helper()
	cloud := newCloud(t, sim.Options{})
	return cloud, newProvider(t, cloud)
}

func actionServer() provider.Server {
	return provider.Server{
		Command: []string{"berth-action-server", "--port", "{port}"}, Port: 8000,
		Env:    map[string]string{"SESSION_API_KEY": "session-secret"},
		Health: provider.HealthCheck{Paths: []string{"/alive"}, JSONFields: map[string]string{"status": "ok"}, Timeout: 5 * time.Second},
	}
}

// shell is a server that is a shell script.
func shell(script string) provider.Server {
	server := actionServer()
	server.Command = []string{"sh", "-c", script}
	return server
}

func createRequest(session string) provider.CreateRequest {
	return provider.CreateRequest{
		Session: session, Owner: owner, Attempt: "attempt-of-" + session, Server: actionServer(),
		Labels: map[string]string{"team": "blue & green = 100%"}, Lifetime: time.Hour,
	}
}

func attachRequest(session string) provider.AttachRequest {
	return provider.AttachRequest{Session: session, Owner: owner, Server: actionServer(), Lifetime: time.Hour}
}

func create(t *testing.T, p *E2B, session string) provider.Sandbox {
	t.Helper()
	sandbox, err := p.Create(t.Context(), createRequest(session))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return sandbox
}

func attach(t *testing.T, p *E2B, session string) provider.Sandbox {
	t.Helper()
	sandbox, err := p.Attach(t.Context(), attachRequest(session))
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return sandbox
}

func startRequest(sandbox provider.Sandbox, server provider.Server) provider.StartServerRequest {
	return provider.StartServerRequest{Session: sandbox.Session, Owner: owner, SandboxID: sandbox.ID, Server: server}
}

func start(t *testing.T, p *E2B, sandbox provider.Sandbox, server provider.Server) provider.Endpoints {
	t.Helper()
	endpoints, err := p.StartServer(t.Context(), startRequest(sandbox, server))
	if err != nil {
		t.Fatalf("StartServer: %v %q", err, provider.AsError(err).LogTail)
	}
	return endpoints
}

func pingRequest(sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingRequest {
	return provider.PingRequest{
		Session: sandbox.Session, Owner: owner, SandboxID: sandbox.ID, Endpoint: endpoints.Server, Health: actionServer().Health,
	}
}

func ping(t *testing.T, p *E2B, sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingResult {
	t.Helper()
	result, err := p.Ping(t.Context(), pingRequest(sandbox, endpoints))
	if err != nil {
		t.Fatalf("Ping: %v", err)
	}
	return result
}

// awaitPing pings until there is an answer that ends a wait.
func awaitPing(t *testing.T, p *E2B, sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingResult {
	t.Helper()
	var result provider.PingResult
	cloudtest.Eventually(t, "a ping says something that ends the wait", func() bool {
		result = ping(t, p, sandbox, endpoints)
		return result.Status != provider.PingNotYet
	})
	return result
}

func ref(sandbox provider.Sandbox) provider.SandboxRef {
	return provider.SandboxRef{Owner: owner, SandboxID: sandbox.ID}
}

// up creates a session's sandbox with a healthy server.
func up(t *testing.T, p *E2B, session string) (provider.Sandbox, provider.Endpoints) {
	t.Helper()
	sandbox := create(t, p, session)
	endpoints := start(t, p, sandbox, actionServer())
	if result := awaitPing(t, p, sandbox, endpoints); result.Status != provider.PingAlive {
		t.Fatalf("Ping: %+v", result)
	}
	return sandbox, endpoints
}

// get asks an endpoint for a path, with its headers changed.
func get(t *testing.T, endpoint provider.Endpoint, path string, change func(http.Header)) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, endpoint.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range endpoint.Headers {
		request.Header.Set(name, value)
	}
	change(request.Header)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return response
}

// inside runs a shell command in a sandbox and gives what it printed.
func inside(t *testing.T, cloud *sim.Cloud, id, command string) string {
	t.Helper()
	_, output, err := cloud.Box(id).Run(t.Context(), "sh", "-c", command)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(output.Bytes(simcloud.Both)))
}

func wantCode(t *testing.T, err error, code provider.Code) *provider.Error {
	t.Helper()
	if provider.CodeOf(err) != code {
		t.Fatalf("error: %v (%q), want %q", err, provider.CodeOf(err), code)
	}
	return provider.AsError(err)
}

func background(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
