package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/shared/provider"
)

// simulated is a simulated cloud: the flags that take away its latency, and the plugin's configuration by the variables
// that the simulator prints.
type simulated struct {
	flags  []string
	config map[string]string
}

var clouds = map[string]simulated{
	"daytona": {
		[]string{"-create", "0"},
		map[string]string{"DAYTONA_API_URL": "api_url", "DAYTONA_API_KEY": "api_key"},
	},
	"e2b": {
		nil,
		map[string]string{"E2B_API_KEY": "api_key", "E2B_API_URL": "api_url", "E2B_SANDBOX_URL": "sandbox_url"},
	},
	"modal": {
		[]string{"-create", "0"},
		map[string]string{"MODAL_TOKEN_ID": "token_id", "MODAL_TOKEN_SECRET": "token_secret", "MODAL_SERVER_URL": "server_url"},
	},
	"runloop": {
		[]string{"-provision", "0", "-suspend", "0", "-resume", "0", "-lazy-status", "0"},
		map[string]string{"RUNLOOP_API_KEY": "api_key", "RUNLOOP_BASE_URL": "base_url", "RUNLOOP_TUNNEL_URL": "tunnel_url"},
	},
}

// BenchmarkLaunch is how long after the beginning of StartServer the first probe is made, with each cloud's plugin on a
// simulated cloud without latency: the time that the plugin itself lets pass, and a few requests on this machine.
// "daytona-wake" connects suspended sandboxes with public ports, whose wake needs no token and so no pause.
func BenchmarkLaunch(b *testing.B) {
	for _, name := range slices.Sorted(maps.Keys(clouds)) {
		b.Run(name, func(b *testing.B) { launch(b, name, nil, false) })
	}
	b.Run("daytona-wake", func(b *testing.B) { launch(b, "daytona", map[string]any{"public": true}, true) })
}

func launch(b *testing.B, name string, config map[string]any, wake bool) {
	b.Helper()
	rounds := size(20, 2)
	connector := connectorFor(b, name, config)
	b.Cleanup(func() { leaveNothing(b, connector) })
	ctx := context.Background()

	var waited, acquired figures
	for i := range rounds {
		asked := request(fmt.Sprintf("session-%d", i))
		asked.Server.Command = []string{"berth-action-server"}
		origin := provider.OriginCreated
		if wake {
			origin = provider.OriginWoken
			if _, err := connector.Connect(ctx, asked, nil); err != nil {
				b.Fatal(err)
			}
			if _, err := sessions.New(connector).Disconnect(ctx, asked.Session, sessions.ActionSuspend, nil); err != nil {
				b.Fatal(err)
			}
		}
		began := map[connect.Phase]time.Time{}
		note := func(e connect.Event) {
			if e.Status == connect.StatusStarted {
				began[e.Phase] = e.Time
			}
		}
		result, err := connector.Connect(ctx, asked, note)
		if err != nil || result.Origin != origin {
			b.Fatalf("%+v, %v", result, err)
		}
		acquired = append(acquired, began[connect.PhaseStartServer].Sub(began[connect.PhaseAcquire]))
		waited = append(waited, began[connect.PhaseHealth].Sub(began[connect.PhaseStartServer]))
		if _, err := sessions.New(connector).Disconnect(ctx, asked.Session, sessions.ActionDestroy, nil); err != nil {
			b.Fatal(err)
		}
	}
	report(b, map[string]float64{"first-probe-ms": ms(waited.median()), "acquire-ms": ms(acquired.median())})
	b.Logf("medians of %d connects; aim: first-probe-ms at most 30 over what the cloud takes", rounds)
}

// connectorFor connects through the plugin's executable to the simulated cloud of that name. Both end with the benchmark.
func connectorFor(b *testing.B, name string, config map[string]any) *connect.Connector {
	b.Helper()
	values := maps.Clone(config)
	if values == nil {
		values = map[string]any{}
	}
	for variable, value := range startCloud(b, name) {
		if attribute, known := clouds[name].config[variable]; known {
			values[attribute] = value
		}
	}
	encoded, err := json.Marshal(values)
	if err != nil {
		b.Fatal(err)
	}
	plugin := supervise.New(supervise.Spec{
		Name: name, Path: testbin.Build(b, "./plugins/"+name), MTLS: true, StartTimeout: patience,
		Configure: func(provider.Description) ([]byte, error) { return encoded, nil },
	})
	b.Cleanup(func() {
		if err := plugin.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	})
	if _, err := plugin.Describe(context.Background()); err != nil {
		b.Fatal(err)
	}
	return newConnector(plugin)
}

// startCloud starts a simulated cloud, whose sandboxes have the action server, and returns the variables it prints.
func startCloud(b *testing.B, name string) map[string]string {
	b.Helper()
	path := filepath.Dir(testbin.Build(b, "./examples/action-server"))
	cloud := exec.Command(testbin.Build(b, "./plugins/"+name+"/sim/cmd"), append(clouds[name].flags, "-path", path)...)
	cloud.Stderr = os.Stderr
	stdout, err := cloud.StdoutPipe()
	if err == nil {
		err = cloud.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := cloud.Process.Signal(os.Interrupt); err != nil {
			b.Error(err)
		}
		if err := cloud.Wait(); err != nil {
			b.Errorf("the simulated %s: %v", name, err)
		}
	})
	variables := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(stdout, 1<<16))
	for lines.Scan() {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		variables[name] = strings.Trim(value, "'")
	}
	return variables
}
