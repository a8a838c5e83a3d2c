package cloudtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

// Scene is a call of the cloud that the plugin makes, and what leads to it.
type Scene struct {
	// Operation is the call; so many calls of it pass before the fault.
	Operation string
	Skip      int
	// Do is what the host does: it connects, unless another method is named.
	Do Method
	// Found is what the session has before. With Then, something happens to it.
	Found bool
	Then  func(t *testing.T, w *World, p provider.Provider, sandbox provider.Sandbox)
	// Variant is a setting of the cloud or the plugin, see Options.
	Variant string
}

// Method is what a host does.
type Method string

// The methods. Renew to Logs need a sandbox that is found.
const (
	Connect Method = ""
	Renew   Method = "renew"
	Suspend Method = "suspend"
	Destroy Method = "destroy"
	Listing Method = "list"
	Logs    Method = "logs"
)

// Suspended is a Then: the sandbox was suspended.
func Suspended(t *testing.T, w *World, _ provider.Provider, sandbox provider.Sandbox) {
	t.Helper()
	w.Suspend(sandbox.ID)
}

// kind is a fault, and the classes of error that name it.
type kind struct {
	name  string
	fault simcloud.Fault
	codes []provider.Code
}

func kinds() []kind {
	lost := []provider.Code{provider.CodeUnreachable, provider.CodeTimeout}
	all := []kind{
		{"429", Answer(429, "Too Many Requests", "Retry-After", "1"), []provider.Code{provider.CodeExhausted}},
		{"500", Answer(500, "oops"), lost},
		{"503", simcloud.Fault{Status: 503, Body: "no healthy upstream"}, lost},
		{"hang", simcloud.Fault{Hang: true}, lost},
		{"a page", page(), lost},
		{"dropped before", simcloud.Fault{Drop: true}, lost},
		{"dropped after", simcloud.Fault{Drop: true, After: true}, lost},
		{"401", Answer(401, "Unauthorized"), []provider.Code{provider.CodeDenied}},
	}
	if long() {
		all = append(all, kind{"hang after", simcloud.Fault{Hang: true, After: true}, lost})
	}
	return all
}

// long reports whether the long form of the tests is asked for.
func long() bool { return os.Getenv("BERTH_FAULT_MATRIX") == "full" }

// howOften a fault happens. The long form adds those that happen once, which most calls survive.
func howOften() []string {
	if long() {
		return []string{"once", "always"}
	}
	return []string{"always"}
}

// testFaults has every call that the plugin makes meet every fault: it ends well, or with an error that names the cause,
// in time; and no sandbox is left that was not there before. It logs the outcomes as a table.
func testFaults(f *fixture) {
	var mutex sync.Mutex
	var table []string
	f.Cleanup(func() {
		slices.Sort(table)
		f.Logf("%d cells\n%s", len(table), strings.Join(table, "\n"))
		if want := len(f.cloud.Scenes) * len(kinds()) * len(howOften()); len(table) != want && !f.Skipped() && !f.Failed() && simcloud.Isolation() == nil {
			f.Errorf("%d cells were run, of %d", len(table), want)
		}
	})
	for _, scene := range f.cloud.Scenes {
		for _, kind := range kinds() {
			for _, often := range howOften() {
				name := fmt.Sprintf("%-30s %-8s %-15s %-7s", strings.TrimSpace(fmt.Sprint(scene.Operation, " ", scene.Variant)), scene.Do, kind.name, often)
				f.Run(strings.Join(strings.Fields(name), "_"), func(t *testing.T) {
					t.Parallel()
					c := cell{f.with(t), scene, kind, often == "once"}
					outcome := c.run()
					mutex.Lock()
					defer mutex.Unlock()
					table = append(table, name+" "+outcome)
				})
			}
		}
	}
}

// cell is one fault of one call.
type cell struct {
	*fixture
	scene Scene
	kind  kind
	once  bool
}

func (c *cell) run() string {
	const deadline = 60 * time.Second
	p := c.start(Options{Variant: c.scene.Variant})
	var found provider.Sandbox
	if c.scene.Found {
		found = Create(c.T, p, "s1")
		if c.scene.Then != nil {
			c.scene.Then(c.T, c.World, p, found)
		}
	}
	pace := Curt
	if c.once && !c.kind.fault.Hang {
		pace = Brisk
	}
	p = c.open(pace)
	fault := c.kind.fault
	fault.Operation, fault.Skip = c.scene.Operation, c.scene.Skip
	if c.once {
		fault.Count = 1
	}
	injected := c.inject(fault)
	ctx, cancel := context.WithTimeout(c.Context(), deadline)
	defer cancel()
	began := time.Now()
	err := c.do(ctx, p, found)
	took := time.Since(began)
	if injected.Fired() == 0 {
		c.Error("the fault was never met")
	}
	if took > deadline {
		c.Errorf("took %s", took)
	}
	injected.Remove()
	c.check(err, found)
	word := "well"
	if e := typed(err); e != nil {
		word = fmt.Sprintf("%s: %.40s", e.Code, strings.ReplaceAll(e.Message, "\n", " "))
	}
	return fmt.Sprintf("%-54s %5.1f s", word, took.Seconds())
}

