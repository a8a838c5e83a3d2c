package connect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	// lookLimit bounds a look at what a provider has.
	lookLimit = 30 * time.Second
	// endLimit bounds suspending or destroying one sandbox: clouds take up to two minutes to write memory and disk away.
	endLimit = 3 * time.Minute
)

// Sessions lists this installation's sandboxes on the provider, those that are gone left out. Errors are *Error.
func (c *Connector) Sessions(ctx context.Context) ([]provider.Sandbox, error) {
	return c.sandboxes(ctx, "")
}

// Action is what Disconnect does with a session's sandbox.
type Action string

const (
	// ActionDestroy ends the sandbox for good.
	ActionDestroy Action = "destroy"
	// ActionSuspend stops it, so that the next connect wakes it.
	ActionSuspend Action = "suspend"
)

// Disconnect ends or suspends the session's sandbox and returns its id. Without one it is CodeNotFound. A provider that
// cannot do the action answers CodeUnsupported and nothing has changed. It waits while another host works on the session,
// and tells waiting, which may be nil, for whom. Errors are *Error.
func (c *Connector) Disconnect(ctx context.Context, id string, action Action, waiting func(holder string)) (sandboxID string, err error) {
	err = c.underLease(ctx, id, waiting, func(ctx context.Context, cl *claim) error {
		sandboxID, err = c.disconnect(ctx, cl, action)
		return err
	})
	return sandboxID, err
}

// underLease works on a session under its lease and records what became of it. Errors are *Error.
func (c *Connector) underLease(ctx context.Context, id string, waiting func(holder string), work func(context.Context, *claim) error) error {
	if waiting == nil {
		waiting = func(string) {}
	}
	cl, err := c.claim(ctx, id, waiting)
	if err != nil {
		return c.sessionError(id, "", err)
	}
	err = c.elsewhere(cl.record)
	if err == nil {
		err = work(cl.fenced(ctx), cl)
	}
	if released := cl.release(ctx); err == nil {
		err = released
	}
	if err != nil {
		return c.sessionError(id, cl.record.SandboxID, err)
	}
	return nil
}

func (c *Connector) disconnect(ctx context.Context, cl *claim, action Action) (sandboxID string, err error) {
	interrupted := cl.record.Interrupted()
	if err := c.settle(ctx, cl); err != nil {
		return cl.record.SandboxID, err
	}
	settled := interrupted && !cl.record.HasSandbox()
	sandboxes, err := c.present(ctx, cl.record)
	if err != nil {
		return cl.record.SandboxID, err
	}
	if settled { // a listing may still show what has just been destroyed
		sandboxes = slices.DeleteFunc(sandboxes, func(s provider.Sandbox) bool { return s.ID == cl.record.SandboxID })
	}
	if len(sandboxes) == 0 {
		if settled && action == ActionDestroy && cl.record.SandboxID != "" {
			return cl.record.SandboxID, nil
		}
		cl.gone()
		return "", c.noSandbox(cl.record.Session)
	}
	before := cl.record
	cl.found(c.name, sandboxes[0])
	cl.record.State = map[Action]records.State{ActionDestroy: records.StateDestroying, ActionSuspend: records.StateSuspended}[action]
	if err := cl.save(ctx); err != nil {
		return sandboxes[0].ID, err
	}
	for _, sandbox := range sandboxes { // more than one only after a mishap: none may stay
		sandboxID = sandbox.ID
		err := c.end(ctx, cl, sandbox.ID, action)
		code := provider.CodeOf(err)
		switch {
		case code == provider.CodeNotFound:
			cl.gone()
		case code == provider.CodeUnsupported, err != nil && action == ActionSuspend && !mayHaveWorked(code):
			cl.record = before // then nothing is to be finished
		}
		if err != nil {
			return sandboxID, err
		}
	}
	if action == ActionDestroy {
		cl.gone()
	}
	return sandboxID, nil
}

// mayHaveWorked says that a call which failed with this class may have had its effect.
func mayHaveWorked(code provider.Code) bool {
	return code == provider.CodeUnreachable || code == provider.CodeTimeout || code == provider.CodeCanceled
}

// ListingLag is how far a provider's listing may lag behind: what a record has named for longer, and is not listed, is
// gone.
const ListingLag = time.Minute

