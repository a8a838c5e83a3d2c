package connect

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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
	id   string
	keys keys
	// key is the session key, and server is what providers are given: it has the key in its environment. See setKey.
	key    string
	server provider.Server
	began  time.Time
	events func(Event)

	// lease is nil before it is taken and after it is released.
	lease *lease.Lease
	// waitsFor is the host that had the lease last, while this one waited for it.
	waitsFor   string
	phase      Phase
	phaseBegan time.Time
	// sandboxID is the session's sandbox, as a reply of the provider that was believed has it.
	sandboxID string
	// namedByError is the sandbox that an error of Create named. It may be another session's: see findMade.
	namedByError string
	// mayHaveMade reports whether this attempt created a sandbox, or may have: then a failure undoes it.
	mayHaveMade bool
	// woken reports whether the sandbox that this attempt found was woken for it.
	woken bool
	// late is where the answer to a Create comes that was given up. It is nil otherwise.
	late    <-chan created
	pings   int
	timings Timings
}

// created is the answer to a Create.
type created struct {
	sandbox provider.Sandbox
	err     error
}

func newAttempt(account recovery.Account, keys keys, req Request, events func(Event)) *attempt {
	a := &attempt{account: account, keys: keys, req: req, id: rand.Text(), began: time.Now(), events: events}
	a.server = req.Server.Server
	a.server.Health.Timeout = req.Health.ProbeTimeout
	return a
}

// setKey makes the session key the one of a generation.
func (a *attempt) setKey(generation string) {
	a.key = a.keys.of(a.account.Owner, a.req.Session, generation)
	a.server.Env = a.req.Server.envWith(a.key)
}

func (a *attempt) attachRequest(sandboxID string) provider.AttachRequest {
	return provider.AttachRequest{
		Session: a.req.Session, Owner: a.account.Owner, SandboxID: sandboxID, Server: a.server, Lifetime: a.req.Lifetime,
	}
}

// Causes of contexts that a limit has ended.
var (
	errTotal  = errors.New("the limit of the whole connect has passed")
	errCreate = errors.New("the limit for getting a sandbox has passed")
	errStart  = errors.New("the limit for starting the server has passed")
	errHealth = errors.New("the limit for waiting until the server is healthy has passed")
)

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

func (a *attempt) emitFailed(message string) {
	a.emit(Event{Phase: a.phase, Status: StatusFailed, Elapsed: time.Since(a.phaseBegan), Message: message})
}

// ready returns the result.
func (a *attempt) ready(sandbox provider.Sandbox, endpoints provider.Endpoints) Result {
	a.timings.Total = time.Since(a.began)
	a.phase, a.phaseBegan = PhaseReady, a.began
	a.emit(Event{Phase: PhaseReady, Status: StatusDone, Elapsed: a.timings.Total})
	return Result{
		Session: a.req.Session, Provider: a.account.Name, SandboxID: sandbox.ID, Origin: sandbox.Origin,
		Endpoint: endpoints.Server, SandboxExpiresAt: sandbox.ExpiresAt, Extra: endpoints.Extra, Pings: a.pings, Timings: a.timings,
	}
}

// handOver gives the result to whoever asked for it, while the record still says that the sandbox is being made: if this
// host dies before anybody was told, the sandbox is found and ended.
func (a *attempt) handOver(ctx context.Context, result Result) error {
	if a.req.HandOver == nil {
		return nil
	}
	if err := a.lease.Confirm(ctx); err != nil {
		return err
	}
	if err := a.req.HandOver(ctx, result); err != nil {
		return &Error{Code: CodeUndelivered, Message: err.Error(), Cause: err}
	}
	return nil
}

func (a *attempt) emit(e Event) {
	e.Time = time.Now()
	e.Session, e.Provider, e.Attempt, e.SandboxID, e.Pings = a.req.Session, a.account.Name, a.id, a.sandboxID, a.pings
	a.events(e)
}

// withKey returns the endpoints with the session key's header, those of extra ports too: they are served by the same
// server. It fails if the provider needs that header for itself.
func (a *attempt) withKey(endpoints provider.Endpoints) (provider.Endpoints, error) {
	header := a.req.Server.KeyHeader
	if header == "" {
		return endpoints, nil
	}
	if taken := headerTaken(endpoints, header); taken != "" {
		return endpoints, headerConflict(a.account.Name, header, taken)
	}
	add := func(e provider.Endpoint) provider.Endpoint {
		e.Headers = maps.Clone(e.Headers)
		if e.Headers == nil {
			e.Headers = map[string]string{}
		}
		e.Headers[header] = a.key
		return e
	}
	keyed := provider.Endpoints{Server: add(endpoints.Server), Extra: maps.Clone(endpoints.Extra)}
	for name, extra := range keyed.Extra {
		keyed.Extra[name] = add(extra)
	}
	return keyed, nil
}

// headerTaken returns the name of the header, as the endpoints have it, or "". Case makes no difference.
func headerTaken(endpoints provider.Endpoints, header string) string {
	for _, e := range append(slices.Collect(maps.Values(endpoints.Extra)), endpoints.Server) {
		for name := range e.Headers {
			if strings.EqualFold(name, header) {
				return name
			}
		}
	}
	return ""
}

// headerConflict returns the error of a server whose key header the provider needs for its own key.
func headerConflict(providerName, header, taken string) *Error {
	return &Error{
		Code: CodeInvalidConfig, Reason: ReasonHeaderConflict,
		Message: fmt.Sprintf("the server expects its key in the header %s (key_header), and provider %s needs %s for its own key: "+
			"one request cannot carry both", header, providerName, taken),
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

func isReason(err error, reason string) bool {
	var e *provider.Error
	return errors.As(err, &e) && e.Reason == reason
}
