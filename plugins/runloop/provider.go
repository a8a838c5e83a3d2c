package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// Runloop makes sandboxes of devboxes. Everything it must know again later is in their metadata, so that any process
// with the same account finds the same sandboxes.
//
// Runloop does not keep names unique. Two processes that create for one session at the same time therefore both make
// a devbox; afterwards each looks, and the one whose devbox is younger removes it and takes the other.
type Runloop struct {
	config    Config
	user      *launchUser // nil for the blueprint's own
	tunnelURL string      // template, see fillTunnel
	log       hclog.Logger
	api       *api
	probe     *http.Client
	timing    timing

	mutex   sync.Mutex
	watched map[string]*watch // by devbox id
}

// timing is what tests shorten.
type timing struct {
	call   time.Duration // the longest that one try of an API call may take
	hold   time.Duration // how long the API holds a question for a status. Less than call
	settle time.Duration // between two looks for what a lost answer may have made
	look   time.Duration // the least time between two calls of the API on behalf of pings of one devbox
	second time.Duration // how long a started server is watched for dying at once
	undo   time.Duration // how long a failed Create may take to clean up
}

var realTiming = timing{
	call: 15 * time.Second, hold: 10 * time.Second, settle: 500 * time.Millisecond, look: 5 * time.Second,
	second: time.Second, undo: 10 * time.Second,
}

// Create makes the session's devbox, or adopts the one that is there.
func (r *Runloop) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	boxes, err := r.listed(ctx, provider.ListRequest{Owner: req.Owner, Session: req.Session})
	if err != nil {
		return provider.Sandbox{}, err
	}
	if len(boxes) > 0 {
		return r.wake(ctx, boxes[0], req.Server)
	}
	box, err := r.make(ctx, req)
	if err == nil {
		box, err = r.wait(ctx, box.ID, []string{running, suspended}, nil)
	}
	if err == nil && box.Status != running {
		err = provider.Errorf(provider.CodeFailed, "the new devbox %s did not come up: it is %s", box.ID, box.detail())
	}
	if err == nil {
		boxes, err = r.listed(ctx, provider.ListRequest{Owner: req.Owner, Session: req.Session})
	}
	if err != nil {
		return provider.Sandbox{}, r.undo(ctx, req, box.ID, err)
	}
	return r.settle(ctx, req, box, boxes)
}

// settle decides which of the session's devboxes stays, made being a new one of this call and boxes all there are: the
// oldest. Of this attempt's own, a lost answer may have made more than one.
func (r *Runloop) settle(ctx context.Context, req provider.CreateRequest, made devbox, boxes []devbox) (provider.Sandbox, error) {
	winner := made
	if len(boxes) > 0 && compareAge(boxes[0], made) < 0 {
		winner = boxes[0]
		r.log.Debug("another devbox of the session is older", "stays", winner.ID, "goes", made.ID)
	}
	var sandbox provider.Sandbox
	err := r.removeMade(ctx, req, append(boxes, made), winner.ID)
	if err == nil && winner.ID != made.ID {
		sandbox, err = r.wake(ctx, winner, req.Server)
	} else {
		sandbox = winner.sandbox()
	}
	if err != nil {
		return provider.Sandbox{}, r.undo(ctx, req, made.ID, err)
	}
	if sandbox.Attempt == req.Attempt {
		sandbox.Origin = provider.OriginCreated
	}
	return sandbox, nil
}

// creation is the body of a create.
type creation struct {
	Name             string            `json:"name"`
	Metadata         map[string]string `json:"metadata"`
	Blueprint        string            `json:"blueprint_name,omitempty"`
	BlueprintID      string            `json:"blueprint_id,omitempty"`
	SnapshotID       string            `json:"snapshot_id,omitempty"`
	Secrets          map[string]string `json:"secrets,omitempty"`
	LaunchParameters launchParameters  `json:"launch_parameters"`
	Tunnel           tunnelRequest     `json:"tunnel"`
}

type tunnelRequest struct {
	AuthMode  string `json:"auth_mode"`
	KeepAlive bool   `json:"http_keep_alive"`
	// WakeOnHTTP stays false: a request would wake the disk, but no server.
	WakeOnHTTP bool `json:"wake_on_http"`
}

