package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// methods are what a fault can affect. "launch" is the start of the process, known only to launchFaults.
var methods = []string{"configure", "create", "attach", "start", "ping", "list", "renew", "suspend", "destroy", "logs"}

// anyMethod is every method except "configure".
const anyMethod = "any"

// effect is what a fault does around the honest call.
type effect struct {
	// context replaces the call's context.
	context func(context.Context) (context.Context, context.CancelFunc)
	// before is called before the honest call, which is skipped if before fails or sets answered.
	before func(ctx context.Context, c *call) error
	// after is called after an honest call that succeeded. It may change the reply or fail.
	after func(ctx context.Context, c *call) error
	// failed is called after a call that failed, and returns the error to use instead. If nil, the call succeeds with
	// reply.
	failed func(ctx context.Context, c *call, err error) error
}

// call is a call in progress.
type call struct {
	faulty *faulty
	method string
	// request and reply are the method's own; reply is a pointer.
	request, reply any
	// answered is set if reply is complete without the honest call.
	answered bool
}

// kind is a kind of fault.
type kind struct {
	name string
	// arguments is the syntax after the name, for people.
	arguments string
	// methods are the ones it can affect, or nil for all.
	methods []string
	make    func(arguments []string) (effect, error)
}

var kinds = []kind{
	// The call fails.
	{"error", ":ERROR[:RETRY_AFTER]", nil, makeError(before, false)},
	{"error_after", ":ERROR[:RETRY_AFTER]", nil, makeError(after, false)},
	{"error_named", ":ERROR[:RETRY_AFTER]", []string{"create"}, makeError(after, true)},
	{"invalid", ":ATTRIBUTE", []string{"configure"}, makeInvalid},
	{"panic", "", nil, plain(effect{before: panics})},
	// The call takes long, or forever.
	{"delay", ":DURATION", nil, makeDelay},
	{"hang", "", nil, plain(effect{before: hangs})},
	{"hang_after", "", nil, plain(effect{after: hangs})},
	{"ignore_cancel", ":DURATION", nil, makeIgnoreCancel},
	// The plugin process ends.
	{"crash", "[:CODE]", nil, makeCrash(before)},
	{"crash_after", "[:CODE]", nil, makeCrash(after)},
	// The server in the sandbox ends.
	{"exited", ":CODE", []string{"start"}, makeStartExited},
	{"die", ":DURATION[:CODE]", []string{"start"}, makeDie},
	// Ping returns a wrong status.
	{"exited", ":CODE", []string{"ping"}, makePingExited},
	{"not_yet", "", []string{"ping"}, verdict(provider.PingNotYet)},
	{"denied", "", []string{"ping"}, verdict(provider.PingDenied)},
	{"stopped", "", []string{"ping"}, verdict(provider.PingStopped)},
	{"gone", "", []string{"ping"}, verdict(provider.PingGone)},
	// The answer breaks the contract.
	{"bad_id", "", []string{"create", "attach"}, plain(effect{after: badID})},
	{"bad_url", "", []string{"start"}, plain(effect{after: badURL})},
	{"bad_status", "", []string{"ping"}, verdict("no such status")},
	{"lag", ":DURATION", []string{"list"}, makeLag},
	// The process misbehaves independently of the call.
	{"stderr_noise", "", nil, plain(effect{before: stderrNoise})},
	{"stdout_noise", "", nil, plain(effect{before: stdoutNoise})},
	{"fork_child", "[:DURATION]", nil, makeFork(false)},
	{"fork_daemon", "[:DURATION]", nil, makeFork(true)},
	{"leak_secret", "", nil, plain(effect{before: leakSecret})},
}

// failures are the errors that can be requested.
var failures = map[string]provider.Error{
	"invalid":     {Code: provider.CodeInvalid},
	"denied":      {Code: provider.CodeDenied},
	"not_found":   {Code: provider.CodeNotFound},
	"gone":        {Code: provider.CodeNotFound, Reason: provider.ReasonGone},
	"conflict":    {Code: provider.CodeConflict},
	"wrong_state": {Code: provider.CodeState},
	"quota":       {Code: provider.CodeExhausted, Reason: provider.ReasonQuota},
	"rate_limit":  {Code: provider.CodeExhausted, Reason: provider.ReasonRateLimit, Retryable: true, RetryAfter: time.Second},
	"unreachable": {Code: provider.CodeUnreachable, Retryable: true},
	"unsupported": {Code: provider.CodeUnsupported},
	"failed":      {Code: provider.CodeFailed},
	"internal":    {Code: provider.CodeInternal},
	"timeout":     {Code: provider.CodeTimeout, Retryable: true},
	"canceled":    {Code: provider.CodeCanceled},
}

