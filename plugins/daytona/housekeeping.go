package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"

	"github.com/berth-dev/berth/shared/provider"
)

// pageSize is the most that the cloud gives at once.
const pageSize = 200

// List gives the owner's sandboxes. All of them come from the cloud's search index, which is a few seconds behind: one
// just destroyed may still be there. A session's own is looked up by its name, which is never behind.
func (d *Daytona) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	if req.Session != "" && !req.AllOwners {
		return d.listOne(ctx, req)
	}
	labels := map[string]string{}
	if !req.AllOwners {
		labels[provider.LabelOwner] = req.Owner
	}
	filter, err := json.Marshal(labels)
	if err != nil {
		return nil, err
	}
	var sandboxes []provider.Sandbox
	seen := map[string]bool{} // a sandbox that changes its place between two pages
	cursors := map[string]bool{}
	for cursor := ""; ; {
		page, err := patiently(ctx, d, "listing the sandboxes", func(ctx context.Context) (*apiclient.ListSandboxesResponse, *http.Response, error) {
			// By time of creation, which never changes, so that no sandbox moves from page to page.
			call := d.api.SandboxAPI.ListSandboxes(ctx).Labels(string(filter)).Limit(pageSize).
				Sort(apiclient.SANDBOXLISTSORTFIELD_CREATED_AT).Order(apiclient.SANDBOXLISTSORTDIRECTION_ASC)
			if cursor != "" {
				call = call.Cursor(cursor)
			}
			return call.Execute()
		})
		if err != nil {
			return nil, err
		}
		for _, item := range page.Items {
			if !seen[item.Id] && req.Matches(item.Labels[provider.LabelOwner], item.Labels[provider.LabelSession]) {
				sandboxes = append(sandboxes, describeItem(item))
			}
			seen[item.Id] = true
		}
		next := page.NextCursor.Get()
		if next == nil || *next == "" {
			return sandboxes, nil
		}
		if cursors[*next] {
			return nil, provider.Errorf(provider.CodeFailed, "listing the sandboxes failed: the pages go round in circles")
		}
		cursor = *next
		cursors[cursor] = true
	}
}

func (d *Daytona) listOne(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	sandbox, err := d.get(ctx, provider.SandboxName(req.Owner, req.Session))
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	}
	var sandboxes []provider.Sandbox
	if owned(sandbox, req.Owner, req.Session) == nil {
		sandboxes = append(sandboxes, describe(sandbox))
	}
	return sandboxes, nil
}

func describeItem(s apiclient.SandboxListItem) provider.Sandbox {
	return described{
		id: s.Id, state: s.GetState(), labels: s.Labels, created: s.GetCreatedAt(), active: s.GetLastActivityAt(),
		updated: s.GetUpdatedAt(), stop: s.AutoStopInterval, remove: s.AutoDeleteInterval,
		detail: stateText(&apiclient.Sandbox{State: s.State}),
	}.sandbox()
}

// Renew moves the end of the sandbox's life. The cloud counts from the last activity, so it is told of some.
func (d *Daytona) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	sandbox, err := d.hold(ctx, req.SandboxRef)
	if err != nil {
		return time.Time{}, err
	}
	if err := d.setLifetime(ctx, sandbox, req.Lifetime); err != nil {
		return time.Time{}, aboutSandbox(err, sandbox.Id)
	}
	_, err = patiently(ctx, d, "renewing the sandbox", func(ctx context.Context) (*struct{}, *http.Response, error) {
		response, err := d.api.SandboxAPI.UpdateLastActivity(ctx, sandbox.Id).Execute()
		if err == nil && strings.HasPrefix(response.Header.Get("Content-Type"), "text/html") { // it should be empty
			return nil, response, nil
		}
		return &struct{}{}, response, err
	})
	if err != nil {
		return time.Time{}, aboutSandbox(err, sandbox.Id)
	}
	return time.Now().Add(time.Duration(lifetimeMinutes(req.Lifetime)) * time.Minute), nil
}

func (d *Daytona) setLifetime(ctx context.Context, sandbox *apiclient.Sandbox, lifetime time.Duration) error {
	stop := float32(lifetimeMinutes(lifetime))
	if sandbox.AutoStopInterval != nil && *sandbox.AutoStopInterval == stop {
		return nil
	}
	_, err := patiently(ctx, d, "setting the sandbox's lifetime", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return d.api.SandboxAPI.SetAutostopInterval(ctx, sandbox.Id, stop).Execute()
	})
	return err
}

