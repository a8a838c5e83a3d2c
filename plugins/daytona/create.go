package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"

	"github.com/berth-dev/berth/shared/provider"
)

// creation is one Create under way.
type creation struct {
	*Daytona
	name string
	req  provider.CreateRequest

	made    bool   // the sandbox is this Create's
	id      string // of the sandbox made, where it is known
	unclear bool   // a call went out whose effect is not known
}

// claim makes the sandbox, or finds the one that has its name.
func (c *creation) claim(ctx context.Context) (*apiclient.Sandbox, error) {
	wait := c.pace.retry
	for try := 1; ; try++ {
		sandbox, err := c.post(ctx)
		if err == nil {
			c.made, c.id = true, sandbox.Id
			return sandbox, nil
		}
		f := failureOf(err)
		startError := strings.HasPrefix(f.text, saysStartError) // the sandbox is there, broken, and has the name
		if f.unclear() || startError || f.status == http.StatusConflict {
			c.unclear = c.unclear || f.unclear() || startError
			found, lookErr := c.get(ctx, c.name)
			switch {
			case lookErr == nil && !isGone(found):
				c.made = c.unclear && found.Labels[provider.LabelAttempt] == c.req.Attempt && owned(found, c.req.Owner, c.req.Session) == nil
				c.unclear = false
				if c.made {
					c.id = found.Id
				}
				return found, nil
			case lookErr != nil && provider.CodeOf(lookErr) != provider.CodeNotFound:
				return nil, lookErr
			case startError: // it was removed meanwhile
				return nil, err
			}
			// The name is free, or will be in a moment: a sandbox that is destroyed gives it back. Asking again cannot
			// make a second one, even if the first call arrives late.
		} else if !f.public.Retryable || f.public.RetryAfter > patienceLimit {
			return nil, err
		}
		if try >= c.pace.tries || ctx.Err() != nil {
			return nil, err
		}
		if !pause(ctx, max(wait, f.public.RetryAfter)) {
			return nil, ctxFailure(ctx, "creating the sandbox")
		}
		wait *= 2
	}
}

// post asks the cloud once for the sandbox.
func (c *creation) post(ctx context.Context) (*apiclient.Sandbox, error) {
	body := apiclient.NewCreateSandbox()
	body.SetName(c.name)
	body.SetLabels(c.req.AllLabels())
	body.SetPublic(c.config.Public)
	body.SetAutoStopInterval(lifetimeMinutes(c.req.Lifetime))
	body.SetAutoDeleteInterval(-1)
	if c.config.DeleteAfter > 0 { // 0 would delete it the moment it stops, instead of suspending it
		body.SetAutoDeleteInterval(minutes(c.config.DeleteAfter))
	}
	if c.config.ArchiveAfter > 0 {
		body.SetAutoArchiveInterval(minutes(c.config.ArchiveAfter))
	}
	if c.config.Target != "" {
		body.SetTarget(c.config.Target)
	}
	if c.config.Snapshot != "" {
		body.SetSnapshot(c.config.Snapshot)
	}
	if c.config.Image != "" {
		body.SetBuildInfo(*apiclient.NewCreateBuildInfo("FROM " + c.config.Image + "\n"))
	}
	for _, size := range []struct {
		value int
		set   func(int32)
	}{{c.config.CPU, body.SetCpu}, {c.config.Memory, body.SetMemory}, {c.config.Disk, body.SetDisk}} {
		if size.value > 0 {
			size.set(int32(size.value))
		}
	}
	if c.config.BlockNetwork {
		body.SetNetworkBlockAll(true)
	}
	if len(c.config.AllowNetworks) > 0 {
		body.SetNetworkAllowList(strings.Join(c.config.AllowNetworks, ","))
	}
	return ask(ctx, c.pace.slowCall, "creating the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return c.api.SandboxAPI.CreateSandbox(ctx).CreateSandbox(*body).Execute()
	})
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

// find looks for the sandbox of this Create, for as long as a call that was cut off may still have its effect.
func (c *creation) find(ctx context.Context) error {
	for began := time.Now(); c.id == ""; {
		found, err := c.get(ctx, c.name)
		switch {
		case err == nil && !isGone(found) && found.Labels[provider.LabelAttempt] == c.req.Attempt:
			c.id = found.Id
			return nil
		case err != nil && provider.CodeOf(err) != provider.CodeNotFound:
			return err
		case err == nil && !isGone(found), time.Since(began) >= c.pace.settle: // somebody else has the name, or nobody
			return nil
		}
		if !pause(ctx, c.pace.settle/5) {
			return ctxFailure(ctx, "looking for the sandbox")
		}
	}
	return nil
}

// lifetimeMinutes is never none: a sandbox without an end would be paid for until somebody notices.
func lifetimeMinutes(lifetime time.Duration) int32 {
	if lifetime <= 0 {
		lifetime = time.Hour
	}
	return minutes(lifetime)
}