// Fresh says that a record was changed within that time. One from the future is not: the clock was put back since, and
// how long ago the change was is not known.
func Fresh(record records.Record, within time.Duration) bool {
	age := time.Since(record.UpdatedAt)
	return age < within && age > -within
}

// present lists the session's sandboxes, the one in the record first. That one is among them even when the provider's
// listing lags, or when it has none: whether it is still there, the next call on it will tell.
func (c *Connector) present(ctx context.Context, record records.Record) ([]provider.Sandbox, error) {
	sandboxes, err := c.sandboxes(ctx, record.Session)
	if record.SandboxID == "" || !record.HasSandbox() || record.Provider != c.name {
		return sandboxes, err
	}
	unlisted := provider.CodeOf(err) == provider.CodeUnsupported
	if unlisted {
		err = nil
	}
	i := slices.IndexFunc(sandboxes, func(s provider.Sandbox) bool { return s.ID == record.SandboxID })
	switch {
	case i >= 0:
		sandboxes[0], sandboxes[i] = sandboxes[i], sandboxes[0]
	case unlisted || Fresh(record, ListingLag):
		sandboxes = slices.Insert(sandboxes, 0, recorded(record))
	}
	return sandboxes, err
}

// recorded is the sandbox as its record has it.
func recorded(r records.Record) provider.Sandbox {
	state := provider.StateRunning
	if r.State == records.StateSuspended {
		state = provider.StateSuspended
	}
	return provider.Sandbox{
		ID: r.SandboxID, State: state, Session: r.Session, Attempt: r.Attempt, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt,
	}
}

func (c *Connector) end(ctx context.Context, cl *claim, sandboxID string, action Action) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	if err := cl.check(ctx); err != nil {
		return err
	}
	ref := provider.SandboxRef{Owner: c.owner, SandboxID: sandboxID}
	if action == ActionSuspend {
		if suspender, able := c.provider.(provider.Suspender); able {
			return suspender.Suspend(ctx, ref)
		}
	} else if destroyer, able := c.provider.(provider.Destroyer); able {
		return destroyer.Destroy(ctx, ref)
	}
	return provider.Errorf(provider.CodeUnsupported, "provider %s cannot %s", c.name, action)
}

// Renew moves the end of the sandbox's life to now plus lifetime and returns that end. The record says that the sandbox
// is held until then. Without a sandbox, or with one whose connect or disconnect was interrupted, it is CodeNotFound. It
// waits for other hosts as Disconnect does. Errors are *Error.
func (c *Connector) Renew(
	ctx context.Context, id string, lifetime time.Duration, waiting func(holder string),
) (sandboxID string, end time.Time, err error) {
	err = c.underLease(ctx, id, waiting, func(ctx context.Context, cl *claim) error {
		sandboxID, end, err = c.renew(ctx, cl, lifetime)
		return err
	})
	return sandboxID, end, err
}

func (c *Connector) renew(ctx context.Context, cl *claim, lifetime time.Duration) (string, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	if cl.record.Interrupted() { // renewing would make a session out of what is to be ended
		return cl.record.SandboxID, time.Time{}, &Error{
			Code:    CodeNotFound,
			Message: fmt.Sprintf("session %q was interrupted while its host was %s its sandbox", cl.record.Session, cl.record.State),
			Hint:    "connect it again, or end what is left with berth recover",
		}
	}
	sandboxes, err := c.present(ctx, cl.record)
	if err != nil {
		return cl.record.SandboxID, time.Time{}, err
	}
	if len(sandboxes) == 0 {
		cl.gone()
		return "", time.Time{}, c.noSandbox(cl.record.Session)
	}
	sandbox := sandboxes[0]
	renewer, able := c.provider.(provider.Renewer)
	if !able {
		return sandbox.ID, time.Time{}, provider.Errorf(provider.CodeUnsupported, "provider %s cannot renew", c.name)
	}
	if err := cl.check(ctx); err != nil {
		return sandbox.ID, time.Time{}, err
	}
	end, err := renewer.Renew(ctx, provider.RenewRequest{
		SandboxRef: provider.SandboxRef{Owner: c.owner, SandboxID: sandbox.ID}, Lifetime: lifetime,
	})
	if provider.CodeOf(err) == provider.CodeNotFound {
		cl.gone()
	}
	if err != nil {
		return sandbox.ID, time.Time{}, err
	}
	state := cl.record.State
	sandbox.ExpiresAt = end
	cl.found(c.name, sandbox)
	if state == records.StateSuspended {
		cl.record.State = state
	}
	cl.record.HeldUntil = end
	return sandbox.ID, end, nil
}