// fault is one entry of the faults attribute.
type fault struct {
	method string
	// nth is the only call to affect, or 0 for every call.
	nth int
	effect
}

// parseFault reads METHOD[:N]=FAULT[:ARGUMENTS].
func parseFault(text string, methods []string) (fault, error) {
	where, what, ok := strings.Cut(text, "=")
	if !ok {
		return fault{}, fmt.Errorf("%q is not of the form METHOD[:N]=FAULT[:ARGUMENTS]", text)
	}
	method, number, numbered := strings.Cut(where, ":")
	if !slices.Contains(methods, method) {
		return fault{}, fmt.Errorf("%q: there is no method %q; there are %s", text, method, strings.Join(methods, ", "))
	}
	f := fault{method: method}
	if numbered {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 {
			return fault{}, fmt.Errorf("%q: the call is counted from 1, not %q", text, number)
		}
		f.nth = n
	}
	name, rest, argued := strings.Cut(what, ":")
	var arguments []string
	if argued {
		arguments = strings.Split(rest, ":")
	}
	k, err := findKind(name, method)
	if err == nil {
		f.effect, err = k.make(arguments)
		if err != nil {
			err = fmt.Errorf("%w; it is written %s", err, k.name+k.arguments)
		}
	}
	if err != nil {
		return fault{}, fmt.Errorf("%q: %w", text, err)
	}
	return f, nil
}

func findKind(name, method string) (kind, error) {
	var known, elsewhere []string
	for _, k := range kinds {
		fits := k.methods == nil || slices.Contains(k.methods, method)
		switch {
		case fits && k.name == name:
			return k, nil
		case fits:
			known = append(known, k.name)
		case k.name == name:
			elsewhere = append(elsewhere, k.methods...)
		}
	}
	if len(elsewhere) > 0 {
		return kind{}, fmt.Errorf("the fault %q is for %s, not for %s", name, strings.Join(elsewhere, " and "), method)
	}
	return kind{}, fmt.Errorf("there is no fault %q; for %s there are %s", name, method, strings.Join(known, ", "))
}

// faulty is the cloud with its faults, as the host sees it.
type faulty struct {
	cloud  *cloud
	faults []fault
	log    hclog.Logger

	// The process's own streams and exit; tests replace them.
	stdout, stderr *os.File
	exit           func(code int)
	children       sync.WaitGroup
	// memory is for breaches.
	memory *memory
}

// open returns the provider of a configuration.
func open(ctx context.Context, config Config, log hclog.Logger) (*faulty, error) {
	f := &faulty{cloud: newCloud(config), log: log, stdout: processStdout, stderr: processStderr, exit: os.Exit, memory: newMemory()}
	refused := f.cloud.problems(ctx)
	for _, text := range config.Faults {
		fault, err := parseFault(text, append([]string{anyMethod}, methods...))
		if err != nil {
			refused = append(refused, provider.FieldError{Field: "faults", Message: err.Error()})
		}
		f.faults = append(f.faults, fault)
	}
	for _, name := range config.Breaches {
		breach, err := parseBreach(name)
		if err != nil {
			refused = append(refused, provider.FieldError{Field: "breaches", Message: err.Error()})
		}
		if breach.method != "" {
			f.faults = append(f.faults, fault{method: breach.method, effect: breach.effect})
		}
	}
	if len(refused) > 0 {
		return nil, &provider.Error{Code: provider.CodeInvalid, Message: "the configuration was refused", Fields: refused}
	}
	f.cloud.login()
	_, err := inject(ctx, f, "configure", config, func(ctx context.Context, _ Config) (struct{}, error) {
		return struct{}{}, f.cloud.open(ctx)
	})
	if err != nil {
		f.cloud.Close()
		return nil, err
	}
	return f, nil
}

// launchVariable contains faults of the process's start, before the handshake and any configuration: FAULT[:ARGUMENTS],
// separated by commas.
const launchVariable = "MOCK_LAUNCH"

