package bench

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// The test binary is also what it measures: a host with a process of its own, so that its memory is known, and the
// server in a sandbox, which knows when it was ready.
const (
	roleVariable = "BERTH_BENCH_ROLE"
	roleCrowd    = "crowd"
	roleWaiting  = "waiting"
	roleServer   = "server"
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(runBenchmarks(m))
	case roleCrowd:
		beHost(beCrowd)
	case roleWaiting:
		beHost(beWaiting)
	case roleServer:
		beServer()
	default:
		fmt.Fprintf(os.Stderr, "%s=%s is no role\n", roleVariable, role)
		os.Exit(2)
	}
}

func runBenchmarks(m *testing.M) int {
	code := testbin.Main(m)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// patience bounds what takes far less time.
const patience = time.Minute

const owner = "bench"

// lifetime ends the sandboxes of a run that was killed.
const lifetime = 10 * time.Minute

var secret = []byte("a secret of the benchmarks, not of anybody")

// idle is a cloud that costs nothing: no waiting, no HTTP, no processes.
const idle = `{"serve":"none"}`

// startPlugin starts a plugin under the supervisor and returns when it is ready for calls.
func startPlugin(path, config string, mtls bool) (*supervise.Plugin, error) {
	plugin := supervise.New(supervise.Spec{
		Name: "bench", Path: path, MTLS: mtls, StartTimeout: patience,
		Configure: func(provider.Description) ([]byte, error) { return []byte(config), nil },
	})
	if _, err := plugin.Describe(context.Background()); err != nil {
		plugin.Stop(context.Background())
		return nil, err
	}
	return plugin, nil
}

// newPlugin is startPlugin for a plugin that ends with the benchmark.
func newPlugin(b *testing.B, path, config string, mtls bool) *supervise.Plugin {
	b.Helper()
	plugin, err := startPlugin(path, config, mtls)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := plugin.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return plugin
}

func newConnector(plugin *supervise.Plugin) *connect.Connector {
	return connect.New(plugin, "bench", owner, secret, records.NewMemory().Store("bench"))
}

// request asks for a session as a usual configuration would.
func request(session string) connect.Request {
	return connect.Request{
		Session: session,
		Server: connect.Server{
			Server: provider.Server{
				Command: []string{"action-server", "--port", "{port}"}, Port: 8000,
				Health: provider.HealthCheck{Paths: []string{"/alive"}, JSONFields: map[string]string{"status": "ok"}},
			},
			KeyEnv: []string{"SESSION_API_KEY"}, KeyHeader: "X-Session-API-Key",
		},
		Lifetime: lifetime,
	}
}

// nothingLeft says which sandboxes are left, if any.
func nothingLeft(connector *connect.Connector) error {
	left, err := sessions.New(connector).List(context.Background())
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%d sandboxes are left, %s of session %s among them", len(left), left[0].ID, left[0].Session)
	}
	return err
}

// pass lets time go by that belongs to an experiment.
func pass(d time.Duration) { time.Sleep(d) }

// eventually waits for a condition, for a while, and says whether it came true.
func eventually(met func() bool) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); pass(5 * time.Millisecond) {
		if met() {
			return true
		}
	}
	return false
}