// Check is what a look at a session found.
type Check struct {
	Sandbox provider.Sandbox
	// Ping is the server's answer. It is empty when the sandbox does not run: then nobody was asked.
	Ping    provider.PingResult
	Elapsed time.Duration
}

// Check looks at the session's sandbox and, if it runs, puts the health question once. It wakes and starts nothing.
// Errors are *Error: CodeNotFound when the session has no sandbox.
func (c *Connector) Check(ctx context.Context, req Request) (Check, error) {
	req = req.withDefaults()
	if err := c.check(req); err != nil {
		return Check{}, err
	}
	record, err := c.records.Get(ctx, req.Session)
	if err != nil && !errors.Is(err, records.ErrNotFound) {
		return Check{}, c.sessionError(req.Session, "", RecordsError(err))
	}
	record.Session = req.Session
	sandboxes, err := c.present(ctx, record)
	if err != nil {
		return Check{}, c.sessionError(req.Session, "", err)
	}
	if len(sandboxes) == 0 {
		return Check{}, c.missing(record)
	}
	check := Check{Sandbox: sandboxes[0]}
	if check.Sandbox.State != provider.StateRunning {
		return check, nil
	}
	r := &run{Connector: c, req: req, key: c.SessionKey(req.Session), events: func(Event) {}, began: time.Now()}
	request := r.attachRequest()
	request.SandboxID = check.Sandbox.ID
	sandbox, err := c.provider.Attach(ctx, request)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return check, c.missing(record)
	}
	if err != nil {
		return check, c.sessionError(req.Session, check.Sandbox.ID, err)
	}
	check.Sandbox, r.sandboxID = sandbox, sandbox.ID
	if sandbox.Endpoints == nil {
		check.Ping = provider.PingResult{Status: provider.PingNotYet, Reason: "no server has been started"}
		return check, nil
	}
	began := time.Now()
	check.Ping, err = r.ping(ctx, r.withKey(*sandbox.Endpoints).Server)
	check.Elapsed = time.Since(began)
	if err != nil {
		return check, c.sessionError(req.Session, sandbox.ID, err)
	}
	return check, nil
}

func (c *Connector) sandboxes(ctx context.Context, id string) ([]provider.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	all, err := list(ctx, c.provider, provider.ListRequest{Owner: c.owner, Session: id})
	if err != nil {
		return nil, c.sessionError(id, "", err)
	}
	var there []provider.Sandbox
	for _, sandbox := range all {
		if sandbox.State != provider.StateGone {
			there = append(there, sandbox)
		}
	}
	return there, nil
}

// missing tells a sandbox that is gone from one that never was.
func (c *Connector) missing(record records.Record) *Error {
	e := c.noSandbox(record.Session)
	if record.HasSandbox() && record.SandboxID != "" && record.Provider == c.name {
		e.SandboxID = record.SandboxID
		e.Message = fmt.Sprintf("the sandbox %s of session %q is gone from provider %s", record.SandboxID, record.Session, c.name)
		e.Hint = "berth connect makes a new one"
	}
	return e
}

func (c *Connector) noSandbox(id string) *Error {
	return &Error{
		Code: CodeNotFound, Provider: c.name, Session: id, Cleanup: CleanupNone,
		Message: fmt.Sprintf("session %q has no sandbox on provider %s", id, c.name),
		Hint:    "berth sessions lists what there is",
	}
}

// sessionError is any error of the work on a session as this package reports it.
func (c *Connector) sessionError(id, sandboxID string, err error) *Error {
	var e *Error
	if !errors.As(err, &e) {
		e = fromProvider(provider.AsError(err))
	}
	switch {
	case e.Code == "" && provider.CodeOf(err) == provider.CodeTimeout:
		e.Code, e.Message = CodeDeadline, "the provider did not answer in time: "+e.Message
	case e.Code == "":
		e.Code = CodeInternal
	}
	if e.SandboxID == "" {
		e.SandboxID = sandboxID
	}
	e.Provider, e.Session, e.Cleanup = c.name, id, CleanupNone
	return e
}
