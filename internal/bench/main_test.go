package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/redact"
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

const (
	owner = "bench"
	label = "bench" // of the provider
)

// lifetime ends the sandboxes of a run that was killed.
const lifetime = 10 * time.Minute

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

// host is one host with one provider, whose plugin runs.
type host struct {
	fleet  *fleet.Fleet
	plugin *supervise.Plugin
	dir    string // its configuration and its state
}

// inMemory keeps the records in memory; without it they are in SQLite, as every host has them.
var inMemory = fleet.Options{Records: func(opened records.Store) records.Store {
	opened.Close()
	return records.NewMemory().Store("bench")
}}

// startHost starts a host and returns when its plugin is ready for calls. settings are those of the plugin, as a JSON
// object.
func startHost(path, settings string, mtls bool, options fleet.Options) (*host, error) {
	var values map[string]json.RawMessage
	if err := json.Unmarshal([]byte(settings), &values); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "host {\nstate_dir = %q\nowner = %q\n}\n", dir, owner)
	fmt.Fprintf(&text, "provider %q {\npath = %q\nmtls = %t\nstart_timeout = %q\nconfig {\n", label, path, mtls, patience)
	for name, value := range values {
		fmt.Fprintf(&text, "%s = %s\n", name, value) // HCL reads JSON's values
	}
	text.WriteString("}\n}\n")
	file := filepath.Join(dir, "config.hcl")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		return nil, err
	}
	conf, mistakes := config.Load(file, dir, func(string) (string, bool) { return "", false }, &redact.Set{})
	if mistakes.HasErrors() {
		return nil, mistakes
	}
	f := fleet.New(conf, options)
	plugin, err := f.Plugin(conf.Providers[0])
	h := &host{f, plugin, dir}
	if err == nil {
		_, err = f.CheckProvider(context.Background(), label)
	}
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// newHost is startHost for a host that ends with the benchmark.
func newHost(b *testing.B, path, settings string, mtls bool, options fleet.Options) *host {
	b.Helper()
	h, err := startHost(path, settings, mtls, options)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := h.close(); err != nil {
			b.Error(err)
		}
	})
	return h
}

func (h *host) close() error { return errors.Join(h.fleet.Close(), os.RemoveAll(h.dir)) }

func (h *host) connect(ctx context.Context, req connect.Request, events func(connect.Event)) (connect.Result, error) {
	s, err := h.fleet.Session(ctx, req.Session, label)
	if err != nil {
		return connect.Result{}, err
	}
	return s.Connect(ctx, req, events)
}

func (h *host) disconnect(ctx context.Context, session string, action sessions.Action) error {
	s, err := h.fleet.Session(ctx, session, label)
	if err != nil {
		return err
	}
	_, err = s.Disconnect(ctx, action, nil)
	return err
}

// nothingLeft says whether sandboxes are left.
func (h *host) nothingLeft() error {
	left, err := h.fleet.CheckProvider(context.Background(), label)
	if err == nil && left > 0 {
		err = fmt.Errorf("%d sandboxes are left", left)
	}
	return err
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
