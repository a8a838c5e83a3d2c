package connect

import (
	"context"
	"fmt"
	"time"

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
// cannot do the action answers CodeUnsupported and nothing has changed. Errors are *Error.
func (c *Connector) Disconnect(ctx context.Context, session string, action Action) (sandboxID string, err error) {
	sandboxes, err := c.sandboxes(ctx, session)
	if err != nil {
		return "", err
	}
	if len(sandboxes) == 0 {
		return "", c.noSandbox(session)
	}
	for _, sandbox := range sandboxes { // more than one only after a mishap: none may stay
		sandboxID = sandbox.ID
		if err := c.end(ctx, sandbox.ID, action); err != nil {
			return sandboxID, c.sessionError(session, sandbox.ID, err)
		}
	}
	return sandboxID, nil
}

func (c *Connector) end(ctx context.Context, sandboxID string, action Action) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
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
	sandboxes, err := c.sandboxes(ctx, req.Session)
	if err != nil {
		return Check{}, err
	}
	if len(sandboxes) == 0 {
		return Check{}, c.noSandbox(req.Session)
	}
	check := Check{Sandbox: sandboxes[0]}
	if check.Sandbox.State != provider.StateRunning {
		return check, nil
	}
	r := &run{Connector: c, req: req, key: c.SessionKey(req.Session), events: func(Event) {}, began: time.Now()}
	sandbox, err := r.attach(ctx)
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

func (c *Connector) sandboxes(ctx context.Context, session string) ([]provider.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	all, err := list(ctx, c.provider, provider.ListRequest{Owner: c.owner, Session: session})
	if err != nil {
		return nil, c.sessionError(session, "", err)
	}
	var there []provider.Sandbox
	for _, sandbox := range all {
		if sandbox.State != provider.StateGone {
			there = append(there, sandbox)
		}
	}
	return there, nil
}

func (c *Connector) noSandbox(session string) *Error {
	return &Error{
		Code: CodeNotFound, Provider: c.name, Session: session, Cleanup: CleanupNone,
		Message: fmt.Sprintf("session %q has no sandbox on provider %s", session, c.name),
		Hint:    "berth sessions lists what there is",
	}
}

func (c *Connector) sessionError(session, sandboxID string, err error) *Error {
	e := fromProvider(provider.AsError(err))
	switch {
	case e.Code == "" && provider.CodeOf(err) == provider.CodeTimeout:
		e.Code, e.Message = CodeDeadline, "the provider did not answer in time: "+e.Message
	case e.Code == "":
		e.Code = CodeInternal
	}
	if e.SandboxID == "" {
		e.SandboxID = sandboxID
	}
	e.Provider, e.Session, e.Cleanup = c.name, session, CleanupNone
	return e
}
