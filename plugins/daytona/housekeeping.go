package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// What the provider can do beyond the kit's own.
var (
	_ provider.Renewer   = (*Daytona)(nil)
	_ provider.Suspender = (*Daytona)(nil)
	_ io.Closer          = (*Daytona)(nil)
)

// Renew moves the end of the sandbox's life. The cloud counts from the last activity, so it is told of some.
func (d *Daytona) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	b, err := d.Own(ctx, req.SandboxRef)
	if err != nil {
		return time.Time{}, err
	}
	if err := d.setLifetime(ctx, b, req.Lifetime); err != nil {
		return time.Time{}, cloud.About(err, b.id)
	}
	_, err = patiently(ctx, d, "renewing the sandbox", func(ctx context.Context) (*struct{}, *http.Response, error) {
		response, err := d.api.SandboxAPI.UpdateLastActivity(ctx, b.id).Execute()
		if err == nil && strings.HasPrefix(response.Header.Get("Content-Type"), "text/html") { // it should be empty
			return nil, response, nil
		}
		return &struct{}{}, response, err
	})
	if err != nil {
		return time.Time{}, cloud.About(err, b.id)
	}
	return time.Now().Add(time.Duration(minutes(req.Lifetime)) * time.Minute), nil
}

func (d *Daytona) setLifetime(ctx context.Context, b box, lifetime time.Duration) error {
	stop := float32(minutes(lifetime))
	if b.stop != nil && *b.stop == stop {
		return nil
	}
	_, err := patiently(ctx, d, "setting the sandbox's lifetime", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return d.api.SandboxAPI.SetAutostopInterval(ctx, b.id, stop).Execute()
	})
	return err
}

// Suspend stops the sandbox: its files stay, its processes end.
func (d *Daytona) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	d.Forget(ref.SandboxID)
	var refused time.Time
	tries := 0
	for wait := d.times.Poll; ; wait = min(wait*13/10, d.times.PollMost) {
		b, err := d.Own(ctx, ref)
		if err != nil {
			return err
		}
		switch {
		case b.asleep() && !b.starting:
			return nil
		case stateOf(b.state) == provider.StateFailed:
			return &provider.Error{Code: provider.CodeState, SandboxID: b.id, Message: "the sandbox " + b.id + " cannot be stopped: it is " + b.detail()}
		case b.state == apiclient.SANDBOXSTATE_STARTED:
			_, err := ask(ctx, d, d.times.call, "stopping the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
				return d.api.SandboxAPI.StopSandbox(ctx, b.id).Execute()
			})
			if err != nil {
				// It may be on its way to another state, or in it, which the look after some time shows.
				status := cloud.StatusOf(err)
				stale := status == http.StatusBadRequest || status == http.StatusConflict
				if refused.IsZero() {
					refused = time.Now()
				}
				if !stale {
					tries++
				}
				if stale && time.Since(refused) > d.times.stale || !stale && (!passes(err) || tries >= d.times.Retry.Tries) ||
					provider.AsError(err).RetryAfter > d.times.Retry.Longest {
					return cloud.About(err, b.id)
				}
			}
		}
		if !cloud.Pause(ctx, wait) {
			return cloud.Ended(ctx, "waiting until the sandbox is stopped")
		}
	}
}

// Close lets go of idle connections.
func (d *Daytona) Close() error {
	d.http.CloseIdleConnections()
	return d.Provider.Close()
}
