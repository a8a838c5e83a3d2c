package connect

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
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
	server := a.req.Server.Server
	server.Health.Timeout = a.req.Health.ProbeTimeout
	server.Env = maps.Clone(server.Env)
	if server.Env == nil {
		server.Env = map[string]string{}
	}
	for _, name := range a.req.Server.KeyEnv {
		server.Env[name] = a.key
	}
	return server
}

// withKey returns the endpoints with the session key's header, those of extra ports too: they are served by the same
// server.
func (a *attempt) withKey(endpoints provider.Endpoints) provider.Endpoints {
	header := a.req.Server.KeyHeader
	if header == "" {
		return endpoints
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
	return keyed
}

func (a *attempt) attachRequest(sandboxID string) provider.AttachRequest {
	return provider.AttachRequest{
		Session: a.req.Session, Owner: a.account.Owner, SandboxID: sandboxID, Server: a.server(), Lifetime: a.req.Lifetime,
	}
}

func sessionKey(secret []byte, session string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("berth session key\x00" + session))
	return hex.EncodeToString(mac.Sum(nil))
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

// limitError is the cause of a context that a limit has ended.
type limitError struct {
	name  LimitName
	set   time.Duration
	began time.Time
}

func (e *limitError) Error() string {
	return fmt.Sprintf("the limit %s of %s has passed", e.name, e.set)
}

func withLimit(ctx context.Context, name LimitName, set time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, set, &limitError{name: name, set: set, began: time.Now()})
}

// limitOr returns the limit that has ended ctx, or else err.
func limitOr(ctx context.Context, err error) error {
	var limit *limitError
	if errors.As(context.Cause(ctx), &limit) {
		return limit
	}
	return err
}

// endedBy returns the limit of that name if err is that it was reached, and otherwise nil.
func endedBy(err error, name LimitName) *Limit {
	var limit *limitError
	if errors.As(err, &limit) && limit.name == name {
		return &Limit{Name: name, Set: limit.set, Took: time.Since(limit.began)}
	}
	return nil
}

// round makes a duration readable.
func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}
