package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
)

// newMachine makes a machine whose configuration names a cloud.
func newMachine(t *testing.T, cloud *sim.Cloud) *cloudtest.Machine {
	t.Helper()
	return cloudtest.NewMachine(t, "e2b", canary, fmt.Sprintf(`
host {
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
`, cloud.APIURL, cloud.SandboxURL), "E2B_API_KEY="+canary)
}

func TestEachBerthProcessFindsWhatTheOneBeforeLeft(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	m := newMachine(t, cloud)

	connect := func(wantOrigin string) cloudtest.Outcome {
		t.Helper()
		o := m.Run("connect", "s1", "-o", "json")
		if o.Code != 0 || o.Sandbox.Origin != wantOrigin {
			t.Fatalf("connect: exit code %d, origin %q, want %q\n%s%s", o.Code, o.Sandbox.Origin, wantOrigin, o.Stdout, o.Stderr)
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
	if o := m.Run("disconnect", "s1", "--action", "suspend", "-o", "json"); o.Code != 0 {
		t.Fatalf("suspend: %d\n%s%s", o.Code, o.Stdout, o.Stderr)
	}
	if left := cloud.Sandboxes(); len(left) != 1 || left[0].State != "paused" {
		t.Errorf("after suspending: %+v", left)
	}
	if woken := connect("woken"); woken.Sandbox.ID != first.Sandbox.ID || woken.Headers["X-Session-API-Key"] != first.Headers["X-Session-API-Key"] {
		t.Errorf("another sandbox or key: %+v, then %+v", first, woken)
	}
	if o := m.Run("disconnect", "s1", "-o", "json"); o.Code != 0 {
		t.Fatalf("disconnect: %d\n%s%s", o.Code, o.Stdout, o.Stderr)
	}
	if left := cloud.Sandboxes(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
	if o := m.Run("connect", "s1", "--mode", "attach", "-o", "json"); o.Code != 4 {
		t.Errorf("attaching to nothing: exit code %d\n%s", o.Code, o.Stdout)
	}
	for _, call := range cloud.Traffic.Calls() {
		if strings.Contains(call.Path+call.Body, canary) {
			t.Errorf("the API key is in the path or the body of %s", call.Operation)
		}
	}
}

func TestTwoProcessesThatConnectOneNewSessionAtOnceShareOneSandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{CreateTime: 50 * time.Millisecond, ListLag: 20 * time.Millisecond})
	ids := func() (ids []string) {
		for _, sandbox := range cloud.Sandboxes() {
			ids = append(ids, sandbox.ID)
		}
		return ids
	}
	rounds := newMachine(t, cloud).Race(ids, func(session string, ids []string) {
		for _, id := range ids {
			if servers := inside(t, cloud, id, "cat /proc/[0-9]*/comm | grep -c '^berth-action'"); servers != "1" {
				t.Errorf("%s: %s servers in the sandbox", session, servers)
			}
			cloud.Kill(id)
		}
	})
	t.Logf("%d rounds, %d second sandboxes made and removed", rounds, cloud.Traffic.Count("create")-rounds)
}
