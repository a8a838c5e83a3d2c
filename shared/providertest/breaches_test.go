package providertest

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
)

// patience is how long the suite waits here for what must happen: far longer than it takes.
const patience = 30 * time.Second

// paceFor is a patient pace, except for what a breach keeps from happening.
func paceFor(breach string) pace {
	p := pace{
		start: time.Minute, check: 2 * time.Minute, exit: patience, overtime: patience, verdict: patience, died: patience,
		listing: patience, quick: 10 * time.Millisecond,
	}
	switch breach {
	case "process/ends-with-stdin", "process/ends-on-shutdown", "process/ends-on-sigterm", "process/ends-in-a-call":
		p.exit = time.Second
	case "start/endpoint", "ping/alive", "ping/stopped", "ping/gone", "robust/side-by-side":
		p.verdict = 2 * time.Second
	case "start/dies-at-once", "start/no-such-command":
		p.died = 2 * time.Second
	case "ping/exited": // the server lives for two seconds
		p.verdict = 5 * time.Second
	case "housekeeping/list-after-destroy", "housekeeping/list-complete", "housekeeping/logs", "end/nothing-left", "cancel/create", "cancel/create-deadline":
		p.listing = time.Second
	case "ping/slow", "cancel/ping", "cancel/ping-deadline":
		p.overtime = time.Second
	}
	return p
}

// mockPlugin is the plugin that can break the contract.
func mockPlugin(t *testing.T, breach string) Plugin {
	t.Helper()
	breaches := []string{}
	if breach != "" {
		breaches = append(breaches, breach)
	}
	latency := "60ms"
	if strings.HasPrefix(breach, "cancel/") {
		latency = "300ms" // so that the middle of a call is in its middle on a busy machine as well
	}
	return Plugin{
		Path: testbin.Build(t, "./plugins/mock"),
		Env:  []string{"GORACE=atexit_sleep_ms=0", "MOCK_BREACHES=" + breach},
		Config: map[string]any{
			"state": filepath.Join(t.TempDir(), "cloud.json"), "serve": "http", "api_key": rand.Text(),
			"create_latency": latency, "attach_latency": latency, "start_latency": latency, "breaches": breaches,
		},
		NoMTLS: true, // certificates are most of the cost of a start
	}
}

// unbreakable are the checks that mock cannot fail, with the reason.
var unbreakable = map[string]string{
	"configure/required":     "mock requires no attribute",
	"configure/once":         "the SDK refuses",
	"configure/before-calls": "the SDK refuses",
	"robust/oversized":       "gRPC refuses",
	"robust/unknown-method":  "gRPC refuses",
	"end/alive":              "a plugin that crashes fails other checks as well",
}

// tempting are the checks that make a plugin do what a check at the end looks for.
var tempting = map[string]string{
	"end/silent": "ping/once", "end/nothing-left": "create/owners", "secrets/errors": "attach/missing", "secrets/stderr": "start/endpoint",
}

// TestEachBreachMakesExactlyItsCheckFail runs, for every check, a plugin that breaks it. By itself it runs that check
// with the ones at the beginning and the end; with BERTH_CONFORMANCE=full the whole suite, for minutes.
func TestEachBreachMakesExactlyItsCheckFail(t *testing.T) {
	t.Parallel()
	full := os.Getenv("BERTH_CONFORMANCE") == "full"
	var mutex sync.Mutex
	var table []string
	t.Run("breaches", func(t *testing.T) {
		for _, c := range checks {
			if unbreakable[c.id()] != "" {
				continue
			}
			t.Run(c.id(), func(t *testing.T) {
				t.Parallel()
				p := mockPlugin(t, c.id())
				if !full {
					p.Only = strings.TrimSuffix(c.id()+","+tempting[c.id()], ",")
				}
				report := newSuite(p, paceFor(c.id())).run(t.Context(), nil)
				var failed []string
				for _, r := range report.Results {
					if r.Status == Fail {
						failed = append(failed, r.Group+"/"+r.Name)
					}
				}
				if !slices.Equal(failed, []string{c.id()}) {
					t.Errorf("these checks fail: %v", failed)
					_ = report.WriteText(t.Output())
				}
				mutex.Lock()
				defer mutex.Unlock()
				table = append(table, fmt.Sprintf("%-32s fails %v; %s", c.id(), failed, report.Summary()))
			})
		}
	})
	slices.Sort(table)
	t.Logf("%d breaches:\n%s", len(table), strings.Join(table, "\n"))
}