// launchFaults causes the faults of the environment. Those that wait end with standard input, as the process would.
func launchFaults(list string) error {
	if list == "" {
		return nil
	}
	f := &faulty{
		cloud: newCloud(Config{}), log: hclog.NewNullLogger(), stdout: processStdout, stderr: processStderr, exit: os.Exit,
	}
	for _, text := range strings.Split(list, ",") {
		fault, err := parseFault("launch="+text, []string{"launch"})
		if err != nil {
			return fmt.Errorf("%s: %w", launchVariable, err)
		}
		f.faults = append(f.faults, fault)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // any error means its end
		cancel()
	}()
	_, err := inject(ctx, f, "launch", list, func(context.Context, string) (struct{}, error) { return struct{}{}, nil })
	return err
}

// Close stops what the provider runs. Forked children live on, as requested.
func (f *faulty) Close() error {
	if now.close != nil {
		now.close(f)
	}
	return f.cloud.Close()
}

func (f *faulty) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	return inject(ctx, f, "create", req, f.cloud.Create)
}

func (f *faulty) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	return inject(ctx, f, "attach", req, f.cloud.Attach)
}

func (f *faulty) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	return inject(ctx, f, "start", req, f.cloud.StartServer)
}

func (f *faulty) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	return inject(ctx, f, "ping", req, f.cloud.Ping)
}

func (f *faulty) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	return inject(ctx, f, "list", req, f.cloud.List)
}

func (f *faulty) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	return inject(ctx, f, "renew", req, f.cloud.Renew)
}

func (f *faulty) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	_, err := inject(ctx, f, "suspend", ref, func(ctx context.Context, ref provider.SandboxRef) (struct{}, error) {
		return struct{}{}, f.cloud.Suspend(ctx, ref)
	})
	return err
}

func (f *faulty) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	_, err := inject(ctx, f, "destroy", ref, func(ctx context.Context, ref provider.SandboxRef) (struct{}, error) {
		return struct{}{}, f.cloud.Destroy(ctx, ref)
	})
	return err
}

func (f *faulty) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	return inject(ctx, f, "logs", req, f.cloud.Logs)
}

// inject makes one call with the faults that affect it.
func inject[Request, Reply any](
	ctx context.Context, f *faulty, method string, request Request, honest func(context.Context, Request) (Reply, error),
) (reply Reply, err error) {
	var none Reply
	effects, err := f.effects(ctx, method)
	if err != nil {
		return none, err
	}
	c := &call{faulty: f, method: method, request: request, reply: &reply}
	for _, e := range effects {
		if e.context != nil {
			var cancel context.CancelFunc
			ctx, cancel = e.context(ctx)
			defer cancel()
		}
	}
	err = c.run(ctx, effects, func() (err error) {
		reply, err = honest(ctx, request)
		return err
	})
	if err != nil {
		return none, err
	}
	return reply, nil
}

// run makes the honest call with the effects around it.
func (c *call) run(ctx context.Context, effects []effect, honest func() error) error {
	for _, e := range effects {
		if e.before != nil {
			if err := e.before(ctx, c); err != nil {
				return err
			}
		}
	}
	if !c.answered {
		if err := honest(); err != nil {
			return c.fail(ctx, effects, err)
		}
	}
	for _, e := range effects {
		if e.after != nil {
			if err := e.after(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *call) fail(ctx context.Context, effects []effect, err error) error {
	for _, e := range effects {
		if e.failed != nil && err != nil {
			err = e.failed(ctx, c, err)
		}
	}
	return err
}

// effects counts the call and returns its effects, in the order of the configuration.
func (f *faulty) effects(ctx context.Context, method string) ([]effect, error) {
	if len(f.faults) == 0 {
		return nil, nil
	}
	var own, all int
	err := f.cloud.store.doAnyway(ctx, func(w *world) error {
		w.Calls[method]++
		own = w.Calls[method]
		if method != "configure" {
			w.Calls[anyMethod]++
			all = w.Calls[anyMethod]
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var effects []effect
	for _, fault := range f.faults {
		count := 0
		switch {
		case fault.method == method:
			count = own
		case fault.method == anyMethod && method != "configure":
			count = all
		}
		if count > 0 && (fault.nth == 0 || fault.nth == count) {
			effects = append(effects, fault.effect)
		}
	}
	return effects, nil
}
