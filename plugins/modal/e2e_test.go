package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/modal/sim"
)

// newMachine makes a machine whose configuration names a cloud.
func newMachine(t *testing.T, cloud *sim.Cloud) *cloudtest.Machine {
	t.Helper()
	const config = `
		host { secret = "a secret of this test, long enough" }
		provider "modal" {
			env = { GORACE = "atexit_sleep_ms=0" }
		}
	`
	return cloudtest.NewMachine(t, "modal", canary, config, "BERTH_LOG=debug", "MODAL_TOKEN_ID="+tokenID, "MODAL_TOKEN_SECRET="+canary, "MODAL_SERVER_URL="+cloud.URL())
}

func TestBerthCreatesThenAttachesThenRefusesToSuspendThenFindsNothingThenCreatesAnew(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{PathDirs: withActionServer(t), Create: 100 * time.Millisecond, Build: 100 * time.Millisecond})
	m := newMachine(t, cloud)
	first := m.Connect("s1")
	second := m.Connect("s1")
	if first.Sandbox.Origin != "created" || second.Sandbox.Origin != "attached" || first.Sandbox.ID != second.Sandbox.ID {
		t.Errorf("%+v, then %+v", first.Sandbox, second.Sandbox)
	}
	for _, c := range []cloudtest.Connection{first, second} { // a new token leaves the one before as it was
		if status, body := get(t, c.URL+"/alive", c.Headers); status != 200 || !strings.Contains(body, "ok") {
			t.Errorf("the URL answers %d: %s", status, body)
		}
		if status, _ := get(t, c.URL+"/alive", nil); status != 401 {
			t.Errorf("without its headers the URL answers %d", status)
		}
	}

	if o := m.Run("disconnect", "s1", "--action", "suspend"); o.Code == 0 || !strings.Contains(o.Stderr+o.Stdout, "suspend") {
		t.Errorf("suspend: exit code %d\n%s\n%s", o.Code, o.Stdout, o.Stderr)
	}
	if o := m.Run("hold", "s1", "-o", "json"); o.Code != 1 || !strings.Contains(o.Stdout, `"unsupported"`) {
		t.Errorf("hold, which Modal cannot: exit code %d\n%s\n%s", o.Code, o.Stdout, o.Stderr)
	}
	if there := cloud.Sandboxes(); len(there) != 1 || there[0].ID != first.Sandbox.ID {
		t.Errorf("after the refusal: %+v", there)
	}
	if third := m.Connect("s1"); third.Sandbox.Origin != "attached" {
		t.Errorf("after the refusal: %+v", third.Sandbox)
	}

	cloud.End(first.Sandbox.ID, pb.GenericResult_GENERIC_STATUS_TIMEOUT, 0)
	if o := m.Run("connect", "s1", "--mode", "attach", "-o", "json"); o.Code != 4 {
		t.Errorf("attaching to what has ended: exit code %d\n%s", o.Code, o.Stdout)
	}
	anew := m.Connect("s1")
	if anew.Sandbox.Origin != "created" || anew.Sandbox.ID == first.Sandbox.ID {
		t.Errorf("after its end: %+v", anew.Sandbox)
	}
	m.Disconnect("s1")
	if left := cloud.Sandboxes(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	if n := cloud.Traffic.Count("SandboxCreateV2"); n != 2 {
		t.Errorf("%d creates", n)
	}
	checkCanary(t, cloud)
}

// checkCanary looks for the secret everywhere but in its header.
func checkCanary(t *testing.T, cloud *sim.Cloud) {
	t.Helper()
	met := 0
	for _, call := range cloud.Traffic.Calls() {
		inHeader := call.Headers["X-Modal-Token-Secret"]
		delete(call.Headers, "X-Modal-Token-Secret")
		met += len(inHeader)
		if len(inHeader) > 0 && !strings.HasPrefix(call.Path, "/modal.client.ModalClient/") {
			t.Errorf("%s: the secret was sent to a sandbox", call.Path)
		}
		if text := fmt.Sprint(call.Headers, call.Path, call.Body); strings.Contains(text, canary) {
			t.Errorf("%s: the secret is somewhere else than in its header", call.Operation)
		}
	}
	if met == 0 {
		t.Error("the secret was never sent: this test looks in the wrong place")
	}
}

func TestTwoProcessesAtOnceMakeOneSandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{PathDirs: withActionServer(t), Create: 300 * time.Millisecond})
	ids := func() (ids []string) {
		for _, sandbox := range cloud.Sandboxes() {
			ids = append(ids, sandbox.ID)
		}
		return ids
	}
	rounds := newMachine(t, cloud).Race(ids, func(_ string, ids []string) {
		for _, id := range ids {
			if err := newProvider(t, cloud, nil).api.terminate(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Logf("%d rounds, never more than one sandbox", rounds)
}

func TestTheSecretIsInNoProcessOfThePluginAndAnInterruptLeavesNothing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{PathDirs: withActionServer(t), Create: 2 * time.Second})
	newMachine(t, cloud).InterruptConnect("the sandbox is being created", func() bool { return cloud.Traffic.Count("SandboxCreateV2") == 1 })
	cloudtest.Eventually(t, "nothing is left", func() bool { return len(cloud.Sandboxes()) == 0 })
}

func TestBerthTellsARefusedTokenFromAnEmptyCloud(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	m := newMachine(t, cloud)
	for i, variable := range m.Env {
		if strings.HasPrefix(variable, "MODAL_TOKEN_SECRET=") {
			m.Env[i] = "MODAL_TOKEN_SECRET=as-wrong"
		}
	}
	o := m.Run("connect", "s1", "-o", "json")
	if o.Code != 3 || !strings.Contains(o.Stdout, "Token validation failed") || strings.Contains(o.Stdout+o.Stderr, "as-wrong") {
		t.Errorf("exit code %d: %s\n%s", o.Code, o.Stdout, o.Stderr)
	}
	if cloud.Traffic.Count("SandboxCreateV2") != 0 {
		t.Error("it tried to create")
	}
}