func (r *Runloop) creation(req provider.CreateRequest) creation {
	c := creation{
		Name: provider.SandboxName(req.Owner, req.Session), Metadata: req.AllLabels(),
		Blueprint: r.config.Blueprint, BlueprintID: r.config.BlueprintID, SnapshotID: r.config.SnapshotID,
		Secrets: r.config.Secrets, Tunnel: r.tunnelRequest(),
		LaunchParameters: launchParameters{
			LaunchCommands: r.config.LaunchCommands, Size: r.config.Size, Architecture: r.config.Architecture,
			User: r.user, NetworkPolicy: r.config.NetworkPolicy,
		},
	}
	if r.config.IdleTimeout > 0 { // the API ignores or refuses the lifetime beside it
		c.LaunchParameters.Lifecycle = &lifecycle{AfterIdle: &afterIdle{
			Seconds: wholeSeconds(r.config.IdleTimeout), OnIdle: r.config.OnIdle,
		}}
		return c
	}
	// Never left out: the API would end the devbox after an hour, whatever was asked for.
	life := req.Lifetime
	if life <= 0 {
		life = longestLife
	}
	c.LaunchParameters.KeepAlive = wholeSeconds(min(life, longestLife))
	return c
}

func (r *Runloop) tunnelRequest() tunnelRequest {
	return tunnelRequest{AuthMode: r.config.Tunnel, KeepAlive: r.config.KeepAlive}
}

func wholeSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// make creates one devbox. When it is not known what became of a create, it looks before it tries once more, with
// the same x-request-id.
func (r *Runloop) make(ctx context.Context, req provider.CreateRequest) (devbox, error) {
	create := request{
		method: http.MethodPost, path: "/v1/devboxes", body: r.creation(req), repeat: whenRefused, id: newRequestID(),
	}
	var lost error
	for range 2 {
		var box devbox
		create.answer = &box
		err := r.api.call(ctx, create)
		if err == nil && (!devboxID.MatchString(box.ID) || box.Status == "") {
			err = invalidAnswer("a new devbox")
		}
		switch {
		case err == nil:
			return box, nil
		case !ambiguous(err) && lost != nil: // the first try may still have made one: no class that rules that out
			return box, lost
		case !ambiguous(err) || ctx.Err() != nil:
			return box, err
		}
		lost = err
		r.log.Debug("a create had no clear answer, looking for what it made", "attempt", req.Attempt)
		for range 3 {
			if made, err := r.made(ctx, req); err == nil && len(made) > 0 {
				return made[0], nil
			}
			if !sleep(ctx, r.timing.settle) {
				return box, lost
			}
		}
	}
	return devbox{}, lost
}

// ambiguous says that a failed call may have had its effect.
func ambiguous(err error) bool {
	switch provider.CodeOf(err) {
	case provider.CodeUnreachable, provider.CodeTimeout, provider.CodeCanceled:
		return true
	}
	return false
}

// made lists what this very attempt has made, oldest first.
func (r *Runloop) made(ctx context.Context, req provider.CreateRequest) ([]devbox, error) {
	boxes, err := r.listed(ctx, provider.ListRequest{Owner: req.Owner, Session: req.Session})
	return slices.DeleteFunc(boxes, func(b devbox) bool { return b.Metadata[provider.LabelAttempt] != req.Attempt }), err
}

// removeMade shuts down those of the devboxes that this attempt has made, except for one.
func (r *Runloop) removeMade(ctx context.Context, req provider.CreateRequest, boxes []devbox, except string) error {
	done := map[string]bool{except: true}
	for _, box := range boxes {
		if box.Metadata[provider.LabelAttempt] != req.Attempt || done[box.ID] {
			continue
		}
		if err := r.shutDown(ctx, box.ID); err != nil {
			return err
		}
		done[box.ID] = true
	}
	return nil
}

// undo removes what a Create made that failed with err, in a time of its own, and names what it could not remove.
func (r *Runloop) undo(ctx context.Context, req provider.CreateRequest, id string, err error) error {
	e := *provider.AsError(err)
	if id == "" && !ambiguous(err) {
		return &e
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.timing.undo)
	defer cancel()
	var left error
	if id != "" {
		left = r.shutDown(ctx, id)
	}
	boxes, err := r.made(ctx, req)
	if err == nil {
		err = r.removeMade(ctx, req, boxes, id)
	}
	left = errors.Join(left, err)
	if left != nil {
		e.SandboxID = id
		e.Message += fmt.Sprintf("; and removing the devbox again failed: %v", left)
		if !ambiguous(&e) { // a class that rules out a devbox would be wrong now
			e.Code, e.Retryable = provider.CodeFailed, false
		}
	}
	return &e
}