// Suspend stops the sandbox: its files stay, its processes end.
func (d *Daytona) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	asked := 0
	for wait := d.pace.poll; ; wait = min(wait*13/10, d.pace.pollMost) {
		sandbox, err := d.hold(ctx, ref)
		if err != nil {
			return err
		}
		switch sandbox.GetState() {
		case apiclient.SANDBOXSTATE_STOPPED, apiclient.SANDBOXSTATE_PAUSED, apiclient.SANDBOXSTATE_ARCHIVED, apiclient.SANDBOXSTATE_ARCHIVING:
			if sandbox.GetDesiredState() != apiclient.SANDBOXDESIREDSTATE_STARTED {
				return nil
			}
		case apiclient.SANDBOXSTATE_ERROR, apiclient.SANDBOXSTATE_BUILD_FAILED:
			return notRunning(sandbox)
		case apiclient.SANDBOXSTATE_STARTED:
			if err := d.stop(ctx, sandbox.Id); err != nil {
				if f := failureOf(err); asked >= d.pace.tries || !f.unclear() && !f.public.Retryable && f.status != http.StatusBadRequest ||
					f.public.RetryAfter > patienceLimit {
					return aboutSandbox(err, sandbox.Id)
				}
				asked++ // it may be on its way to another state, which the next look shows
			}
		}
		if !pause(ctx, wait) {
			return ctxFailure(ctx, "waiting until the sandbox is stopped")
		}
	}
}

func (d *Daytona) stop(ctx context.Context, id string) error {
	_, err := ask(ctx, d.pace.call, "stopping the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return d.api.SandboxAPI.StopSandbox(ctx, id).Execute()
	})
	return err
}

// Destroy deletes the sandbox.
func (d *Daytona) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	sandbox, err := d.get(ctx, ref.SandboxID)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	if err != nil {
		return aboutSandbox(err, ref.SandboxID)
	}
	if err := owned(sandbox, ref.Owner, ""); err != nil {
		return err
	}
	return d.remove(ctx, sandbox.Id)
}

// deletionTime is how long remove waits for the end of a deletion that the cloud has accepted, and so will finish.
const deletionTime = 20 * time.Second

// remove deletes a sandbox that is ours and waits until it is gone. The cloud refuses while the sandbox changes, which
// includes its creation.
func (d *Daytona) remove(ctx context.Context, id string) error {
	var accepted time.Time
	tries := 0
	for wait := d.pace.poll; ; wait = min(wait*13/10, d.pace.pollMost) {
		if accepted.IsZero() {
			_, err := ask(ctx, d.pace.call, "deleting the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
				return d.api.SandboxAPI.DeleteSandbox(ctx, id).Execute()
			})
			f := failureOf(err)
			switch {
			case err == nil:
				accepted = time.Now()
			case f.public.Code == provider.CodeNotFound:
				return nil
			case f.status == http.StatusConflict: // as long as it takes
			case !f.public.Retryable || f.public.RetryAfter > patienceLimit || tries >= d.pace.tries || ctx.Err() != nil:
				return aboutSandbox(err, id)
			default:
				tries++
				wait = max(wait, f.public.RetryAfter)
			}
		} else {
			sandbox, err := d.get(ctx, id)
			state := sandbox.GetState()
			if provider.CodeOf(err) == provider.CodeNotFound || err == nil && state == apiclient.SANDBOXSTATE_DESTROYED {
				return nil
			}
			unknown := err != nil && ctx.Err() == nil
			if unknown || time.Since(accepted) > deletionTime {
				return nil
			}
		}
		if !pause(ctx, wait) {
			return aboutSandbox(ctxFailure(ctx, "deleting the sandbox"), id)
		}
	}
}

// Logs gives what the server wrote last, in this run and the one before. A sandbox that sleeps cannot be read.
func (d *Daytona) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	sandbox, err := d.hold(ctx, req.SandboxRef)
	if err != nil {
		return nil, err
	}
	if sandbox.GetState() != apiclient.SANDBOXSTATE_STARTED {
		return nil, notRunning(sandbox)
	}
	daemon, err := d.toolbox(sandbox.ToolboxProxyUrl, sandbox.Id)
	if err != nil || req.Lines <= 0 {
		return nil, err
	}
	output, err := repeat(ctx, d.pace, func(ctx context.Context) (string, error) {
		return d.output(ctx, daemon, logScript(req.Lines), nil)
	})
	if err != nil {
		return nil, d.explainSilence(ctx, sandbox, failureOf(err))
	}
	if output == "" {
		return nil, nil
	}
	return strings.Split(strings.TrimRight(output, "\n"), "\n"), nil
}
