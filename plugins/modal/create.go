package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	modal "github.com/modal-labs/modal-client/go"

	"github.com/berth-dev/berth/shared/provider"
)

// creation is one Create under way.
type creation struct {
	*Modal
	name string
	req  provider.CreateRequest

	made    bool   // the sandbox is this Create's
	id      string // of the sandbox made, where it is known
	unclear bool   // a call went out whose effect is not known
}

// claim makes the sandbox, or finds the one that has its name.
func (c *creation) claim(ctx context.Context) (*sandbox, error) {
	app, err := c.app(ctx, true)
	if err != nil {
		return nil, here(err)
	}
	image, err := c.image(ctx, app)
	if err != nil {
		return nil, here(err)
	}
	began, wait := time.Now(), c.pace.retry
	for try := 1; ; try++ {
		params := c.params()
		var known details
		handle, err := ask(ctx, c.pace.create, "creating the sandbox", func(ctx context.Context) (*modal.Sandbox, error) {
			return c.client.Sandboxes.Create(context.WithValue(ctx, detailsKey{}, &known), app, image, params)
		})
		if err == nil {
			c.keep(handle)
			c.made, c.id = true, handle.SandboxID
			return &sandbox{handle.SandboxID, params.Tags}, nil
		}
		e := provider.AsError(here(err))
		taken := e.Code == provider.CodeConflict
		switch {
		case taken || unclear(e):
			c.unclear = c.unclear || !taken || known.sent > 1
			found, lookErr := c.lookUp(ctx, c.name)
			switch {
			case lookErr == nil:
				c.made = c.unclear && c.isMine(found)
				c.unclear = false
				if c.made {
					c.id = found.id
				}
				return found, nil
			case provider.CodeOf(lookErr) != provider.CodeNotFound:
				return nil, lookErr
			case taken && time.Since(began) > c.pace.taken:
				e.Message = fmt.Sprintf("the name %s is taken by a sandbox that does not run", c.name)
				e.Code, e.Retryable = provider.CodeState, true
				return nil, e
			case !taken && try >= c.pace.tries:
				return nil, e
			}
			// The name is free, or is that of a sandbox that is about to run or to go. Asking again cannot make a second
			// one, even if the first call arrives late.
		case !e.Retryable || e.RetryAfter > patienceLimit || try >= c.pace.tries:
			return nil, e
		}
		if !pause(ctx, max(wait, e.RetryAfter)) {
			return nil, failure(ctx, "creating the sandbox", e.Cause)
		}
		wait = min(2*wait, time.Second)
	}
}

// here keeps "not found" for sandboxes: what is missing while one is created is an app, an image or an environment.
func here(err error) error {
	if provider.CodeOf(err) != provider.CodeNotFound {
		return err
	}
	e := *provider.AsError(err)
	e.Code = provider.CodeInvalid
	return &e
}

// isMine says whether a sandbox was made by this very Create.
func (c *creation) isMine(found *sandbox) bool {
	return c.req.Attempt != "" && found.tags[provider.LabelAttempt] == c.req.Attempt && found.owned(c.req.Owner, c.req.Session) == nil
}

// app finds the app that the sandboxes are in.
func (m *Modal) app(ctx context.Context, create bool) (*modal.App, error) {
	return patiently(ctx, m, m.pace.call, "looking for the app", func(ctx context.Context) (*modal.App, error) {
		return m.client.Apps.FromName(ctx, m.config.App, &modal.AppFromNameParams{CreateIfMissing: create})
	})
}

// image has the image built, if it was not before, however long that takes. The SDK's object for an image must not be
// shared between calls, and does not survive a stream that breaks off.
func (m *Modal) image(ctx context.Context, app *modal.App) (*modal.Image, error) {
	return patiently(ctx, m, m.pace.create, "preparing the image", func(ctx context.Context) (*modal.Image, error) {
		image := m.client.Images.FromRegistry(m.config.Image, nil)
		return image.DockerfileCommands(m.config.Setup, nil).Build(ctx, app, nil)
	})
}

// sleep is the sandbox's own command. It outlasts the longest lifetime.
var sleep = []string{"sleep", "100000"}

func (c *creation) params() *modal.SandboxCreateParams {
	now, timeout := time.Now(), life(c.req.Lifetime)
	tags := c.req.AllLabels()
	tags[tagCreated] = strconv.FormatInt(now.Unix(), 10)
	tags[tagExpires] = strconv.FormatInt(now.Add(timeout).Unix(), 10)
	params := &modal.SandboxCreateParams{
		Name: c.name, Tags: tags, Command: sleep, Timeout: timeout, IdleTimeout: c.config.IdleAfter,
		CPU: c.config.CPU, MemoryMiB: c.config.Memory, Regions: c.config.Regions, BlockNetwork: c.config.BlockNetwork,
	}
	if len(c.config.AllowNetworks) > 0 {
		params.OutboundCIDRAllowlist = &modal.Allowlist{Entries: c.config.AllowNetworks}
	}
	if c.config.Public { // they cannot be added later
		ports := append(extras(c.req.Server), c.portOf(c.req.Server))
		slices.Sort(ports)
		params.EncryptedPorts = slices.Compact(ports)
	}
	return params
}

// undo removes what this Create made or may have made, and gives cause as the error to report.
func (c *creation) undo(ctx context.Context, cause error) error {
	failure := *provider.AsError(cause)
	failure.SandboxID = ""
	if !c.made && !c.unclear {
		return &failure
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.pace.undo)
	defer cancel()
	err := c.find(ctx)
	if err == nil && c.id != "" {
		err = c.remove(ctx, c.id)
	}
	if err == nil {
		return &failure
	}
	failure.SandboxID = c.id
	if c.id == "" { // the class must not say that nothing can have been made
		failure.Code, failure.Retryable = provider.CodeUnreachable, true
		failure.Message += fmt.Sprintf("; a sandbox named %s may be left: %v", c.name, err)
	} else {
		failure.Message += fmt.Sprintf("; and removing the sandbox %s again failed: %v", c.id, err)
	}
	return &failure
}

// find looks for the sandbox of this Create, for as long as a call that was cut off may still have its effect. Its name is
// found only once it runs, but it is listed before.
func (c *creation) find(ctx context.Context) error {
	for began := time.Now(); c.id == ""; {
		found, err := c.lookUp(ctx, c.name)
		switch {
		case err == nil && c.isMine(found):
			c.id = found.id
			return nil
		case err == nil: // somebody else has the name
			return nil
		case provider.CodeOf(err) != provider.CodeNotFound:
			return err
		}
		sandboxes, err := c.List(ctx, provider.ListRequest{Owner: c.req.Owner, Session: c.req.Session})
		if err != nil {
			return err
		}
		for _, listed := range sandboxes {
			if listed.Attempt == c.req.Attempt {
				c.id = listed.ID
				return nil
			}
		}
		if time.Since(began) >= c.pace.settle {
			return nil
		}
		if !pause(ctx, c.pace.settle/5) {
			return failure(ctx, "looking for the sandbox", ctx.Err())
		}
	}
	return nil
}
