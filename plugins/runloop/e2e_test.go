package main

import (
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
)

// installation is a machine and its cloud.
type installation struct {
	*cloudtest.Machine
	cloud *sim.Cloud
}

func newInstallation(t *testing.T, options sim.Options) *installation {
	t.Helper()
	const config = `
		host {
			secret = "a secret of these tests"
			owner  = "tests"
		}
		provider "runloop" {
			env = { GORACE = "atexit_sleep_ms=0" }
		}
	`
	cloud := newCloud(t, options)
	env := []string{"BERTH_LOG=trace"}
	for name, value := range cloud.Environment() {
		env = append(env, name+"="+value)
	}
	return &installation{cloudtest.NewMachine(t, "runloop", canary, config, env...), cloud}
}

func (i *installation) connect(origin, session string) cloudtest.Connection {
	i.Helper()
	result := i.Connect(session)
	if result.Sandbox.Origin != origin {
		i.Fatalf("connect %s: %+v, want %s", session, result.Sandbox, origin)
	}
	return result
}

func TestFreshProcessesShareNothingButTheCloud(t *testing.T) {
	t.Parallel()
	i := newInstallation(t, sim.Options{
		Provision: 100 * time.Millisecond, Suspend: 100 * time.Millisecond, Resume: 100 * time.Millisecond, LazyStatus: 50 * time.Millisecond,
	})
	created := i.connect("created", "s1")
	attached := i.connect("attached", "s1")
	i.Disconnect("s1", "--action", "suspend")
	if live := i.cloud.Live(); len(live) != 1 || live[0].Status != "suspended" {
		t.Errorf("after the suspend: %+v", live)
	}
	woken := i.connect("woken", "s1")
	for _, again := range []cloudtest.Connection{attached, woken} {
		if again.Sandbox.ID != created.Sandbox.ID || again.URL != created.URL {
			t.Errorf("got %s at %s, then %s at %s", created.Sandbox.ID, created.URL, again.Sandbox.ID, again.URL)
		}
	}
	if created.Headers["X-Runloop-Tunnel-Authorization"] == "" || created.Headers["X-Session-API-Key"] == "" {
		t.Errorf("the headers are %+v", created.Headers)
	}
	i.Disconnect("s1")
	if live := i.cloud.Live(); len(live) != 0 {
		t.Errorf("left: %+v", live)
	}
	if o := i.Run("connect", "s1", "--mode", "attach", "-o", "json"); o.Code != 4 {
		t.Errorf("attaching to nothing: exit code %d", o.Code)
	}
}

func TestTwoProcessesThatConnectOneSessionEndWithOneSandbox(t *testing.T) {
	t.Parallel()
	i := newInstallation(t, sim.Options{Provision: 100 * time.Millisecond})
	// Both have looked and found nothing by the time the first devbox is made.
	i.cloud.Fail(simcloud.Fault{Operation: "create", Delay: time.Second})
	ids := func() (ids []string) {
		for _, devbox := range i.cloud.Live() {
			ids = append(ids, devbox.ID)
		}
		return ids
	}
	rounds := i.Race(ids, func(session string, _ []string) { i.Disconnect(session) })
	if creates := i.cloud.Count("create"); creates <= rounds {
		t.Errorf("%d rounds made %d devboxes: there was no race", rounds, creates)
	}
}
