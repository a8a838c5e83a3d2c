package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// faults are what can happen to a call, by name.
var faults = []struct {
	name  string
	fault simcloud.Fault
}{
	{"429", simcloud.Fault{Status: 429, Headers: map[string]string{"Retry-After": "1", "Content-Type": "application/json"}, Body: `{"message":"slow down"}`}},
	{"500", simcloud.Fault{Status: 500, Body: `{"message":"oops"}`}},
	{"503", simcloud.Fault{Status: 503, Body: `unavailable`}},
	{"hang", simcloud.Fault{Hang: true}},
	{"no JSON", simcloud.Fault{Status: 200, Headers: map[string]string{"Content-Type": "text/html"}, Body: "<html>welcome</html>"}},
	{"dropped", simcloud.Fault{Drop: true}},
	{"done, dropped", simcloud.Fault{Drop: true, After: true}},
	{"401", simcloud.Fault{Status: 401, Body: `{"message":"bad key"}`}},
}

// calls are the operations that the plugin uses, with what the session has when it is connected, and what is then done.
var calls = []struct {
	operation string
	before    func(t *testing.T, cloud *sim.Cloud, r *Runloop)
	do        func(ctx context.Context, r *Runloop) error
}{
	{"list", nothing, connect},
	{"create", nothing, connect},
	{"wait", nothing, connect},
	{"get", boxWithoutTunnel, connect},
	{"execute", nothing, connect},
	{"write_file", nothing, connect},
	{"keep_alive", runningBox, connect},
	{"resume", suspendedBox, connect},
	{"enable_tunnel", boxWithoutTunnel, connect},
	{"remove_tunnel", boxWithOpenTunnel, connect},
	{"suspend", runningBox, suspendIt},
	{"update", runningBox, renewIt},
	{"shutdown", runningBox, destroyIt},
}

func nothing(*testing.T, *sim.Cloud, *Runloop) {}

func runningBox(t *testing.T, _ *sim.Cloud, r *Runloop) { create(t, r, "s1") }

func suspendedBox(t *testing.T, _ *sim.Cloud, r *Runloop) {
	if err := r.Suspend(t.Context(), ref(create(t, r, "s1"))); err != nil {
		t.Fatal(err)
	}
}

func boxWithoutTunnel(t *testing.T, _ *sim.Cloud, r *Runloop) {
	sandbox := create(t, r, "s1")
	if err := r.boxes.api.removeTunnel(t.Context(), sandbox.ID); err != nil {
		t.Fatal(err)
	}
}

func boxWithOpenTunnel(t *testing.T, cloud *sim.Cloud, _ *Runloop) {
	create(t, newRunloop(t, cloud, func(c *Config) { c.Tunnel = "open" }), "s1")
}

// connect does what the host does to connect, without what it undoes.
func connect(ctx context.Context, r *Runloop) error {
	sandbox, err := r.Attach(ctx, provider.AttachRequest{Session: "s1", Owner: owner, Server: actionServer()})
	if provider.CodeOf(err) == provider.CodeNotFound {
		sandbox, err = r.Create(ctx, createRequest("s1"))
	}
	if err != nil {
		return err
	}
	endpoints, err := r.StartServer(ctx, startRequest(sandbox, actionServer()))
	if err != nil {
		return err
	}
	for {
		result, err := r.Ping(ctx, pingRequest(sandbox, endpoints))
		switch {
		case err != nil:
			return err
		case result.Status == provider.PingAlive:
			return nil
		case result.Status != provider.PingNotYet:
			return provider.Errorf(provider.CodeFailed, "%s: %s", result.Status, result.Reason)
		case !cloud.Pause(ctx, 20*time.Millisecond):
			return ctx.Err()
		}
	}
}

func the(ctx context.Context, r *Runloop) (provider.SandboxRef, error) {
	boxes, err := r.List(ctx, provider.ListRequest{Owner: owner, Session: "s1"})
	if err != nil || len(boxes) == 0 {
		return provider.SandboxRef{}, fmt.Errorf("%d devboxes, %w", len(boxes), err)
	}
	return provider.SandboxRef{Owner: owner, SandboxID: boxes[0].ID}, nil
}

func suspendIt(ctx context.Context, r *Runloop) error {
	ref, err := the(ctx, r)
	if err == nil {
		err = r.Suspend(ctx, ref)
	}
	return err
}

func renewIt(ctx context.Context, r *Runloop) error {
	ref, err := the(ctx, r)
	if err == nil {
		_, err = r.Renew(ctx, provider.RenewRequest{SandboxRef: ref, Lifetime: time.Hour})
	}
	return err
}

