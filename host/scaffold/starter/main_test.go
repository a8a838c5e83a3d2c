package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/berth-dev/berth/host/scaffold/starter/sim"
	"github.com/berth-dev/berth/shared/provider"
)

// The test binary is also the server in the boxes, when this variable is set.
const serverVariable = "ACME_TEST_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(serverVariable) != "" {
		serve()
	}
	goleak.VerifyTestMain(m) // all tests together leave no goroutine behind
}

// serve is a server with nothing to offer but its health.
func serve() {
	http.HandleFunc("/alive", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"status":"ok"}`) })
	http.HandleFunc("/exit", func(http.ResponseWriter, *http.Request) {
		fmt.Println("last words")
		os.Exit(7)
	})
	fmt.Println(http.ListenAndServe(net.JoinHostPort("127.0.0.1", os.Getenv("PORT")), nil))
	os.Exit(1)
}

// testServer is the server this test binary plays.
func testServer() provider.Server {
	return provider.Server{
		Command: []string{os.Args[0]}, Port: 8000, Env: map[string]string{serverVariable: "yes", "GORACE": "atexit_sleep_ms=0"},
		Health: provider.HealthCheck{Paths: []string{"/alive"}, JSONFields: map[string]string{"status": "ok"}},
	}
}

const owner, key = "tests", "key-that-must-not-be-seen"

// newSim starts a simulated cloud.
func newSim(t *testing.T) *sim.Cloud {
	t.Helper()
	cloud, err := sim.Start(sim.Options{Key: key, Boot: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	return cloud
}

// newCloud gives a provider for the simulated cloud, like a plugin process of its own.
func newCloud(t *testing.T, simulated *sim.Cloud) *Acme {
	t.Helper()
	c, err := open(t.Context(), Config{APIKey: key, URL: simulated.URL, Size: "small"}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func setup(t *testing.T) (*sim.Cloud, *Acme) {
	t.Helper()
	simulated := newSim(t)
	return simulated, newCloud(t, simulated)
}

func createRequest(session string) provider.CreateRequest {
	return provider.CreateRequest{
		Session: session, Owner: owner, Attempt: "attempt-of-" + session, Server: testServer(), Lifetime: time.Hour,
	}
}

func create(t *testing.T, c *Acme, session string) provider.Sandbox {
	t.Helper()
	sandbox, err := c.Create(t.Context(), createRequest(session))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return sandbox
}

func start(t *testing.T, c *Acme, sandbox provider.Sandbox) provider.Endpoints {
	t.Helper()
	endpoints, err := c.StartServer(t.Context(), startRequest(sandbox, testServer()))
	if err != nil {
		t.Fatalf("StartServer: %v", err)
	}
	return endpoints
}

func startRequest(sandbox provider.Sandbox, server provider.Server) provider.StartServerRequest {
	return provider.StartServerRequest{Session: sandbox.Session, Owner: owner, SandboxID: sandbox.ID, Server: server}
}

func pingRequest(sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingRequest {
	return provider.PingRequest{
		Session: sandbox.Session, Owner: owner, SandboxID: sandbox.ID, Endpoint: endpoints.Server, Health: testServer().Health,
	}
}

func list(t *testing.T, c *Acme) []provider.Sandbox {
	t.Helper()
	sandboxes, err := c.List(t.Context(), provider.ListRequest{Owner: owner})
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	return sandboxes
}

func wantCode(t *testing.T, err error, code provider.Code) *provider.Error {
	t.Helper()
	if provider.CodeOf(err) != code {
		t.Fatalf("error: %v (%q), want %q", err, provider.CodeOf(err), code)
	}
	return provider.AsError(err)
}

// awaitPing pings until there is an answer that ends a wait.
func awaitPing(t *testing.T, c *Acme, request provider.PingRequest) provider.PingResult {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		result, err := c.Ping(t.Context(), request)
		if err != nil {
			t.Fatalf("Ping: %v", err)
		}
		if result.Status != provider.PingNotYet {
			return result
		}
	}
	t.Fatal("no ping said anything that ends a wait")
	return provider.PingResult{}
}