// do is the host's part. Of connect, that is everything but the removal of what a failed one made.
func (c *cell) do(ctx context.Context, p provider.Provider, found provider.Sandbox) error {
	ref := Ref(found)
	switch c.scene.Do {
	case Renew:
		return Err(p.(provider.Renewer).Renew(ctx, provider.RenewRequest{SandboxRef: ref, Lifetime: 2 * time.Hour}))
	case Suspend:
		return p.(provider.Suspender).Suspend(ctx, ref)
	case Destroy:
		return p.(provider.Destroyer).Destroy(ctx, ref)
	case Logs:
		return Err(p.(provider.LogReader).Logs(ctx, provider.LogsRequest{SandboxRef: ref, Lines: 3}))
	case Listing:
		listed, err := p.(provider.Lister).List(ctx, provider.ListRequest{Owner: Owner})
		if err == nil && len(listed) != 1 {
			return fmt.Errorf("listed %d", len(listed))
		}
		return err
	case Connect:
	}
	sandbox, err := p.Attach(ctx, AttachRequest("s1"))
	if provider.CodeOf(err) == provider.CodeNotFound {
		sandbox, err = p.Create(ctx, CreateRequest("s1"))
	}
	if err != nil {
		return err
	}
	endpoints, err := p.StartServer(ctx, StartRequest(sandbox, ActionServer()))
	if err != nil {
		return err
	}
	return c.await(ctx, p, sandbox, endpoints)
}

// await pings until the server is alive, as a host does that has little time.
func (c *cell) await(ctx context.Context, p provider.Provider, sandbox provider.Sandbox, endpoints provider.Endpoints) error {
	limit, patience := 3*time.Second, time.Second
	if c.once {
		limit, patience = 15*time.Second, 5*time.Second
	}
	request := PingRequest(sandbox, endpoints.Server)
	request.Health.Timeout = time.Second
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		result, err := p.Ping(ctx, request)
		switch waited := time.Since(began); {
		case err != nil:
			return err
		case result.Status == provider.PingAlive:
			return nil
		case result.Status == provider.PingNotYet && waited > limit:
			return provider.Errorf(provider.CodeTimeout, "never alive: %s", result.Reason)
		case result.Status == provider.PingDenied && waited > patience:
			return provider.Errorf(provider.CodeDenied, "%s", result.Reason)
		case result.Status != provider.PingNotYet && result.Status != provider.PingDenied:
			return provider.Errorf(provider.CodeFailed, "%s: %s", result.Status, result.Reason)
		}
	}
}

// check checks what came of it, now that the cloud is well again.
func (c *cell) check(err error, found provider.Sandbox) {
	c.Helper()
	if err == nil {
		switch there := c.Sandboxes(); {
		case c.scene.Do == Destroy && len(there) != 0, c.scene.Do != Destroy && len(there) != 1,
			c.scene.Do == Suspend && !there[0].Suspended, c.scene.Found && len(there) == 1 && there[0].ID != found.ID:
			c.Errorf("it is said to have gone well, and there are %+v", there)
		}
		return
	}
	e := typed(err)
	if e == nil {
		c.Fatalf("not a typed error: %v", err)
	}
	if strings.Contains(err.Error(), c.cloud.Secret) {
		c.Error("the secret is in the error")
	}
	switch {
	case c.once && c.kind.name != "401":
		c.Errorf("one fault was too much: %s: %v", e.Code, err)
	case c.scene.Operation == c.cloud.Port: // what the server's URL answers is a matter of health
	case !slices.Contains(c.kind.codes, e.Code):
		c.Errorf("class %s, want one of %v: %v", e.Code, c.kind.codes, err)
	}
	if c.scene.Found {
		if there := c.Sandboxes(); c.scene.Do != Destroy && (len(there) != 1 || there[0].ID != found.ID) {
			c.Errorf("there was %s, there are %+v: %v", found.ID, there, err)
		}
		return
	}
	c.undo(e)
}

// undo removes what a connect may have made that failed, as a host does. An error may rule out that there is anything.
func (c *cell) undo(e *provider.Error) {
	c.Helper()
	p := c.open(Brisk)
	rulesOut := []provider.Code{provider.CodeInvalid, provider.CodeConflict, provider.CodeUnsupported}
	if slices.Contains(rulesOut, e.Code) && e.SandboxID == "" {
		c.left(0)
	}
	listed, err := p.(provider.Lister).List(c.Context(), provider.ListRequest{Owner: Owner, Session: "s1"})
	for _, sandbox := range listed {
		if sandbox.Attempt != "attempt-of-s1" {
			c.Errorf("%+v", sandbox)
		}
		err = errors.Join(err, p.(provider.Destroyer).Destroy(c.Context(), Ref(sandbox)))
	}
	if err != nil {
		c.Error(err)
	}
	c.left(0)
}
