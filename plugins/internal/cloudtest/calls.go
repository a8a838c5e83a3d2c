package cloudtest

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	// Owner is the owner of the tests' sandboxes.
	Owner = "tests"
	// stranger is another owner.
	stranger = "somebody else"
	// serverSecret is in the environment of the tests' servers.
	serverSecret = "session-secret"
)

// ActionServer is the example server.
func ActionServer() provider.Server {
	return provider.Server{
		Command: []string{"berth-action-server", "--port", "{port}"}, Port: 8000,
		Env:    map[string]string{"SESSION_API_KEY": serverSecret},
		Health: provider.HealthCheck{Paths: []string{"/alive"}, JSONFields: map[string]string{"status": "ok"}, Timeout: 5 * time.Second},
	}
}

// Shell is a server that is a shell script.
func Shell(script string) provider.Server {
	server := ActionServer()
	server.Command = []string{"sh", "-c", script}
	return server
}

// PathDirs are the directories of the action server, for simulators.
func PathDirs(t *testing.T) []string {
	t.Helper()
	return []string{filepath.Dir(testbin.Build(t, "./examples/action-server"))}
}

// CreateRequest asks for a session's sandbox, by the attempt "attempt-of-SESSION".
func CreateRequest(session string) provider.CreateRequest {
	return provider.CreateRequest{
		Session: session, Owner: Owner, Attempt: "attempt-of-" + session, Server: ActionServer(),
		Labels: map[string]string{"team": "blue & green = 100%"}, Lifetime: time.Hour,
	}
}

// AttachRequest asks for a session's existing sandbox.
func AttachRequest(session string) provider.AttachRequest {
	return provider.AttachRequest{Session: session, Owner: Owner, Server: ActionServer(), Lifetime: time.Hour}
}

// StartRequest asks for a server in a sandbox.
func StartRequest(sandbox provider.Sandbox, server provider.Server) provider.StartServerRequest {
	return provider.StartServerRequest{Session: sandbox.Session, Owner: sandbox.Owner, SandboxID: sandbox.ID, Server: server}
}

// Ref names a sandbox.
func Ref(sandbox provider.Sandbox) provider.SandboxRef {
	return provider.SandboxRef{Owner: sandbox.Owner, SandboxID: sandbox.ID}
}

// Create makes a session's sandbox.
func Create(t *testing.T, p provider.Provider, session string) provider.Sandbox {
	t.Helper()
	sandbox, err := p.Create(t.Context(), CreateRequest(session))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return sandbox
}

// Attach finds a session's sandbox.
func Attach(t *testing.T, p provider.Provider, session string) provider.Sandbox {
	t.Helper()
	sandbox, err := p.Attach(t.Context(), AttachRequest(session))
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return sandbox
}

// Start starts a server.
func Start(t *testing.T, p provider.Provider, sandbox provider.Sandbox, server provider.Server) provider.Endpoints {
	t.Helper()
	endpoints, err := p.StartServer(t.Context(), StartRequest(sandbox, server))
	if err != nil {
		t.Fatalf("StartServer: %v %q", err, provider.AsError(err).LogTail)
	}
	return endpoints
}

// PingRequest asks whether the server at an endpoint is healthy.
func PingRequest(sandbox provider.Sandbox, endpoint provider.Endpoint) provider.PingRequest {
	return provider.PingRequest{
		Session: sandbox.Session, Owner: sandbox.Owner, SandboxID: sandbox.ID, Endpoint: endpoint, Health: ActionServer().Health,
	}
}

// Ping asks a server once.
func Ping(t *testing.T, p provider.Provider, sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingResult {
	t.Helper()
	result, err := p.Ping(t.Context(), PingRequest(sandbox, endpoints.Server))
	if err != nil {
		t.Fatalf("Ping: %v", err)
	}
	return result
}

// AwaitPing pings until the answer is something else than "not yet". A denial counts once it lasts, as for a host.
func AwaitPing(t *testing.T, p provider.Provider, sandbox provider.Sandbox, endpoints provider.Endpoints) provider.PingResult {
	t.Helper()
	var result provider.PingResult
	var denied time.Time
	Eventually(t, "a ping ends the wait", func() bool {
		result = Ping(t, p, sandbox, endpoints)
		if result.Status != provider.PingDenied {
			denied = time.Time{}
			return result.Status != provider.PingNotYet
		}
		if denied.IsZero() {
			denied = time.Now()
		}
		return time.Since(denied) > 3*time.Second
	})
	return result
}

// AwaitAlive pings until the server is alive.
func AwaitAlive(t *testing.T, p provider.Provider, sandbox provider.Sandbox, endpoints provider.Endpoints) {
	t.Helper()
	if result := AwaitPing(t, p, sandbox, endpoints); result.Status != provider.PingAlive {
		t.Fatalf("Ping: %+v", result)
	}
}

// Up makes a session's sandbox with a healthy server.
func Up(t *testing.T, p provider.Provider, session string) (provider.Sandbox, provider.Endpoints) {
	t.Helper()
	sandbox := Create(t, p, session)
	endpoints := Start(t, p, sandbox, ActionServer())
	AwaitAlive(t, p, sandbox, endpoints)
	return sandbox, endpoints
}

// Get asks an endpoint for a path, without following redirects.
func Get(t *testing.T, endpoint provider.Endpoint, path string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, endpoint.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range endpoint.Headers {
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

// Inside runs a shell script in a sandbox's machine and returns what it printed.
func Inside(t *testing.T, box *simcloud.Box, script string) string {
	t.Helper()
	_, output, err := box.Run(t.Context(), "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(output.Bytes(simcloud.Both)))
}

// Within is a context that ends after d.
func Within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// WantCode checks the class of an error and returns the error.
func WantCode(t *testing.T, err error, code provider.Code) *provider.Error {
	t.Helper()
	if provider.CodeOf(err) != code {
		t.Fatalf("error %v (%q), want %q", err, provider.CodeOf(err), code)
	}
	return provider.AsError(err)
}

// Err drops the other result of a call.
func Err[T any](_ T, err error) error { return err }
