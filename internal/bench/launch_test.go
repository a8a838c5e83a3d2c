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
	h := hostOn(b, name, config)
	b.Cleanup(func() { h.leaveNothing(b) })
	ctx := context.Background()

	var waited, acquired figures
	for i := range rounds {
		asked := request(fmt.Sprintf("session-%d", i))
		asked.Server.Command = []string{"berth-action-server"}
		origin := provider.OriginCreated
		if wake {
			origin = provider.OriginWoken
			if _, err := h.connect(ctx, asked, nil); err != nil {
				b.Fatal(err)
			}
			if err := h.disconnect(ctx, asked.Session, sessions.ActionSuspend); err != nil {
				b.Fatal(err)
			}
		}
		began := map[connect.Phase]time.Time{}
		note := func(e connect.Event) {
			if e.Status == connect.StatusStarted {
				began[e.Phase] = e.Time
			}
		}
		result, err := h.connect(ctx, asked, note)
		if err != nil || result.Origin != origin {
			b.Fatalf("%+v, %v", result, err)
		}
		acquired = append(acquired, began[connect.PhaseStartServer].Sub(began[connect.PhaseAcquire]))
		waited = append(waited, began[connect.PhaseHealth].Sub(began[connect.PhaseStartServer]))
		if err := h.disconnect(ctx, asked.Session, sessions.ActionDestroy); err != nil {
			b.Fatal(err)
		}
	}
	report(b, map[string]float64{"first-probe-ms": ms(waited.median()), "acquire-ms": ms(acquired.median())})
	b.Logf("medians of %d connects; aim: first-probe-ms at most 30 over what the cloud takes", rounds)
}

// hostOn returns a host whose provider is the simulated cloud of that name. Both end with the benchmark.
func hostOn(b *testing.B, name string, settings map[string]any) *host {
	b.Helper()
	all := map[string]any{}
	maps.Copy(all, settings)
	for variable, value := range startCloud(b, name) {
		if attribute, known := clouds[name].config[variable]; known {
			all[attribute] = value
		}
	}
	encoded, err := json.Marshal(all)
	if err != nil {
		b.Fatal(err)
	}
	return newHost(b, testbin.Build(b, "./plugins/"+name), string(encoded), true, inMemory)
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