// Attach finds the session's devbox and lets it run.
func (r *Runloop) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	box, err := r.find(ctx, req)
	if err != nil {
		return provider.Sandbox{}, err
	}
	return r.wake(ctx, box, req.Server)
}

func (r *Runloop) find(ctx context.Context, req provider.AttachRequest) (devbox, error) {
	if req.SandboxID != "" {
		box, err := r.owned(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID}, always)
		switch {
		case err == nil && !box.ended() && box.Metadata[provider.LabelSession] != req.Session:
			return box, provider.Errorf(provider.CodeConflict, "the devbox %s belongs to another session", box.ID)
		case err == nil && !box.ended(), err != nil && provider.CodeOf(err) != provider.CodeNotFound:
			return box, err
		}
	}
	for range 2 { // the first look may miss a devbox whose status changes under it
		boxes, err := r.listed(ctx, provider.ListRequest{Owner: req.Owner, Session: req.Session})
		if err != nil {
			return devbox{}, err
		}
		if len(boxes) > 0 {
			return boxes[0], nil
		}
	}
	if req.SandboxID != "" {
		return devbox{}, gone(req.SandboxID, "shutdown")
	}
	return devbox{}, provider.Errorf(provider.CodeNotFound, "session %q has no devbox", req.Session)
}

// wake lets a devbox run, whatever it is doing now, and tells whether it had to be woken.
func (r *Runloop) wake(ctx context.Context, box devbox, server provider.Server) (provider.Sandbox, error) {
	origin := provider.OriginAttached
	resumes := 0
	var err error
	for box.Status != running {
		switch {
		case box.ended():
			return provider.Sandbox{}, gone(box.ID, box.detail())
		case box.Status == suspending:
			box, err = r.wait(ctx, box.ID, []string{suspended, running}, nil)
		case box.Status == suspended && resumes == 2:
			err = provider.Errorf(provider.CodeFailed, "the devbox %s does not wake: it is %s", box.ID, box.detail())
		case box.Status == suspended:
			resumes++
			origin = provider.OriginWoken
			box, err = r.resume(ctx, box.ID)
		default:
			if box.Status == resuming {
				origin = provider.OriginWoken
			}
			box, err = r.wait(ctx, box.ID, []string{running, suspended}, nil)
		}
		if err != nil {
			return provider.Sandbox{}, err
		}
	}
	if origin == provider.OriginAttached {
		box = r.used(ctx, box)
	} else {
		r.forget(box.ID) // its server is gone with its other processes
	}
	sandbox := box.sandbox()
	sandbox.Origin = origin
	if endpoints, err := r.endpoints(box, server); err == nil {
		sandbox.Endpoints = &endpoints
	}
	return sandbox, nil
}

// resume asks a suspended devbox to wake and waits until it has left that status for good. A refusal with 400 means that
// it is not suspended any more, perhaps because of this call's own first try.
func (r *Runloop) resume(ctx context.Context, id string) (devbox, error) {
	err := r.post(ctx, id, "resume", nil, nil, always)
	if err != nil && statusOf(err) != http.StatusBadRequest {
		return devbox{}, err
	}
	// For a moment it may still read suspended. Later that means that it fell back.
	asked, moved := time.Now(), false
	return r.wait(ctx, id, []string{running}, func(now devbox) bool {
		moved = moved || now.Status != suspended
		return now.Status == suspended && (moved || err != nil || time.Since(asked) > 3*r.timing.hold)
	})
}

// used starts the clock of a running devbox's life anew, because being found is being used. The devbox is as good
// without that, so failing is no error.
func (r *Runloop) used(ctx context.Context, box devbox) devbox {
	ctx, cancel := context.WithTimeout(ctx, r.timing.call/5)
	defer cancel()
	now := time.Now()
	if err := r.post(ctx, box.ID, "keep_alive", nil, nil, never); err != nil {
		r.log.Debug("the devbox's life was not renewed", "devbox", box.ID, "error", err)
		return box
	}
	return box.renewed(now)
}
