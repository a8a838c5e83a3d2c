package main

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// What the provider can do beyond the kit's own.
var (
	_ provider.Renewer   = (*Runloop)(nil)
	_ provider.Suspender = (*Runloop)(nil)
	_ io.Closer          = (*Runloop)(nil)
)

// Renew starts the clock of the devbox's life anew. Its length was fixed when it was made and cannot be changed, so the end
// may be another one than asked for. A suspended devbox has no end, and is answered with none.
func (r *Runloop) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	box, err := r.Own(ctx, req.SandboxRef)
	if err != nil {
		return time.Time{}, err
	}
	switch s := r.boxes.Describe(box); s.State {
	case provider.StateRunning:
	case provider.StateSuspended:
		return time.Time{}, nil
	default:
		return time.Time{}, cloud.NotRunning(s)
	}
	if box, err = r.boxes.api.keepAlive(ctx, box, cloud.Always); err != nil {
		return time.Time{}, cloud.About(err, box.ID)
	}
	// Without this note, other processes see an earlier end.
	if err := r.boxes.api.setMetadata(ctx, box.ID, box.Metadata); err != nil {
		r.boxes.log.Debug("the renewal was not noted in the devbox's metadata", "devbox", box.ID, "error", err)
	}
	return box.expires(), nil
}

// Suspend keeps the devbox's disk and ends everything that runs in it. It returns once that is done.
func (r *Runloop) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	box, err := r.Own(ctx, ref)
	r.Forget(ref.SandboxID)
	for asked := 0; err == nil && box.Status != suspended; {
		switch {
		case box.ended():
			return cloud.Gone(box.ID, box.detail())
		case box.Status != running:
			box, err = r.boxes.Await(ctx, box)
		case asked == 2:
			return provider.Errorf(provider.CodeFailed, "the devbox %s does not suspend: it is %s", box.ID, box.detail())
		default:
			asked++
			box, err = r.suspend(ctx, box.ID)
		}
	}
	return cloud.About(err, ref.SandboxID)
}

// suspend asks a running devbox to suspend and waits for it.
func (r *Runloop) suspend(ctx context.Context, id string) (devbox, error) {
	refused := r.boxes.api.suspend(ctx, id)
	switch {
	case refused == nil: // for a moment it may still read running
		return r.boxes.until(ctx, id, suspended)
	case cloud.StatusOf(refused) != http.StatusBadRequest:
		return devbox{}, refused
	}
	box, err := r.boxes.api.get(ctx, id)
	if err == nil && box.Status == running {
		return box, refused
	}
	return box, err
}
