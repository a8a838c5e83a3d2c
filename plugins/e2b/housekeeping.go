package main

import (
	"context"
	"io"
	"time"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// What the provider can do beyond the four calls: everything.
var _ interface {
	provider.Lister
	provider.Renewer
	provider.Suspender
	provider.Destroyer
	provider.LogReader
	io.Closer
} = (*E2B)(nil)

// Renew moves the end of a running sandbox's life, also nearer. E2B shortens what the account's plan does not allow,
// without a word: the end that is returned is E2B's own.
func (e *E2B) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	if req.Lifetime <= 0 {
		return time.Time{}, provider.Errorf(provider.CodeInvalid, "the lifetime is missing")
	}
	if _, err := e.running(ctx, req.SandboxRef); err != nil {
		return time.Time{}, err
	}
	renewing := e.cluster.api.setTimeout(ctx, req.SandboxID, req.Lifetime)
	// It may have been paused meanwhile, which E2B calls not found.
	s, err := e.running(ctx, req.SandboxRef)
	if err != nil {
		return time.Time{}, err
	}
	return s.EndAt, cloud.About(renewing, req.SandboxID)
}

// running looks a sandbox up that must not be paused.
func (e *E2B) running(ctx context.Context, ref provider.SandboxRef) (sandbox, error) {
	s, err := e.Own(ctx, ref)
	if err == nil && s.State == statePaused {
		err = cloud.NotRunning(e.cluster.Describe(s))
	}
	return s, err
}

// Suspend pauses a sandbox with its memory: the server goes on where it stopped once Attach has woken it.
func (e *E2B) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	s, err := e.Own(ctx, ref)
	if err != nil || s.State == statePaused {
		return err
	}
	e.Forget(ref.SandboxID)
	refused := e.cluster.api.pause(ctx, ref.SandboxID)
	if provider.CodeOf(refused) != provider.CodeState {
		return cloud.About(refused, ref.SandboxID)
	}
	// Somebody else, or the end of its lifetime, may have paused it meanwhile.
	if s, err = e.Own(ctx, ref); err != nil || s.State == statePaused {
		return err
	}
	return cloud.About(refused, ref.SandboxID)
}

// Close lets go of idle connections.
func (e *E2B) Close() error {
	e.cluster.api.Client.CloseIdleConnections()
	e.cluster.envd.CloseIdleConnections()
	return e.Provider.Close()
}
