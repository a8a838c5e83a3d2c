package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
)

// newMachine makes a machine whose configuration names a cloud.
func newMachine(t *testing.T, cloud *sim.Cloud) *cloudtest.Machine {
	t.Helper()
	const config = `
		host { secret = "a secret of this test, long enough" }
		provider "daytona" {
			env = { GORACE = "atexit_sleep_ms=0" }
		}
	`
	return cloudtest.NewMachine(t, "daytona", canary, config, "BERTH_LOG=debug", "DAYTONA_API_KEY="+canary, "DAYTONA_API_URL="+cloud.URL())
}

func TestBerthCreatesThenAttachesThenSuspendsThenWakesThenDestroys(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{
		PathDirs: withActionServer(t), TokenCache: time.Second,
		Create: 100 * time.Millisecond, Start: 100 * time.Millisecond, Stop: 100 * time.Millisecond, Delete: 100 * time.Millisecond,
	})
	m := newMachine(t, cloud)
	var ids []string
	for i, want := range []string{"created", "attached", "woken"} {
		if want == "woken" {
			m.Disconnect("s1", "--action", "suspend")
			if now := cloud.Sandboxes(); len(now) != 1 || now[0].State != "stopped" {
				t.Fatalf("after suspending: %+v", now)
			}
		}
		c := m.Connect("s1")
		ids = append(ids, c.Sandbox.ID)
		if c.Sandbox.Origin != want || ids[i] != ids[0] {
			t.Errorf("connect %d: %s %s, want %s %s", i+1, c.Sandbox.Origin, ids[i], want, ids[0])
		}
		status, body := get(t, c.URL+"/alive", c.Headers)
		if status != 200 || !strings.Contains(body, "ok") {
			t.Errorf("the URL answers %d: %s", status, body)
		}
		if status, _ := get(t, c.URL+"/alive", nil); status != 307 {
			t.Errorf("without its headers the URL answers %d", status)
		}
	}
	m.Disconnect("s1")
	if left := cloud.Sandboxes(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	if n := cloud.Traffic.Count("createSandbox"); n != 1 {
		t.Errorf("%d creates", n)
	}
	for _, call := range cloud.Traffic.Calls() {
		key := call.Headers["Authorization"]
		delete(call.Headers, "Authorization")
		if call.Operation == "preview" && len(key) > 0 {
			t.Errorf("%s: the API key was sent to a sandbox's port", call.Path)
		}
		if text := fmt.Sprint(call.Headers, call.Path, call.Body); strings.Contains(text, canary) {
			t.Errorf("%s: the API key is somewhere else than in its header", call.Operation)
		}
	}
}

func TestTwoProcessesAtOnceMakeOneSandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{PathDirs: withActionServer(t), Create: 50 * time.Millisecond})
	ids := func() (ids []string) {
		for _, sandbox := range cloud.Sandboxes() {
			ids = append(ids, sandbox.ID)
		}
		return ids
	}
	rounds := newMachine(t, cloud).Race(ids, func(_ string, ids []string) {
		for _, id := range ids {
			if err := (&machines{newProvider(t, cloud, nil)}).Remove(t.Context(), box{id: id}); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Logf("%d rounds, never more than one sandbox", rounds)
}

func TestTheKeyIsInNoProcessOfThePluginAndAnInterruptLeavesNothing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{PathDirs: withActionServer(t), Create: 2 * time.Second})
	newMachine(t, cloud).InterruptConnect("the sandbox is being created", func() bool { return cloud.Traffic.Count("createSandbox") == 1 })
	cloudtest.Eventually(t, "nothing is left", func() bool { return len(cloud.Sandboxes()) == 0 })
}

func TestBerthTellsARefusedKeyFromAnEmptyCloud(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	m := newMachine(t, cloud)
	for i, variable := range m.Env {
		if strings.HasPrefix(variable, "DAYTONA_API_KEY=") {
			m.Env[i] = "DAYTONA_API_KEY=dtn_wrong"
		}
	}
	o := m.Run("connect", "s1", "-o", "json")
	if o.Code != 3 || !strings.Contains(o.Stdout, "401") || strings.Contains(o.Stdout+o.Stderr, "dtn_wrong") {
		t.Errorf("exit code %d: %s\n%s", o.Code, o.Stdout, o.Stderr)
	}
	if cloud.Traffic.Count("createSandbox") != 0 {
		t.Error("it tried to create")
	}
}
