package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/e2b/sim"
)

// hosts runs berth. Every run is a process of its own, on a machine of its own: they share the cloud and the secret.
type hosts struct {
	t          *testing.T
	executable string
	cloud      *sim.Cloud
}

func newHosts(t *testing.T, cloud *sim.Cloud) hosts {
	t.Helper()
	testbin.Build(t, "./plugins/e2b")
	return hosts{t: t, executable: testbin.Build(t, "./host"), cloud: cloud}
}

type outcome struct {
	code           int
	stdout, stderr string
	Sandbox        struct{ ID, Origin string }
	URL            string
	Headers        map[string]string
	Error          struct {
		Code      string
		Cleanup   string
		SandboxID string `json:"sandbox_id"`
	}
}

// config is a configuration file of its own, with a state directory of its own.
func (h hosts) config() string {
	h.t.Helper()
	dir := h.t.TempDir()
	text := fmt.Sprintf(`
host {
  state_dir = %q
  owner     = "tests"
  secret    = "a-secret-that-all-hosts-share"
  log_level = "trace"
}
provider "e2b" {
  config {
    api_url     = %q
    sandbox_url = %q
  }
}
`, filepath.Join(dir, "state"), h.cloud.APIURL, h.cloud.SandboxURL)
	path := filepath.Join(dir, "config.hcl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

func (h hosts) command(args ...string) *exec.Cmd {
	command := exec.CommandContext(h.t.Context(), h.executable, append(args, "--config", h.config(), "-o", "json")...)
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.t.TempDir(), "E2B_API_KEY=" + canary}
	return command
}

func (h hosts) berth(args ...string) outcome {
	h.t.Helper()
	o := finish(h.t, h.command(args...))
	if strings.Contains(o.stdout+o.stderr, canary) {
		h.t.Errorf("berth %v shows the API key:\n%s%s", args, o.stdout, o.stderr)
	}
	return o
}

func finish(t *testing.T, command *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Error(err)
	}
	o := outcome{code: command.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	if stdout.Len() > 0 {
		_ = json.Unmarshal(stdout.Bytes(), &o) // some commands print no object
	}
	return o
}

func TestEachBerthProcessFindsWhatTheOneBeforeLeft(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	h := newHosts(t, cloud)

	connect := func(wantOrigin string, flags ...string) outcome {
		t.Helper()
		o := h.berth(append([]string{"connect", "s1"}, flags...)...)
		if o.code != 0 || o.Sandbox.Origin != wantOrigin {
			t.Fatalf("connect: exit code %d, origin %q, want %q\n%s%s", o.code, o.Sandbox.Origin, wantOrigin, o.stdout, o.stderr)
		}
		return o
	}
	first := connect("created")
	if first.Headers["X-Session-API-Key"] == "" || first.Headers["e2b-traffic-access-token"] == "" {
		t.Errorf("headers: %v", first.Headers)
	}
	if attached := connect("attached"); attached.Sandbox.ID != first.Sandbox.ID {
		t.Errorf("another sandbox: %s, then %s", first.Sandbox.ID, attached.Sandbox.ID)
	}
	if o := h.berth("disconnect", "s1", "--action", "suspend"); o.code != 0 {
		t.Fatalf("suspend: %d\n%s%s", o.code, o.stdout, o.stderr)
	}
	if left := cloud.Sandboxes(); len(left) != 1 || left[0].State != "paused" {
		t.Errorf("after suspending: %+v", left)
	}
	if woken := connect("woken"); woken.Sandbox.ID != first.Sandbox.ID || woken.Headers["X-Session-API-Key"] != first.Headers["X-Session-API-Key"] {
		t.Errorf("another sandbox or key: %+v, then %+v", first, woken)
	}
	if o := h.berth("disconnect", "s1"); o.code != 0 {
		t.Fatalf("disconnect: %d\n%s%s", o.code, o.stdout, o.stderr)
	}
	if left := cloud.Sandboxes(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
	if o := h.berth("connect", "s1", "--mode", "attach"); o.code != 4 {
		t.Errorf("attaching to nothing: exit code %d\n%s", o.code, o.stdout)
	}
	for _, call := range cloud.Traffic.Calls() {
		if strings.Contains(call.Path+call.Body, canary) {
			t.Errorf("the API key is in the path or the body of %s", call.Operation)
		}
	}
}

func TestTwoProcessesThatConnectOneNewSessionAtOnceShareOneSandbox(t *testing.T) {
	t.Parallel()
	rounds := 5
	if text := os.Getenv("BERTH_RACE_ROUNDS"); text != "" {
		rounds, _ = strconv.Atoi(text)
	}
	cloud := newCloud(t, sim.Options{CreateTime: 50 * time.Millisecond, ListLag: 20 * time.Millisecond})
	h := newHosts(t, cloud)
	for round := range rounds {
		session := fmt.Sprintf("race-%d", round)
		commands := []*exec.Cmd{h.command("connect", session), h.command("connect", session)}
		outcomes := make([]outcome, len(commands))
		var both sync.WaitGroup
		for i := range commands {
			both.Go(func() { outcomes[i] = finish(t, commands[i]) })
		}
		both.Wait()
		for _, o := range outcomes {
			if o.code != 0 {
				t.Fatalf("round %d: exit code %d\n%s%s", round, o.code, o.stdout, o.stderr)
			}
		}
		left := cloud.Sandboxes()
		if len(left) != 1 || outcomes[0].Sandbox.ID != left[0].ID || outcomes[1].Sandbox.ID != left[0].ID {
			t.Fatalf("round %d: left %+v, connected %+v and %+v", round, left, outcomes[0].Sandbox, outcomes[1].Sandbox)
		}
		if servers := inside(t, cloud, left[0].ID, "cat /proc/[0-9]*/comm | grep -c '^berth-action'"); servers != "1" {
			t.Errorf("round %d: %s servers in the sandbox", round, servers)
		}
		cloud.Kill(left[0].ID)
	}
	t.Logf("%d rounds, %d second sandboxes made and removed", rounds, cloud.Traffic.Count("create")-rounds)
}
