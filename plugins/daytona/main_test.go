package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"
	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) { os.Exit(cloudtest.Main(m, 12)) }

const (
	owner = "tests"
	// canary is the API key: it may be nowhere but in one header.
	canary = "dtn_canary_0123456789"
)

// testTimes are normalTimes for a cloud without delays.
var testTimes = times{
	Times: cloud.Times{
		Retry: cloud.Retry{Tries: 4, First: 5 * time.Millisecond, Most: 20 * time.Millisecond, Longest: 10 * time.Second},
		Poll:  5 * time.Millisecond, PollMost: 20 * time.Millisecond, Lost: 100 * time.Millisecond, Undo: 10 * time.Second,
		Reach: 2 * time.Second, Script: 12 * time.Second, FirstLook: 50 * time.Millisecond, Patience: 100 * time.Millisecond,
	},
	call: 20 * time.Second, slowCall: 20 * time.Second, token: 60 * time.Millisecond,
}

// newCloud makes a cloud whose sandboxes have the action server, with nothing left in it at the end of the test.
func newCloud(t *testing.T, options sim.Options) *sim.Cloud {
	t.Helper()
	if err := simcloud.Isolation(); err != nil {
		t.Skip(err)
	}
	options.APIKey = canary
	if options.TokenCache == 0 {
		options.TokenCache = 50 * time.Millisecond
	}
	cloud, err := sim.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	return cloud
}

// newProvider gives a provider for the cloud. change, which may be nil, changes its configuration.
func newProvider(t *testing.T, cloud *sim.Cloud, change func(*Config)) *Daytona {
	t.Helper()
	return newProviderWith(t, cloud, testTimes, change)
}

func newProviderWith(t *testing.T, cloud *sim.Cloud, times times, change func(*Config)) *Daytona {
	t.Helper()
	values, _ := json.Marshal(map[string]string{"api_key": canary, "api_url": cloud.URL()})
	config, err := provider.DecodeConfig[Config](values)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&config)
	}
	if err := config.check(); err != nil {
		t.Fatal(err)
	}
	d := newDaytona(config, hclog.NewNullLogger(), times)
	t.Cleanup(func() { d.Close() })
	return d
}

func createRequest(session string) provider.CreateRequest {
	return provider.CreateRequest{
		Session: session, Owner: owner, Attempt: "attempt-of-" + session, Server: pythonServer(),
		Labels: map[string]string{"team": "blue"}, Lifetime: time.Hour,
	}
}

func attachRequest(session string) provider.AttachRequest {
	return provider.AttachRequest{Session: session, Owner: owner, Server: pythonServer(), Lifetime: time.Hour}
}

func create(t *testing.T, d *Daytona, session string) provider.Sandbox {
	t.Helper()
	sandbox, err := d.Create(t.Context(), createRequest(session))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return sandbox
}

func attach(t *testing.T, d *Daytona, session string) provider.Sandbox {
	t.Helper()
	sandbox, err := d.Attach(t.Context(), attachRequest(session))
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return sandbox
}

func startRequest(sandbox provider.Sandbox, server provider.Server) provider.StartServerRequest {
	return provider.StartServerRequest{Session: sandbox.Session, Owner: sandbox.Owner, SandboxID: sandbox.ID, Server: server}
}

func start(t *testing.T, d *Daytona, sandbox provider.Sandbox, server provider.Server) provider.Endpoints {
	t.Helper()
	endpoints, err := d.StartServer(t.Context(), startRequest(sandbox, server))
	if err != nil {
		t.Fatalf("StartServer: %v", err)
	}
	return endpoints
}

func ping(t *testing.T, d *Daytona, sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingResult {
	t.Helper()
	result, err := d.Ping(t.Context(), provider.PingRequest{
		Session: sandbox.Session, Owner: sandbox.Owner, SandboxID: sandbox.ID, Endpoint: endpoints.Server,
		Health: provider.HealthCheck{Paths: []string{"/"}},
	})
	if err != nil {
		t.Fatalf("Ping: %v", err)
	}
	return result
}

func awaitAlive(t *testing.T, d *Daytona, sandbox provider.Sandbox, endpoints provider.Endpoints) {
	t.Helper()
	var last provider.PingResult
	cloudtest.Eventually(t, "the server is alive", func() bool {
		last = ping(t, d, sandbox, endpoints)
		if last.Status != provider.PingAlive && last.Status != provider.PingNotYet {
			t.Fatalf("%+v", last)
		}
		return last.Status == provider.PingAlive
	})
}

func ref(sandbox provider.Sandbox) provider.SandboxRef {
	return provider.SandboxRef{Owner: sandbox.Owner, SandboxID: sandbox.ID}
}

// pythonServer is a small web server, which answers its process number.
func pythonServer() provider.Server {
	const script = `
import os, socket, sys
s = socket.create_server(("", int(sys.argv[1])))
print("listening", flush=True)
while True:
    c, _ = s.accept()
    c.recv(65536)
    c.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + str(os.getpid()).encode())
    c.close()
`
	return provider.Server{Command: []string{"python3", "-IS", "-c", script, "{port}"}, Port: 8000}
}

func shellServer(script string) provider.Server {
	return provider.Server{Command: []string{"sh", "-c", script}, Port: 8000}
}

// withActionServer is the directory in which the action server is.
func withActionServer(t *testing.T) []string {
	t.Helper()
	return []string{filepath.Dir(testbin.Build(t, "./examples/action-server"))}
}

func short(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// get asks a URL and does not follow redirects.
func get(t *testing.T, url string, headers map[string]string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	client := provider.NewProbeClient()
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func mustGet(t *testing.T, d *Daytona, id string) *apiclient.Sandbox {
	t.Helper()
	sandbox, _, err := d.api.SandboxAPI.GetSandbox(t.Context(), id).Execute()
	if err != nil {
		t.Fatal(err)
	}
	return sandbox
}
