// Package connect is the lifecycle of a connection: get the session's sandbox, start the action server in it, wait until
// the server is healthy, return its URL and headers; and undo what was made when any of that fails.
//
// It knows the provider contract and nothing of plugin processes, configuration files or HTTP. Nothing in it prints,
// exits or reads a flag: it takes a context, a request and a function for events, and returns a result or an *Error.
//
// Its files are floors, and a file uses only those below it:
//
//	connect.go   the whole lifecycle on one page
//	flight.go    equal connects at the same time share one attempt
//	acquire.go   get the sandbox
//	serve.go     start the server
//	health.go    wait until it is healthy
//	fail.go      what a connect that failed reports
//	undo.go      end what it made
//	attempt.go   the attempt under way: its events, the session key
//	key.go       how session keys are derived
//	defaults.go  how long things may take unless it is configured
//	request.go   what is asked for, and the result
//	error.go     failures and their codes
//	event.go     events
package connect

import (
	"context"
	"time"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

// Connector connects sessions on one provider. Its methods may be called concurrently.
type Connector struct {
	account recovery.Account
	keys    keys
	flights flights
}

// New returns a connector. name is the provider's name in records, results, events and errors; owner marks every sandbox
// as this installation's; session keys are derived from secret; store knows which host works on which session. Several
// connectors may share a store.
func New(p provider.Provider, name, owner string, secret []byte, store records.Store) *Connector {
	return &Connector{
		account: recovery.Account{Provider: p, Name: name, Owner: owner, Records: store},
		keys:    keys{secret: secret},
		flights: flights{running: map[string]*flight{}},
	}
}

// Account returns the provider, and the records, that the connector works with.
func (c *Connector) Account() recovery.Account { return c.account }

// TellKeys makes the connector call tell with every session key before it uses it, so that whoever shows what the
// connector returns can keep the key out of it. tell is called concurrently. Call TellKeys before anything else.
func (c *Connector) TellKeys(tell func(key string)) { c.keys.tell = tell }

// TellKeyOf tells the key of a session's sandbox, for work on it that needs no key: what its provider says may quote the key.
func (c *Connector) TellKeyOf(record records.Record) {
	c.keys.of(c.account.Owner, record.Session, record.Generation)
}

// Connect connects a session and returns once its server is healthy. Errors are *Error.
//
// When it fails or ctx ends, it undoes what it made, in a context of its own bounded by Limits.Undo, and then returns.
// It never touches what it merely found. events, which may be nil, receives every step in order, from one goroutine at
// a time; it must not block.
//
// One host at a time works on a session. A connect that meets another host at work waits for it, or takes over what it
// left when its lease ends. An attempt that loses its own lease stops with CodeLeaseLost and undoes nothing.
//
// Equal requests for one session at the same time share one attempt, and each caller gets its result. A different
// request for the session waits until the attempt is over. The attempt is cancelled when all its callers have gone.
func (c *Connector) Connect(ctx context.Context, req Request, events func(Event)) (Result, error) {
	req, err := req.complete(c.account.Name)
	if err != nil {
		return Result{}, err
	}
	return c.flights.join(ctx, req, events, c.connect)
}

// connect makes one attempt.
func (c *Connector) connect(ctx context.Context, req Request, events func(Event)) (Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, req.Limits.Total, errTotal)
	defer cancel()
	a := newAttempt(c.account, c.keys, req, events)
	result, err := a.lifecycle(ctx)
	if err != nil {
		return Result{}, a.fail(ctx, err)
	}
	return result, nil
}

// lifecycle is the whole job, in order.
func (a *attempt) lifecycle(ctx context.Context) (Result, error) {
	a.enter(PhaseAcquire)
	if err := a.takeLease(ctx); err != nil {
		return Result{}, err
	}
	ctx = a.lease.Fenced(ctx)
	sandbox, err := a.acquire(ctx)
	if err != nil {
		return Result{}, err
	}
	a.timings.Acquire = a.leave(string(sandbox.Origin))

	endpoints, healthy, err := a.findServer(ctx, sandbox)
	if err != nil {
		return Result{}, err
	}
	if !healthy {
		a.enter(PhaseStartServer)
		if endpoints, err = a.startServer(ctx); err != nil {
			return Result{}, err
		}
		a.timings.StartServer = a.leave("")

		a.enter(PhaseHealth)
		if err := a.awaitHealthy(ctx, endpoints.Server); err != nil {
			return Result{}, err
		}
		a.timings.Health += a.leave("") // beside the question whether it was up already
	}

	// A connection that cannot be recorded is none: nobody would know of its sandbox. Nor is one that nobody is told of.
	a.lease.SetSandbox(a.account.Name, sandbox)
	result := a.ready(sandbox, endpoints)
	if err := a.handOver(ctx, result); err != nil {
		return Result{}, err
	}
	if err := a.lease.Release(ctx); err != nil {
		return Result{}, err
	}
	a.lease = nil
	return result, nil
}

// Probe attaches to a sandbox of the session that runs, and asks its server once whether it is healthy. It starts
// nothing. record is the session's. The error is the provider's.
func (c *Connector) Probe(ctx context.Context, req Request, record records.Record, sandboxID string) (Probe, error) {
	req = req.withDefaults()
	a := newAttempt(c.account, c.keys, req, func(Event) {})
	a.setKey(record.Generation)
	sandbox, err := a.account.Provider.Attach(ctx, a.attachRequest(sandboxID))
	if err != nil {
		return Probe{}, err
	}
	if sandbox.Endpoints == nil {
		return Probe{Sandbox: sandbox, Ping: provider.PingResult{Status: provider.PingNotYet, Reason: "no server has been started"}}, nil
	}
	a.sandboxID = sandbox.ID
	a.setKey(lease.GenerationOf(record, sandbox))
	endpoints, err := a.withKey(*sandbox.Endpoints)
	if err != nil {
		return Probe{Sandbox: sandbox}, err
	}
	began := time.Now()
	result, err := a.ping(ctx, endpoints.Server, lookSlack)
	return Probe{Sandbox: sandbox, Ping: result, Elapsed: time.Since(began)}, err
}
