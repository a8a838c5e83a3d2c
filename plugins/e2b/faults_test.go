package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

// connectSession drives the provider the way a host does: attach, or create; start; ping; and on failure remove what this
// attempt made, and only that. took is the time without the removal.
func connectSession(ctx context.Context, p *E2B, session, attempt string, wait time.Duration) (ready bool, took time.Duration, err error) {
	made, began := false, time.Now()
	defer func() {
		took = time.Since(began)
		if err == nil || !made {
			return
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
		defer cancel()
		for undo.Err() == nil {
			listed, problem := p.List(undo, provider.ListRequest{Owner: owner, Session: session})
			for _, sandbox := range listed {
				if sandbox.Attempt == attempt {
					problem = p.Destroy(undo, ref(sandbox))
				}
			}
			if problem == nil {
				return
			}
			if e := provider.AsError(problem); !e.Retryable {
				return
			}
		}
	}()
	attach := attachRequest(session)
	sandbox, err := p.Attach(ctx, attach)
	if provider.CodeOf(err) == provider.CodeNotFound {
		request := createRequest(session)
		request.Attempt = attempt
		made = true
		sandbox, err = p.Create(ctx, request)
	}
	if err != nil {
		return false, 0, err
	}
	endpoints, err := p.StartServer(ctx, provider.StartServerRequest{Session: session, Owner: owner, SandboxID: sandbox.ID, Server: faultServer()})
	if err != nil {
		return false, 0, err
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		request := pingRequest(sandbox, endpoints)
		request.Health = faultServer().Health
		result, err := p.Ping(waiting, request)
		switch {
		case err != nil:
			return false, 0, err
		case result.Status == provider.PingAlive:
			return true, 0, nil
		case result.Status != provider.PingNotYet:
			code := map[provider.PingStatus]provider.Code{
				provider.PingDenied: provider.CodeDenied, provider.PingGone: provider.CodeNotFound,
				provider.PingStopped: provider.CodeState, provider.PingExited: provider.CodeFailed,
			}[result.Status]
			return false, 0, provider.Errorf(code, "%s", result.Reason)
		case pause(waiting, 10*time.Millisecond) != nil:
			return false, 0, provider.Errorf(provider.CodeTimeout, "not healthy: %s", result.Reason)
		}
	}
}

// faultServer boots quickly: there are many of them.
func faultServer() provider.Server {
	server := actionServer()
	server.Health.Timeout = 500 * time.Millisecond
	return server
}

// faults are what may go wrong with a call, and the error that a lasting one leads to.
var faults = []struct {
	name  string
	fault simcloud.Fault
	codes []provider.Code
}{
	{"429 with Retry-After", simcloud.Fault{Status: 429, Headers: map[string]string{"Retry-After": "1"}}, []provider.Code{provider.CodeExhausted}},
	{"500", simcloud.Fault{Status: 500, Body: `{"code":500,"message":"boom"}`}, []provider.Code{provider.CodeUnreachable}},
	{"503", simcloud.Fault{Status: 503, Body: `busy`}, []provider.Code{provider.CodeUnreachable}},
	{"hang", simcloud.Fault{Hang: true}, []provider.Code{provider.CodeUnreachable, provider.CodeTimeout}},
	{"hang after the effect", simcloud.Fault{Hang: true, After: true}, []provider.Code{provider.CodeUnreachable, provider.CodeTimeout}},
	{"non-JSON 200", simcloud.Fault{Status: 200, Body: `<html>welcome</html>`}, []provider.Code{provider.CodeUnreachable}},
	{"dropped before", simcloud.Fault{Drop: true}, []provider.Code{provider.CodeUnreachable}},
	{"dropped after the effect", simcloud.Fault{Drop: true, After: true}, []provider.Code{provider.CodeUnreachable}},
	{"401", simcloud.Fault{Status: 401, Body: `{"code":401,"message":"Invalid API key"}`}, []provider.Code{provider.CodeDenied}},
}

// scenarios are the calls the plugin makes, each where it makes it.
var scenarios = []struct {
	operation string
	where     string
	found     bool // the session has a sandbox already
	skip      int  // calls of this operation that pass first
	plain     bool // the cluster ignores idempotency keys
}{
	{operation: "list", where: "looking for the session's sandbox"},
	{operation: "list", where: "looking before a create", skip: 1},
	{operation: "list", where: "looking after a create", skip: 2},
	{operation: "create", where: "creating"},
	{operation: "create", where: "creating without idempotency", plain: true},
	{operation: "connect", where: "attaching", found: true},
	{operation: "envd.Start", where: "starting the server"},
	{operation: "port", where: "probing"},
}

func TestAConnectSurvivesFaultsOrFailsCleanly(t *testing.T) {
	t.Parallel()
	table := &table{t: t}
	defer table.print()
	var cells cells
	for _, scenario := range scenarios {
		for _, f := range faults {
			for _, lasting := range []bool{false, true} {
				row := fmt.Sprintf("%-10s %-34s %-24s", scenario.operation, scenario.where, f.name)
				cells.run(t, fmt.Sprintf("%s %s %s lasting=%v", scenario.operation, scenario.where, f.name, lasting), func(t *testing.T) {
					cloud := newCloud(t, sim.Options{NoIdempotency: scenario.plain})
					found := ""
					if scenario.found {
						found = create(t, newProvider(t, cloud), "s1").ID
					}
					p := newProvider(t, cloud, func(_ *Config, t *times) {
						if f.fault.Hang {
							t.call, t.slowCall, t.start = 500*time.Millisecond, 800*time.Millisecond, 800*time.Millisecond
						}
						t.secondLook = 50 * time.Millisecond
					})
					fault := f.fault
					fault.Operation, fault.Skip = scenario.operation, scenario.skip
					if !lasting {
						fault.Count = 1
					}
					cloud.Traffic.ClearCalls()
					injected := cloud.Traffic.Fail(fault)

					ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
					defer cancel()
					wait := 15 * time.Second
					if lasting {
						wait = 1500 * time.Millisecond
					}
					ready, took, err := connectSession(ctx, p, "s1", "the-attempt", wait)

					verdict := "ready"
					if !ready {
						verdict = string(provider.CodeOf(err))
					}
					table.add(row, map[bool]string{false: "once", true: "lasting"}[lasting], fmt.Sprintf("%-12s %5.2fs", verdict, took.Seconds()))
					if injected.Fired() == 0 {
						t.Error("the fault was never met")
					}
					if took > 30*time.Second {
						t.Errorf("it took %s, longer than its deadline", took)
					}
					left := cloud.Sandboxes()
					switch {
					case ready && len(left) != 1, !ready && !scenario.found && len(left) != 0:
						t.Errorf("ready %v (%v), and left: %+v", ready, err, left)
					case scenario.found && (len(left) != 1 || left[0].ID != found):
						t.Errorf("a failed connect touched what it found: %+v", left)
					}
					codes := slices.Clone(f.codes)
					if scenario.operation == "port" { // a server that answers so is asked until the time is up
						codes = append(codes, provider.CodeTimeout)
					}
					if !ready && !slices.Contains(codes, provider.CodeOf(err)) {
						t.Errorf("error: %v (%q), want one of %q", err, provider.CodeOf(err), codes)
					}
					if !ready && !lasting && f.name != "401" {
						t.Errorf("a fault that passed was not survived: %v", err)
					}
				})
			}
		}
	}
	cells.wait()
}

// housekeeping are the calls that no connect makes.
var housekeeping = []struct {
	operation string
	do        func(ctx context.Context, p *E2B, sandbox provider.Sandbox) error
	done      func(left []sim.Sandbox) bool
}{
	{"get", func(ctx context.Context, p *E2B, s provider.Sandbox) error { return p.Destroy(ctx, ref(s)) }, none},
	{"kill", func(ctx context.Context, p *E2B, s provider.Sandbox) error { return p.Destroy(ctx, ref(s)) }, none},
	{"pause", func(ctx context.Context, p *E2B, s provider.Sandbox) error { return p.Suspend(ctx, ref(s)) }, func(left []sim.Sandbox) bool {
		return len(left) == 1 && left[0].State == "paused"
	}},
	{"timeout", func(ctx context.Context, p *E2B, s provider.Sandbox) error {
		return second(p.Renew(ctx, provider.RenewRequest{SandboxRef: ref(s), Lifetime: 5 * time.Hour}))
	}, func(left []sim.Sandbox) bool { return len(left) == 1 && time.Until(left[0].EndAt) > 4*time.Hour }},
	{"envd.Start", func(ctx context.Context, p *E2B, s provider.Sandbox) error {
		return second(p.Logs(ctx, provider.LogsRequest{SandboxRef: ref(s), Lines: 3}))
	}, func(left []sim.Sandbox) bool { return len(left) == 1 }},
	{"list", func(ctx context.Context, p *E2B, _ provider.Sandbox) error {
		return second(p.List(ctx, provider.ListRequest{Owner: owner}))
	}, func(left []sim.Sandbox) bool { return len(left) == 1 }},
}

func none(left []sim.Sandbox) bool { return len(left) == 0 }

func TestHousekeepingSurvivesFaultsOrSaysWhatFailed(t *testing.T) {
	t.Parallel()
	table := &table{t: t}
	defer table.print()
	var cells cells
	for _, work := range housekeeping {
		for _, f := range faults {
			for _, lasting := range []bool{false, true} {
				cells.run(t, fmt.Sprintf("%s %s lasting=%v", work.operation, f.name, lasting), func(t *testing.T) {
					cloud := newCloud(t, sim.Options{})
					sandbox := create(t, newProvider(t, cloud), "s1")
					p := newProvider(t, cloud, func(_ *Config, t *times) {
						if f.fault.Hang {
							t.call, t.slowCall, t.script = 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
						}
					})
					fault := f.fault
					fault.Operation = work.operation
					if !lasting {
						fault.Count = 1
					}
					injected := cloud.Traffic.Fail(fault)
					err := work.do(background(t, 30*time.Second), p, sandbox)
					verdict := "done"
					if err != nil {
						verdict = string(provider.CodeOf(err))
					}
					table.add(fmt.Sprintf("%-10s %-34s %-24s", work.operation, "housekeeping", f.name),
						map[bool]string{false: "once", true: "lasting"}[lasting], verdict)
					if injected.Fired() == 0 {
						t.Error("the fault was never met")
					}
					if err != nil && !slices.Contains(f.codes, provider.CodeOf(err)) {
						t.Errorf("error: %v (%q), want one of %q", err, provider.CodeOf(err), f.codes)
					}
					if err == nil && !work.done(cloud.Sandboxes()) {
						t.Errorf("a success without its effect: %+v", cloud.Sandboxes())
					}
				})
			}
		}
	}
	cells.wait()
}

// cells runs subtests that mostly wait, more of them at a time than there are processors.
type cells struct {
	slots   chan struct{}
	running sync.WaitGroup
}

func (c *cells) run(t *testing.T, name string, test func(t *testing.T)) {
	if c.slots == nil {
		c.slots = make(chan struct{}, 8) // more would slow each other down until their deadlines mean nothing
	}
	c.slots <- struct{}{}
	c.running.Go(func() {
		defer func() { <-c.slots }()
		t.Run(name, test)
	})
}

func (c *cells) wait() { c.running.Wait() }

// table collects what came out of each cell.
type table struct {
	t     *testing.T
	mutex sync.Mutex
	rows  map[string]map[string]string
}

func (t *table) add(row, column, text string) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.rows == nil {
		t.rows = map[string]map[string]string{}
	}
	if t.rows[row] == nil {
		t.rows[row] = map[string]string{}
	}
	t.rows[row][column] = text
}

func (t *table) print() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	var lines []string
	for row, columns := range t.rows {
		lines = append(lines, fmt.Sprintf("%s | %-24s | %s", row, columns["once"], columns["lasting"]))
	}
	slices.Sort(lines)
	t.t.Logf("outcome of a fault that is met once, and of one that lasts:\n%s", strings.Join(lines, "\n"))
}