func destroyIt(ctx context.Context, r *Runloop) error {
	ref, err := the(ctx, r)
	if err == nil {
		err = r.Destroy(ctx, ref)
	}
	return err
}

// TestEveryCallMeetsEveryFault prints its table with -v. BERTH_FAULT_MATRIX=full adds faults that
// happen once, which most connects survive, and such that do not go away.
func TestEveryCallMeetsEveryFault(t *testing.T) {
	t.Parallel()
	counts := map[string]int{"three times": 3}
	if os.Getenv("BERTH_FAULT_MATRIX") == "full" {
		counts["once"], counts["forever"] = 1, 0
	}
	for howOften, count := range counts {
		var mutex sync.Mutex
		cells := map[string]string{}
		t.Run(strings.ReplaceAll(howOften, " ", ""), func(t *testing.T) {
			for _, call := range calls {
				for _, fault := range faults {
					name := call.operation + "/" + fault.name
					t.Run(strings.ReplaceAll(name, " ", ""), func(t *testing.T) {
						t.Parallel()
						cloud := newCloud(t, sim.Options{Provision: 20 * time.Millisecond, LazyStatus: 10 * time.Millisecond})
						r := newRunloop(t, cloud, nil)
						call.before(t, cloud, r)
						found := len(cloud.Live())
						injected := fault.fault
						injected.Operation, injected.Count = call.operation, count
						outcome := meet(t, cloud, r, injected, call.do, found)
						mutex.Lock()
						defer mutex.Unlock()
						cells[name] = outcome
					})
				}
			}
		})
		var table strings.Builder
		fmt.Fprintf(&table, "faults that happen %s:\n%-16s", howOften, "")
		for _, fault := range faults {
			fmt.Fprintf(&table, "%-15s", fault.name)
		}
		for _, call := range calls {
			fmt.Fprintf(&table, "\n%-16s", call.operation)
			for _, fault := range faults {
				outcome := cells[call.operation+"/"+fault.name]
				if outcome == "" && !t.Failed() && !t.Skipped() && simcloud.Isolation() == nil {
					t.Errorf("%s x %s was not tried", call.operation, fault.name)
				}
				fmt.Fprintf(&table, "%-15s", outcome)
			}
		}
		t.Log(table.String())
	}
}

// meet does something while calls fail, and holds the outcome to what a host may rely on. found is how many devboxes there
// were before.
func meet(t *testing.T, cloud *sim.Cloud, r *Runloop, fault simcloud.Fault, do func(context.Context, *Runloop) error, found int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	injected := cloud.Fail(fault)
	began := time.Now()
	err := do(ctx, r)
	took := time.Since(began)
	if injected.Fired() == 0 {
		t.Errorf("the fault did not happen")
	}
	injected.Remove()
	if took > 40*time.Second {
		t.Errorf("it took %s", took)
	}
	if err == nil {
		return "ready"
	}
	failure := provider.AsError(err)
	switch failure.Code {
	case provider.CodeDenied, provider.CodeUnreachable, provider.CodeExhausted, provider.CodeTimeout:
	default:
		t.Errorf("%s: %v", failure.Code, err)
	}
	if !strings.Contains(failure.Message, "Runloop") && !strings.Contains(failure.Message, "devbox") && !strings.Contains(failure.Message, "sandbox") && failure.Code != provider.CodeTimeout {
		t.Errorf("the cause is not named: %v", err)
	}
	if strings.Contains(err.Error(), canary) {
		t.Errorf("the error tells the API key: %v", err)
	}
	if found > 0 {
		if fault.Operation != "shutdown" && len(cloud.Live()) != found {
			t.Errorf("%d devboxes, there were %d", len(cloud.Live()), found)
		}
		return string(failure.Code)
	}
	// A host looks for what may be left, unless the class of the error rules it out.
	switch failure.Code {
	case provider.CodeDenied, provider.CodeExhausted:
		if fault.Operation == "list" || fault.Operation == "create" || failure.SandboxID == "" && fault.Operation == "wait" {
			if live := cloud.Live(); len(live) != 0 {
				t.Errorf("%s, but there are %d devboxes", failure.Code, len(live))
			}
		}
	}
	boxes, err := r.List(t.Context(), provider.ListRequest{Owner: owner, Session: "s1"})
	if err != nil {
		t.Errorf("List: %v", err)
	}
	for _, sandbox := range boxes {
		if sandbox.Attempt != "attempt-of-s1" {
			t.Errorf("a devbox of attempt %q", sandbox.Attempt)
		}
		if err := r.Destroy(t.Context(), ref(sandbox)); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	}
	if live := cloud.Live(); len(live) != 0 {
		t.Errorf("left: %+v", live)
	}
	return string(failure.Code)
}
