package main

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

	modal "github.com/modal-labs/modal-client/go"
	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/modal/sim"
	cloudkit "github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// connectOnce does what a host does: attach, else create; start the server; wait until it is alive; and remove what was
// made when any of that fails.
func connectOnce(ctx context.Context, d *Modal, attempt string, server provider.Server) (ready provider.Sandbox, err error) {
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

func awaitPing(ctx context.Context, d *Modal, id string, endpoints provider.Endpoints) error {
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
		if !cloudkit.Pause(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// scene is what leads to a call, and what may be there afterwards.
type scene struct {
	operation string
	before    func(t *testing.T, cloud *sim.Cloud, d *Modal)
	do        func(ctx context.Context, d *Modal) error
	// keeps is how many sandboxes a failure leaves: those that were there before.
	keeps int
	// public: ports are reached through tunnels.
	public bool
	// fails: it never ends well, whatever the fault. It is there for what it does then.
	fails bool
}

func scenes() []scene {
	connect := func(server provider.Server) func(context.Context, *Modal) error {
		return func(ctx context.Context, d *Modal) error {
			_, err := connectOnce(ctx, d, "attempt-1", server)
			return err
		}
	}
	exists := func(t *testing.T, cloud *sim.Cloud, d *Modal) { create(t, newProvider(t, cloud, nil), "s1") }
	var all []scene
	for _, operation := range []string{
		"AuthTokenGet", "SandboxGetFromNameV2", "SandboxGetFromName", "AppGetOrCreate", "EnvironmentGetOrCreate", "ImageGetOrCreate",
		"ImageJoinStreaming", "SandboxCreateV2", "TaskExecStart", "TaskExecStdioRead", "SandboxCreateConnectTokenV2", "connect",
	} {
		all = append(all, scene{operation: operation, do: connect(pythonServer())})
	}
	return append(all,
		scene{operation: "SandboxTagsGetV2", keeps: 1, before: exists, do: connect(pythonServer())},
		scene{operation: "SandboxWaitV2", keeps: 1, before: exists, do: connect(pythonServer())},
		scene{operation: "SandboxGetTaskIdV2", keeps: 1, before: exists, do: connect(pythonServer())},
		scene{operation: "SandboxGetCommandRouterAccess", keeps: 1, before: exists, do: connect(pythonServer())},
		scene{operation: "SandboxGetTunnelsV2", public: true, do: connect(pythonServer())},
		scene{operation: "SandboxTerminateV2", do: connect(shellServer("exit 3")), fails: true},
		scene{operation: "SandboxListV2", keeps: 1, before: exists, do: func(ctx context.Context, d *Modal) error {
			listed, err := d.List(ctx, provider.ListRequest{Owner: owner})
			if err == nil && len(listed) != 1 {
				return fmt.Errorf("listed %d", len(listed))
			}
			return err
		}},
	)
}

// kind is a fault in the forms that calls of the API and requests to a port have.
type kind struct {
	name  string
	call  simcloud.Fault
	wire  bool // below gRPC
	http  simcloud.Fault
	codes []provider.Code
}

func kinds() []kind {
	lost := []provider.Code{provider.CodeUnreachable, provider.CodeTimeout}
	page := simcloud.Fault{Status: 200, Body: "<html></html>", Headers: map[string]string{"Content-Type": "text/html"}}
	throttled := simcloud.Fault{
		Code: codes.ResourceExhausted, Message: "Sandbox creation rate limit (5/s) exceeded",
		Details: []proto.Message{pb.RPCRetryPolicy_builder{RetryAfterSecs: 0.2}.Build()},
	}
	return []kind{
		{name: "429", call: throttled, http: simcloud.Fault{Status: 429, Headers: map[string]string{"Retry-After": "1"}}, codes: []provider.Code{provider.CodeExhausted}},
		{name: "500", call: simcloud.Fault{Code: codes.Internal, Message: "oops"}, http: simcloud.Fault{Status: 500}, codes: lost},
		{name: "503", call: simcloud.Fault{Code: codes.Unavailable, Message: "no healthy upstream"}, http: simcloud.Fault{Status: 503}, codes: lost},
		{name: "hang", call: simcloud.Fault{Hang: true}, http: simcloud.Fault{Hang: true}, codes: lost},
		{name: "non-gRPC 200", call: page, http: page, wire: true, codes: lost},
		{name: "dropped before", call: simcloud.Fault{Drop: true}, http: simcloud.Fault{Drop: true}, codes: lost},
		{name: "dropped after", call: simcloud.Fault{Drop: true, After: true}, http: simcloud.Fault{Drop: true, After: true}, codes: lost},
		{name: "401", call: simcloud.Fault{Code: codes.Unauthenticated, Message: "Token validation failed."}, http: simcloud.Fault{Status: 401},
			codes: []provider.Code{provider.CodeDenied}},
	}
}

// inject puts the fault where the operation meets it.
func (k kind) inject(cloud *sim.Cloud, operation string, count int) *simcloud.Injected {
	fault, traffic := k.call, &cloud.Traffic
	if k.wire {
		traffic = &cloud.Wire
	}
	if operation == "connect" {
		fault, traffic = k.http, &cloud.Traffic
	}
	fault.Operation, fault.Count = operation, count
	return traffic.Fail(fault)
}

// Every call that the plugin makes, with every fault, once and for ever: ready, or an error that names the cause, in
// time; and no sandbox left that was not there before.
func TestWhateverFailsAConnectEndsReadyOrWithATypedErrorAndNothingLeft(t *testing.T) {
	t.Parallel()
	var mutex sync.Mutex
	table := map[string]string{}
	t.Run("cells", func(t *testing.T) {
		for _, s := range scenes() {
			for _, k := range kinds() {
				for _, often := range howOften() {
					cell := fmt.Sprintf("%-30s %-15s %-7s", s.operation, k.name, often)
					t.Run(strings.Join(strings.Fields(cell), "_"), func(t *testing.T) {
						t.Parallel()
						word := runCell(t, s, k, often)
						mutex.Lock()
						defer mutex.Unlock()
						table[cell] = word
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

func runCell(t *testing.T, s scene, k kind, often string) string {
	const deadline = 60 * time.Second
	cloud := newCloud(t, sim.Options{Build: time.Millisecond})
	times, count := testTimes, 0
	times.throttle, times.Script, times.Reach = time.Second, 5*time.Second, 5*time.Second
	if often == "once" {
		count = 1
	}
	if often == "always" || k.call.Hang {
		times.call, times.create, times.list, times.ending, times.Script = 2*time.Second, 2*time.Second, 2*time.Second, 2*time.Second, 2*time.Second
	}
	if often == "always" {
		times.Retry.Tries = 2
	}
	if s.operation == "connect" && k.http.Drop && often == "once" {
		count = 2 // the HTTP client sends a GET again by itself
	}
	d := newTimedProvider(t, cloud, times, func(c *Config) { c.Public = s.public })
	if s.before != nil {
		s.before(t, cloud, d)
	}
	injected := k.inject(cloud, s.operation, count)
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
	case s.operation == "SandboxTerminateV2" && (often == "always" && k.name != "dropped after" || k.name == "401"):
		// Ending it is impossible: the error has to say so.
		if left != 1 || !strings.Contains(err.Error(), "terminating the sandbox") {
			t.Errorf("left %d, error %v", left, err)
		}
	case err != nil && left != s.keeps:
		t.Errorf("%d sandboxes left, want %d: %v", left, s.keeps, err)
	case err == nil && left != 1:
		t.Errorf("%d sandboxes, want one", left)
	}
	return fmt.Sprintf("%-45s left %d  %5.1f s", word, left, took.Seconds())
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
		t.Error("the secret is in the error")
	}
	switch {
	case s.fails:
	case often == "once" && k.name != "401":
		t.Errorf("one fault was too much: %s: %v", e.Code, err)
	case s.operation == "connect": // the URL of the server: what it answers is a matter of health
	case !slices.Contains(k.codes, e.Code):
		t.Errorf("class %s, want one of %v: %v", e.Code, k.codes, err)
	}
	return fmt.Sprintf("%s: %.34s", e.Code, e.Message)
}

func TestTheAPIsErrorsHaveTheirClasses(t *testing.T) {
	t.Parallel()
	withPolicy, err := status.New(codes.ResourceExhausted, "slow down").WithDetails(pb.RPCRetryPolicy_builder{RetryAfterSecs: 3}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		err        error
		code       provider.Code
		reason     string
		retryable  bool
		retryAfter time.Duration
	}{
		"unauthenticated": {err: status.Error(codes.Unauthenticated, "who?"), code: provider.CodeDenied},
		"wrapped":         {err: fmt.Errorf("failed to get auth token: %w", status.Error(codes.Unauthenticated, "who?")), code: provider.CodeDenied},
		"forbidden":       {err: status.Error(codes.PermissionDenied, "no"), code: provider.CodeDenied},
		"not found":       {err: status.Error(codes.NotFound, "no such"), code: provider.CodeNotFound},
		"the SDK's own":   {err: modal.NotFoundError{Exception: "no such"}, code: provider.CodeNotFound},
		"taken":           {err: modal.AlreadyExistsError{Exception: "taken"}, code: provider.CodeConflict},
		"invalid":         {err: modal.InvalidError{Exception: "bad"}, code: provider.CodeInvalid},
		"rate limit":      {err: status.Error(codes.ResourceExhausted, "Sandbox creation rate limit (5/s) exceeded"), code: provider.CodeExhausted, reason: provider.ReasonRateLimit, retryable: true},
		"throttled":       {err: withPolicy.Err(), code: provider.CodeExhausted, reason: provider.ReasonRateLimit, retryable: true, retryAfter: 3 * time.Second},
		"quota":           {err: status.Error(codes.ResourceExhausted, "workspace limit of 100 containers"), code: provider.CodeExhausted, reason: provider.ReasonQuota},
		"old quota":       {err: modal.ResourceExhaustedError{Exception: "Insufficient capacity"}, code: provider.CodeExhausted, reason: provider.ReasonQuota},
		"ended":           {err: modal.ConflictError{Exception: "finished"}, code: provider.CodeState},
		"a build":         {err: modal.RemoteError{Exception: "build failed"}, code: provider.CodeFailed},
		"internal":        {err: status.Error(codes.Internal, "oops"), code: provider.CodeUnreachable, retryable: true},
		"unavailable":     {err: status.Error(codes.Unavailable, "oops"), code: provider.CodeUnreachable, retryable: true},
		"no gRPC":         {err: status.Error(codes.Unknown, "unexpected content-type"), code: provider.CodeUnreachable, retryable: true},
		"in time":         {err: status.Error(codes.DeadlineExceeded, "late"), code: provider.CodeTimeout, retryable: true},
		"in time, plain":  {err: context.DeadlineExceeded, code: provider.CodeTimeout, retryable: true},
	} {
		e := failure(t.Context(), "asking", c.err)
		if e.Code != c.code || e.Reason != c.reason || e.Retryable != c.retryable || e.RetryAfter != c.retryAfter {
			t.Errorf("%s: %+v", name, e)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if e := failure(cancelled, "asking", status.Error(codes.Canceled, "x")); e.Code != provider.CodeCanceled {
		t.Errorf("cancelled: %+v", e)
	}
}

// howOften a fault happens. BERTH_FAULT_MATRIX=full adds those that happen once, which most connects survive.
func howOften() []string {
	if os.Getenv("BERTH_FAULT_MATRIX") == "full" {
		return []string{"once", "always"}
	}
	return []string{"always"}
}
