package providertest

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
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
		listing: patience, quick: 10 * time.Millisecond, late: patience, lasting: 2 * time.Second,
	}
	switch breach {
	case "process/ends-with-stdin", "process/ends-on-shutdown", "process/ends-on-sigterm", "process/ends-in-a-call":
		p.exit = time.Second
	case "start/endpoint", "ping/alive", "ping/stopped", "ping/gone", "robust/side-by-side", "ping/foreign", "ping/other-session":
		p.verdict = 2 * time.Second
	case "start/dies-at-once", "start/no-such-command":
		p.died = 2 * time.Second
	case "ping/exited": // the server lives for two seconds
		p.verdict = 5 * time.Second
	case "housekeeping/list-after-destroy", "housekeeping/list-complete", "housekeeping/logs", "end/nothing-left", "cancel/create", "cancel/create-deadline",
		"create/once-at-once", "create/once-across", "create/lost-answer", "start/changed", "housekeeping/renew", "housekeeping/suspend":
		p.listing = time.Second
	case "create/lifetime-ends", "housekeeping/renew-ends", "attach/creates-nothing":
		p.late = time.Second
	case "ping/slow", "cancel/ping", "cancel/ping-deadline":
		p.overtime = time.Second
	}
	return p
}

// mockCloud starts what mock takes for its cloud.
func mockCloud(t *testing.T) (url string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "mock") }))
	t.Cleanup(server.Close)
	return server.URL
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
	config := map[string]any{
		"state": filepath.Join(t.TempDir(), "cloud.json"), "serve": "http", "api_key": rand.Text() + "+/=&?",
		"create_latency": latency, "attach_latency": latency, "start_latency": latency, "breaches": breaches,
	}
	if breach == "create/lost-answer" {
		config["api_url"] = mockCloud(t)
	}
	return Plugin{
		Path: testbin.Build(t, "./plugins/mock"), Config: config,
		Env:    []string{"GORACE=atexit_sleep_ms=0", "MOCK_BREACHES=" + breach},
		NoMTLS: breach != "process/strange-client", // certificates are most of the cost of a start
	}
}

// unbreakable are the checks that mock cannot fail, with the reason.
var unbreakable = map[string]string{
	"end/alive": "a plugin that dies fails other checks as well",
}

// tempting are the checks that make a plugin do what a check at the end looks for.
var tempting = map[string]string{
	"end/silent": "ping/once", "end/nothing-left": "create/owners", "secrets/errors": "attach/missing", "secrets/stderr": "start/endpoint",
}

// breach is one of mock's: its name there, and the check that it makes fail.
type breach struct{ name, check string }

// breaches reads the table of the documentation, which mock's own test holds to what mock can do.
func breaches(t *testing.T) []breach {
	t.Helper()
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "<!-- breaches: ")
	var all []breach
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| .* \\| `([^`]+)` \\|$").FindAllStringSubmatch(table, -1) {
		all = append(all, breach{row[1], row[2]})
	}
	return all
}

func TestEachCheckHasABreach(t *testing.T) {
	t.Parallel()
	all := breaches(t)
	for _, c := range checks {
		has := slices.ContainsFunc(all, func(b breach) bool { return b.check == c.id() })
		if why := unbreakable[c.id()]; has == (why != "") {
			t.Errorf("%s: has a breach: %t; %s", c.id(), has, why)
		}
	}
}

// TestEachBreachMakesExactlyItsCheckFail runs a plugin with each breach. By itself it runs the breach's check with
// the ones at the beginning; with BERTH_CONFORMANCE=full the whole suite, for minutes.
func TestEachBreachMakesExactlyItsCheckFail(t *testing.T) {
	t.Parallel()
	full := os.Getenv("BERTH_CONFORMANCE") == "full"
	var mutex sync.Mutex
	var table []string
	t.Run("breaches", func(t *testing.T) {
		for _, b := range breaches(t) {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				p := mockPlugin(t, b.name)
				if !full {
					p.Only = strings.TrimSuffix(b.check+","+tempting[b.check], ",")
				}
				pace := paceFor(b.check)
				if full { // all other checks need their time
					pace.verdict = max(pace.verdict, 8*time.Second)
				}
				report := newSuite(p, pace).run(t.Context(), nil)
				var failed []string
				for _, r := range report.Results {
					if r.Status == Fail {
						failed = append(failed, r.Group+"/"+r.Name)
					}
				}
				if !slices.Equal(failed, []string{b.check}) {
					t.Errorf("these checks fail: %v", failed)
					_ = report.WriteText(t.Output())
				}
				mutex.Lock()
				defer mutex.Unlock()
				table = append(table, fmt.Sprintf("%-40s fails %v; %s", b.name, failed, report.Summary()))
			})
		}
	})
	slices.Sort(table)
	t.Logf("%d breaches:\n%s", len(table), strings.Join(table, "\n"))
}
