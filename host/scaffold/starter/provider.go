package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

const (
	// pollPause is between two looks at a box that is on its way.
	pollPause = 50 * time.Millisecond
	// answerGrace is how much longer than its caller a create waits for the cloud: the answer names what was made.
	answerGrace = time.Second
	// undoTime is how long a failed Create may take to remove what it made.
	undoTime = 10 * time.Second
	// secondLook is how long StartServer watches a server that neither answers nor ends.
	secondLook = 500 * time.Millisecond
)

// tokenHeader opens a box's ports.
const tokenHeader = "X-Box-Token"

// Cloud makes sandboxes of the cloud's boxes. It keeps nothing of a session in memory: any process that is configured
// alike finds the same boxes.
type Cloud struct {
	log   hclog.Logger
	api   *api
	size  string
	probe *http.Client
	asked *throttle
}

// Close is called before the plugin exits.
func (c *Cloud) Close() error {
	c.api.client.CloseIdleConnections()
	c.probe.CloseIdleConnections()
	return nil
}

// Create makes the session's box, or adopts the one that is there. The cloud keeps names unique, which is what makes a
// second box for one session impossible, whoever tries.
func (c *Cloud) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	name := provider.SandboxName(req.Owner, req.Session)
	made, err := c.make(ctx, name, req)
	if provider.CodeOf(err) == provider.CodeConflict {
		found, err := c.api.get(ctx, name)
		if err != nil {
			return provider.Sandbox{}, err
		}
		if !belongsTo(found, req.Owner, req.Session) {
			return provider.Sandbox{}, provider.Errorf(provider.CodeConflict, "the name %s is held by a box that is not ours", name)
		}
		c.log.Debug("the session has a box already", "box", found.ID, "session", req.Session)
		return c.wake(ctx, found, req.Lifetime)
	}
	if err == nil {
		made, err = c.untilRunning(ctx, made)
	}
	if err != nil {
		return provider.Sandbox{}, c.undo(ctx, name, req.Attempt, err)
	}
	sandbox := sandboxOf(made)
	sandbox.Origin = provider.OriginCreated
	return sandbox, nil
}

// make asks the cloud for a box. Once the request is on its way it is not cut off at once when ctx ends.
func (c *Cloud) make(ctx context.Context, name string, req provider.CreateRequest) (box, error) {
	if ctx.Err() != nil {
		return box{}, ctx.Err()
	}
	patient, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(answerGrace):
			cancel()
		case <-patient.Done():
		}
	})
	defer stop()
	made, err := c.api.create(patient, name, c.size, req.AllLabels(), req.Lifetime)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return made, err
}

// undo removes what a Create made that failed with err: the box of this attempt and no other. The cloud may have made
// it although its answer was lost.
func (c *Cloud) undo(ctx context.Context, name, attempt string, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	found, lookup := c.api.get(ctx, name)
	if lookup == nil && found.Labels[provider.LabelAttempt] == attempt {
		lookup = c.api.destroy(ctx, found.ID)
	}
	if lookup == nil || provider.CodeOf(lookup) == provider.CodeNotFound {
		return err
	}
	failure := *provider.AsError(err)
	failure.SandboxID = found.ID
	failure.Message += fmt.Sprintf("; a box %s may have been made, and removing it failed: %v", name, lookup)
	return &failure
}

// Attach finds the session's box and wakes it if it is suspended.
func (c *Cloud) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	found, err := c.api.get(ctx, provider.SandboxName(req.Owner, req.Session))
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound && req.SandboxID != "":
		return provider.Sandbox{}, gone(req.SandboxID)
	case err != nil:
		return provider.Sandbox{}, err
	case !belongsTo(found, req.Owner, req.Session):
		return provider.Sandbox{}, provider.Errorf(provider.CodeNotFound, "session %q has no box", req.Session)
	}
	return c.wake(ctx, found, req.Lifetime)
}

func gone(id string) error {
	return &provider.Error{
		Code: provider.CodeNotFound, Reason: provider.ReasonGone, SandboxID: id, Message: "the box " + id + " is gone",
	}
}

func belongsTo(b box, owner, session string) bool {
	return b.Labels[provider.LabelOwner] == owner && b.Labels[provider.LabelSession] == session
}

// wake sees to it that a box runs.
func (c *Cloud) wake(ctx context.Context, found box, lifetime time.Duration) (provider.Sandbox, error) {
	origin := provider.OriginAttached
	if found.State == "suspended" {
		origin = provider.OriginWoken
		if _, err := c.api.resume(ctx, found.ID, lifetime); err != nil {
			return provider.Sandbox{}, err
		}
	}
	running, err := c.untilRunning(ctx, found)
	if provider.CodeOf(err) == provider.CodeNotFound {
		err = gone(found.ID)
	}
	sandbox := sandboxOf(running)
	sandbox.Origin = origin
	return sandbox, err
}

