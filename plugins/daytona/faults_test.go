package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// connectOnce does what a host does: attach, else create; start the server; wait until it is alive; and remove what was
// made when any of that fails.
func connectOnce(ctx context.Context, d *Daytona, attempt string, server provider.Server) (ready provider.Sandbox, err error) {
	made, id := false, ""
	sandbox, err := d.Attach(ctx, provider.AttachRequest{Session: "s1", Owner: owner, Server: server, Lifetime: time.Hour})
	if provider.CodeOf(err) == provider.CodeNotFound {
		request := createRequest("s1")
		request.Attempt, request.Server = attempt, server
		sandbox, err = d.Create(ctx, request)
		made = sandbox.Origin == provider.OriginCreated
		if err != nil {
			id = provider.AsError(err).SandboxID
			rulesOut := []provider.Code{provider.CodeInvalid, provider.CodeDenied, provider.CodeConflict, provider.CodeExhausted, provider.CodeUnsupported}
			made = id != "" || !slices.Contains(rulesOut, provider.CodeOf(err))
		}
	}
	if err == nil {
		id = sandbox.ID
		var endpoints provider.Endpoints
		if endpoints, err = d.StartServer(ctx, provider.StartServerRequest{Session: "s1", Owner: owner, SandboxID: id, Server: server}); err == nil {
			err = awaitPing(ctx, d, id, endpoints)
		}
	}
	if err == nil || !made {
		return sandbox, err
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	if id == "" {
		listed, listErr := d.List(undo, provider.ListRequest{Owner: owner, Session: "s1"})
		for _, found := range listed {
			if found.Attempt == attempt {
				id = found.ID
			}
		}
		if listErr != nil {
			return sandbox, errors.Join(err, listErr)
		}
	}
	if id != "" {
		if problem := d.Destroy(undo, provider.SandboxRef{Owner: owner, SandboxID: id}); problem != nil {
			return sandbox, errors.Join(err, problem)
		}
	}
	return sandbox, err
}

func awaitPing(ctx context.Context, d *Daytona, id string, endpoints provider.Endpoints) error {
	for began := time.Now(); ; {
		result, err := d.Ping(ctx, provider.PingRequest{
			Session: "s1", Owner: owner, SandboxID: id, Endpoint: endpoints.Server, Health: provider.HealthCheck{Timeout: time.Second},
		})
		switch {
		case err != nil:
			return err
		case result.Status == provider.PingAlive:
			return nil
		case time.Since(began) > 3*time.Second && result.Status == provider.PingNotYet:
			return provider.Errorf(provider.CodeTimeout, "never alive: %s", result.Reason)
		case result.Status == provider.PingDenied && time.Since(began) > time.Second:
			return provider.Errorf(provider.CodeDenied, "%s", result.Reason)
		case result.Status != provider.PingNotYet && result.Status != provider.PingDenied:
			return provider.Errorf(provider.CodeFailed, "%s: %s", result.Status, result.Reason)
		}
		if !cloud.Pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// scene is what leads to a call, and what may be there afterwards.
type scene struct {
	operation string
	before    func(t *testing.T, cloud *sim.Cloud, d *Daytona)
	do        func(ctx context.Context, d *Daytona) error
	// keeps is how many sandboxes a failure leaves: those that were there before.
	keeps int
	// fails: it never ends well, whatever the fault. It is there for what it does then.
	fails bool
}

func scenes() []scene {
	connect := func(server provider.Server) func(context.Context, *Daytona) error {
		return func(ctx context.Context, d *Daytona) error {
			_, err := connectOnce(ctx, d, "attempt-1", server)
			return err
		}
	}
	given := func(t *testing.T, d *Daytona) provider.Sandbox { return create(t, d, "s1") }
	onGiven := func(do func(context.Context, *Daytona, provider.SandboxRef) error) func(context.Context, *Daytona) error {
		return func(ctx context.Context, d *Daytona) error {
			listed, err := d.List(ctx, provider.ListRequest{Owner: owner, Session: "s1"})
			if err != nil || len(listed) != 1 {
				return errors.Join(err, fmt.Errorf("listed %d", len(listed)))
			}
			return do(ctx, d, ref(listed[0]))
		}
	}
	exists := func(t *testing.T, _ *sim.Cloud, d *Daytona) { given(t, d) }
	return []scene{
		{operation: "getSandbox", do: connect(pythonServer())},
		{operation: "createSandbox", do: connect(pythonServer())},
		{operation: "executeCommand", do: connect(pythonServer())},
		{operation: "getPortPreviewUrl", do: connect(pythonServer())},
		{operation: "preview", do: connect(pythonServer())},
		{operation: "deleteSandbox", do: connect(shellServer("exit 3")), fails: true},
		{operation: "startSandbox", keeps: 1, do: connect(pythonServer()), before: func(t *testing.T, _ *sim.Cloud, d *Daytona) {
			if err := d.Suspend(t.Context(), ref(given(t, d))); err != nil {
				t.Fatal(err)
			}
		}},
		{operation: "recoverSandbox", keeps: 1, do: connect(pythonServer()), before: func(t *testing.T, cloud *sim.Cloud, d *Daytona) {
			cloud.Force(given(t, d).ID, "error", "no space left on device", true)
		}},
		{operation: "stopSandbox", keeps: 1, before: exists, do: onGiven(func(ctx context.Context, d *Daytona, ref provider.SandboxRef) error {
			return d.Suspend(ctx, ref)
		})},
		{operation: "setAutostopInterval", keeps: 1, before: exists, do: onGiven(func(ctx context.Context, d *Daytona, ref provider.SandboxRef) error {
			_, err := d.Renew(ctx, provider.RenewRequest{SandboxRef: ref, Lifetime: 2 * time.Hour})
			return err
		})},
		{operation: "updateLastActivity", keeps: 1, before: exists, do: onGiven(func(ctx context.Context, d *Daytona, ref provider.SandboxRef) error {
			_, err := d.Renew(ctx, provider.RenewRequest{SandboxRef: ref, Lifetime: 2 * time.Hour})
			return err
		})},
		{operation: "listSandboxes", keeps: 1, before: exists, do: func(ctx context.Context, d *Daytona) error {
			listed, err := d.List(ctx, provider.ListRequest{Owner: owner})
			if err == nil && len(listed) != 1 {
				return fmt.Errorf("listed %d", len(listed))
			}
			return err
		}},
	}
}

// kind is a fault, and the classes of error that name it.
type kind struct {
	name  string
	fault simcloud.Fault
	codes []provider.Code
}

func kinds() []kind {
	lost := []provider.Code{provider.CodeUnreachable, provider.CodeTimeout}
	return []kind{
		{"429", simcloud.Fault{Status: 429, Headers: map[string]string{"Retry-After": "1", "Content-Type": "application/json"},
			Body: `{"statusCode":429,"message":"ThrottlerException: Too Many Requests"}`}, []provider.Code{provider.CodeExhausted}},
		{"500", simcloud.Fault{Status: 500, Body: "{}", Headers: map[string]string{"Content-Type": "application/json"}}, lost},
		{"503", simcloud.Fault{Status: 503, Body: "no healthy upstream"}, lost},
		{"hang", simcloud.Fault{Hang: true}, lost},
		{"non-JSON 200", simcloud.Fault{Status: 200, Body: "<html></html>", Headers: map[string]string{"Content-Type": "text/html"}}, lost},
		{"dropped before", simcloud.Fault{Drop: true}, lost},
		{"dropped after", simcloud.Fault{Drop: true, After: true}, lost},
		{"401", simcloud.Fault{Status: 401, Body: `{"statusCode":401,"message":"Unauthorized"}`, Headers: map[string]string{"Content-Type": "application/json"}},
			[]provider.Code{provider.CodeDenied}},
	}
}

// Every call that the plugin makes, with every fault, once and for ever: ready, or an error that names the cause, in
// time; and no sandbox left that was not there before.
func TestWhateverFailsAConnectEndsReadyOrWithATypedErrorAndNothingLeft(t *testing.T) {
	t.Parallel()
	const deadline = 30 * time.Second
	var mutex sync.Mutex
	table := map[string]string{}
	t.Run("cells", func(t *testing.T) {
		for _, s := range scenes() {
			for _, k := range kinds() {
				for _, often := range howOften() {
					cell := fmt.Sprintf("%-20s %-15s %-7s", s.operation, k.name, often)
					t.Run(strings.Join(strings.Fields(cell), "_"), func(t *testing.T) {
						t.Parallel()
						cloud := newCloud(t, sim.Options{TokenCache: -1})
						times := testTimes
						times.Retry.Tries, times.Reach = 3, 2*time.Second
						if often == "once" {
							times.Reach = 15 * time.Second
						}
						if k.fault.Hang { // long enough for the calls that do not hang, on a slow machine
							times.call, times.slowCall, times.Undo = 4*time.Second, 4*time.Second, 10*time.Second
							if often == "always" {
								times.Retry.Tries = 2
							}
						}
						d := newProviderWith(t, cloud, times, nil)
						if s.before != nil {
							s.before(t, cloud, d)
						}
						fault := k.fault
						fault.Operation = s.operation
						if often == "once" {
							// Twice where it is dropped: the HTTP client sends a GET again by itself.
							fault.Count = 1
							if fault.Drop {
								fault.Count = 2
							}
						}
						injected := cloud.Traffic.Fail(fault)
						ctx, cancel := context.WithTimeout(t.Context(), deadline)
						defer cancel()
						began := time.Now()
						err := s.do(ctx, d)
						took := time.Since(began)
						word := judgeCell(t, s, k, often, err)
						if injected.Fired() == 0 {
							t.Error("the fault was never met")
						}
						if took > deadline {
							t.Errorf("took %s", took)
						}
						left := len(cloud.Sandboxes())
						switch {
						case s.operation == "deleteSandbox" && (often == "always" && k.name != "dropped after" || k.name == "401"):
							// Deleting is impossible: the error has to say so.
							if id := cloud.Sandboxes(); left != 1 || !strings.Contains(err.Error(), "deleting the sandbox") {
								t.Errorf("left %+v, error %v", id, err)
							}
						case err != nil && left != s.keeps:
							t.Errorf("%d sandboxes left, want %d: %v", left, s.keeps, err)
						case err == nil && left != 1:
							t.Errorf("%d sandboxes, want one", left)
						}
						mutex.Lock()
						table[cell] = fmt.Sprintf("%-40s left %d  %5.1f s", word, left, took.Seconds())
						mutex.Unlock()
					})
				}
			}
		}
	})
	lines := make([]string, 0, len(table))
	for cell, word := range table {
		lines = append(lines, cell+" "+word)
	}
	slices.Sort(lines)
	t.Logf("%d cells\n%s", len(lines), strings.Join(lines, "\n"))
	if want := len(scenes()) * len(kinds()) * len(howOften()); len(lines) != want {
		t.Errorf("%d cells were run, of %d", len(lines), want)
	}
}

func judgeCell(t *testing.T, s scene, k kind, often string, err error) string {
	t.Helper()
	if err == nil {
		if s.fails {
			t.Error("it went well, which it cannot")
		}
		return "ready"
	}
	var e *provider.Error
	if !errors.As(err, &e) || e.Code == "" {
		t.Errorf("not a typed error: %v", err)
		return "untyped"
	}
	if strings.Contains(err.Error(), canary) {
		t.Error("the API key is in the error")
	}
	switch {
	case s.fails:
	case often == "once" && k.name != "401":
		t.Errorf("one fault was too much: %s: %v", e.Code, err)
	case s.operation == "preview": // the URL of the server: what it answers is a matter of health
	case !slices.Contains(k.codes, e.Code):
		t.Errorf("class %s, want one of %v: %v", e.Code, k.codes, err)
	}
	return fmt.Sprintf("%s: %.28s", e.Code, e.Message)
}

func TestTheAPIsErrorsHaveTheirClasses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status     int
		body       string
		headers    map[string]string
		code       provider.Code
		reason     string
		retryable  bool
		retryAfter time.Duration
	}{
		{status: 401, body: "Invalid credentials", code: provider.CodeDenied},
		{status: 403, body: "Organization is suspended", code: provider.CodeDenied},
		{status: 404, body: "Sandbox with ID or name x not found", code: provider.CodeNotFound},
		{status: 409, body: "Sandbox state change in progress", code: provider.CodeState, retryable: true},
		{status: 422, body: "not supported", code: provider.CodeUnsupported},
		{status: 429, body: "ThrottlerException: Too Many Requests", headers: map[string]string{"Retry-After-sandbox-create": "7"},
			code: provider.CodeExhausted, reason: provider.ReasonRateLimit, retryable: true, retryAfter: 7 * time.Second},
		{status: 429, body: "slow down", headers: map[string]string{"Retry-After": "3"},
			code: provider.CodeExhausted, reason: provider.ReasonRateLimit, retryable: true, retryAfter: 3 * time.Second},
		{status: 400, body: "Total CPU limit exceeded. Maximum allowed: 10.", code: provider.CodeExhausted, reason: provider.ReasonQuota},
		{status: 400, body: "Total disk limit exceeded. Maximum allowed: 30.", code: provider.CodeExhausted, reason: provider.ReasonQuota},
		{status: 400, body: "No available runners", code: provider.CodeExhausted, reason: "NO_CAPACITY", retryable: true},
		{status: 400, body: "Sandbox failed to start: out of memory", code: provider.CodeFailed, reason: cloud.ReasonUnclear},
		{status: 400, body: "Sandbox is not in valid state", code: provider.CodeState},
		{status: 400, body: "Snapshot x not found. Did you add it through the Daytona Dashboard?", code: provider.CodeInvalid},
		{status: 500, body: "An unexpected error occurred.", code: provider.CodeUnreachable, retryable: true},
		{status: 502, code: provider.CodeUnreachable, retryable: true},
		{status: 307, code: provider.CodeUnreachable},
	} {
		header := http.Header{}
		for name, value := range c.headers {
			header.Set(name, value)
		}
		response := &http.Response{StatusCode: c.status, Status: fmt.Sprint(c.status), Header: header}
		e := provider.AsError(readFailure("asking", response, answered(fmt.Sprintf(`{"statusCode":%d,"message":%q}`, c.status, c.body))))
		if e.Code != c.code || e.Reason != c.reason || e.Retryable != c.retryable || e.RetryAfter != c.retryAfter {
			t.Errorf("%d %q: %+v", c.status, c.body, e)
		}
		if !strings.Contains(e.Message, c.body) {
			t.Errorf("%d %q: the message %q does not say what the API said", c.status, c.body, e.Message)
		}
	}
}

// answered is an error as the generated clients make it.
type answered string

func (a answered) Error() string { return "answered" }
func (a answered) Body() []byte  { return []byte(a) }

// howOften a fault happens. BERTH_FAULT_MATRIX=full adds those that happen once, which most connects survive.
func howOften() []string {
	if os.Getenv("BERTH_FAULT_MATRIX") == "full" {
		return []string{"once", "always"}
	}
	return []string{"always"}
}
