package connect

import (
	"crypto/rand"
	"time"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

// attempt is one connect under way.
type attempt struct {
	account recovery.Account
	req     Request
	// id is among the labels of a sandbox that the attempt creates.
	id     string
	key    string
	began  time.Time
	events func(Event)

	// lease is nil before it is taken and after it is released.
	lease *lease.Lease
	// waitsFor is the host that had the lease last, while this one waited for it.
	waitsFor   string
	phase      Phase
	phaseBegan time.Time
	sandboxID  string
	// made reports whether this attempt created a sandbox, or may have: then a failure undoes it.
	made    bool
	pings   int
	timings Timings
}

func newAttempt(account recovery.Account, req Request, key string, events func(Event)) *attempt {
	return &attempt{account: account, req: req, id: rand.Text(), key: key, began: time.Now(), events: events}
}

// enter begins a phase.
func (a *attempt) enter(phase Phase) {
	a.phase, a.phaseBegan = phase, time.Now()
	a.emit(Event{Phase: phase, Status: StatusStarted})
}

// leave ends the phase and returns how long it took.
func (a *attempt) leave(message string) time.Duration {
	elapsed := time.Since(a.phaseBegan)
	a.emit(Event{Phase: a.phase, Status: StatusDone, Elapsed: elapsed, Message: message})
	return elapsed
}

func (a *attempt) progress(message string) {
	a.emit(Event{Phase: a.phase, Status: StatusProgress, Elapsed: time.Since(a.phaseBegan), Message: message})
}

func (a *attempt) failed(message string) {
	a.emit(Event{Phase: a.phase, Status: StatusFailed, Elapsed: time.Since(a.phaseBegan), Message: message})
}

// ready ends the attempt.
func (a *attempt) ready(sandbox provider.Sandbox, endpoints provider.Endpoints) Result {
	a.timings.Total = time.Since(a.began)
	a.emit(Event{Phase: PhaseReady, Status: StatusDone, Elapsed: a.timings.Total})
	return Result{
		Session: a.req.Session, Provider: a.account.Name, SandboxID: sandbox.ID, Origin: sandbox.Origin,
		Endpoint: endpoints.Server, Extra: endpoints.Extra, Pings: a.pings, Timings: a.timings,
	}
}

func (a *attempt) emit(e Event) {
	e.Time = time.Now()
	e.Session, e.Provider, e.Attempt, e.SandboxID, e.Pings = a.req.Session, a.account.Name, a.id, a.sandboxID, a.pings
	a.events(e)
}

// server returns the server as a provider gets it, with the session key in its environment.
func (a *attempt) server() provider.Server {
	server := addKeyToEnv(a.req.Server.Server, a.req.Server.KeyEnv, a.key)
	server.Health.Timeout = a.req.Health.ProbeTimeout
	return server
}

// withKey returns the endpoints with the session key's header.
func (a *attempt) withKey(endpoints provider.Endpoints) provider.Endpoints {
	return addKeyToHeaders(endpoints, a.req.Server.KeyHeader, a.key)
}

func (a *attempt) attachRequest(sandboxID string) provider.AttachRequest {
	return provider.AttachRequest{
		Session: a.req.Session, Owner: a.account.Owner, SandboxID: sandboxID, Server: a.server(), Lifetime: a.req.Lifetime,
	}
}

// onceMoreAfterCrash repeats a call that is safe to repeat when the plugin crashed under it.
func onceMoreAfterCrash[T any](call func() (T, error)) (T, error) {
	value, err := call()
	if isReason(err, provider.ReasonPluginCrashed) {
		value, err = call()
	}
	return value, err
}