func (c *Cloud) untilRunning(ctx context.Context, b box) (box, error) {
	for {
		current, err := c.api.get(ctx, b.ID)
		switch {
		case err != nil:
			return current, err
		case current.State == "running":
			return current, nil
		case current.State != "starting":
			return current, provider.Errorf(provider.CodeState, "the box %s is %s instead of starting", b.ID, current.State)
		}
		if err := pause(ctx, pollPause); err != nil {
			return current, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// StartServer starts the server unless one runs, and watches it for a moment.
func (c *Cloud) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	b, err := c.owned(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
	if err != nil {
		return provider.Endpoints{}, err
	}
	if b.State == "suspended" {
		return provider.Endpoints{}, &provider.Error{
			Code: provider.CodeState, SandboxID: b.ID, Message: "the box " + b.ID + " is suspended: attach to it first, which wakes it",
		}
	}
	wanted := map[string]int{serverPort: req.Server.Port}
	for name, port := range req.Server.ExtraPorts {
		wanted["extra-"+name] = port
	}
	grants, err := c.api.ports(ctx, b.ID, wanted)
	if err != nil {
		return provider.Endpoints{}, err
	}
	endpoints := provider.Endpoints{Server: endpointOf(grants[serverPort]), Extra: map[string]provider.Endpoint{}}
	extra := map[string]int{}
	for name := range req.Server.ExtraPorts {
		endpoints.Extra[name] = endpointOf(grants["extra-"+name])
		extra[name] = grants["extra-"+name].Port
	}
	command, env := req.Server.Expand(grants[serverPort].Port, extra)
	if err := c.api.start(ctx, b.ID, command, env, req.Server.Workdir); err != nil {
		return provider.Endpoints{}, err
	}
	return endpoints, c.watch(ctx, b.ID, endpoints.Server, req.Server.Health)
}

// serverPort names the server's own port among those of a box.
const serverPort = "server"

func endpointOf(g grant) provider.Endpoint {
	return provider.Endpoint{URL: g.URL, Headers: map[string]string{tokenHeader: g.Token}}
}

// watch looks at a server that was just started until it answers or ends, at most for a moment.
func (c *Cloud) watch(ctx context.Context, id string, endpoint provider.Endpoint, health provider.HealthCheck) error {
	for until := time.Now().Add(secondLook); ; {
		p, err := c.api.process(ctx, id)
		if err != nil {
			return err
		}
		if p.State == "exited" {
			exited := provider.ServerExited(&p.ExitCode, p.Log)
			exited.SandboxID = id
			return exited
		}
		if time.Now().After(until) || provider.Probe(ctx, c.probe, endpoint, health).Status == provider.PingAlive {
			return nil
		}
		if err := pause(ctx, pollPause); err != nil {
			return err
		}
	}
}

// Ping asks the server, and the cloud only now and then while the server does not answer.
func (c *Cloud) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	result := provider.Probe(ctx, c.probe, req.Endpoint, req.Health)
	if result.Status != provider.PingNotYet {
		c.asked.forget(req.SandboxID)
		return result, nil
	}
	if !c.asked.due(req.SandboxID) {
		return result, nil
	}
	b, err := c.owned(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
	if err != nil {
		if provider.CodeOf(err) == provider.CodeNotFound {
			return provider.PingResult{Status: provider.PingGone, Reason: err.Error()}, nil
		}
		return result, ignoreUnlessCertain(err)
	}
	if b.State == "suspended" {
		return provider.PingResult{Status: provider.PingStopped, Reason: "the box is suspended"}, nil
	}
	p, err := c.api.process(ctx, b.ID)
	if err == nil && p.State == "exited" {
		exited := provider.ServerExited(&p.ExitCode, p.Log)
		return provider.PingResult{
			Status: provider.PingExited, Reason: exited.Message, ExitCode: exited.ExitCode, LogTail: exited.LogTail,
		}, nil
	}
	return result, nil
}

// ignoreUnlessCertain drops an error that says nothing of the server: the next ping may know more.
func ignoreUnlessCertain(err error) error {
	var e *provider.Error
	if errors.As(err, &e) && (e.Code == provider.CodeConflict || e.Code == provider.CodeDenied) {
		return err
	}
	return nil
}

// owned gives a box if it is the owner's.
func (c *Cloud) owned(ctx context.Context, ref provider.SandboxRef) (box, error) {
	b, err := c.api.get(ctx, ref.SandboxID)
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		return b, gone(ref.SandboxID)
	case err != nil:
		return b, err
	case b.Labels[provider.LabelOwner] != ref.Owner:
		return b, &provider.Error{
			Code: provider.CodeConflict, SandboxID: b.ID, Message: "the box " + b.ID + " belongs to another owner",
		}
	}
	return b, nil
}

func sandboxOf(b box) provider.Sandbox {
	state := provider.StateUnknown
	switch b.State {
	case "starting":
		state = provider.StateStarting
	case "running":
		state = provider.StateRunning
	case "suspended":
		state = provider.StateSuspended
	}
	return provider.Sandbox{
		ID: b.ID, State: state, Detail: b.State, Labels: b.Labels, CreatedAt: b.CreatedAt, ExpiresAt: b.ExpiresAt,
		Session: b.Labels[provider.LabelSession], Owner: b.Labels[provider.LabelOwner], Attempt: b.Labels[provider.LabelAttempt],
	}
}
