package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// List gives the owner's devboxes that have not ended. One that has ended costs nothing and cannot be woken.
func (r *Runloop) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	boxes, err := r.listed(ctx, req)
	if err != nil {
		return nil, err
	}
	sandboxes := make([]provider.Sandbox, 0, len(boxes))
	for _, box := range boxes {
		sandboxes = append(sandboxes, box.sandbox())
	}
	return sandboxes, nil
}

// Renew starts the clock of the devbox's life anew. How long that is was settled when it was made: Runloop cannot change it,
// so the end may be another one than asked for. A suspended devbox has no end, and answers with none.
func (r *Runloop) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	box, err := r.owned(ctx, req.SandboxRef, always)
	if err != nil {
		return time.Time{}, err
	}
	switch {
	case box.ended():
		return time.Time{}, gone(box.ID, box.detail())
	case box.state() == provider.StateSuspended:
		return time.Time{}, nil
	case box.Status != running:
		return time.Time{}, mustRun(box)
	}
	now := time.Now() // before the call: rather too early an end than too late a one
	if err := r.post(ctx, box.ID, "keep_alive", nil, nil, always); err != nil {
		return time.Time{}, err
	}
	box = box.renewed(now)
	// All of the metadata: the API once replaced it. Without this note, other processes see an earlier end.
	err = r.api.call(ctx, request{
		method: http.MethodPost, path: devboxPath(box.ID), body: map[string]any{"metadata": maps.Clone(box.Metadata)}, repeat: always,
	})
	if err != nil {
		r.log.Debug("the renewal was not noted in the devbox's metadata", "devbox", box.ID, "error", err)
	}
	return box.expires(), nil
}

// Suspend keeps the devbox's disk and ends everything that runs in it. It returns once that is done.
func (r *Runloop) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	box, err := r.owned(ctx, ref, always)
	for asked := 0; err == nil && box.Status != suspended; {
		switch {
		case box.ended():
			return gone(box.ID, box.detail())
		case box.Status == suspending:
			box, err = r.wait(ctx, box.ID, []string{suspended, running}, nil)
		case box.Status != running:
			box, err = r.wait(ctx, box.ID, []string{running, suspended}, nil)
		case asked == 2:
			err = provider.Errorf(provider.CodeFailed, "the devbox %s does not suspend: it is %s", box.ID, box.detail())
		default:
			asked++
			box, err = r.suspend(ctx, box.ID)
		}
	}
	return err
}

// suspend asks a running devbox to suspend. A refusal with 400 means that it does not run any more, perhaps because of
// this call's own first try.
func (r *Runloop) suspend(ctx context.Context, id string) (devbox, error) {
	err := r.post(ctx, id, "suspend", nil, nil, always)
	if err != nil && statusOf(err) != http.StatusBadRequest {
		return devbox{}, err
	}
	if err == nil { // for a moment it may still read running
		return r.wait(ctx, id, []string{suspended}, nil)
	}
	box, lookErr := r.get(ctx, id, always)
	if lookErr == nil && box.Status == running {
		return box, err
	}
	return box, lookErr
}

// Destroy shuts the devbox down for good.
func (r *Runloop) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	box, err := r.owned(ctx, ref, always)
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		return nil
	case err != nil:
		return err
	case box.Status == shutdown:
		return nil
	}
	r.forget(box.ID)
	return r.shutDown(ctx, box.ID)
}

func (r *Runloop) forget(id string) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	delete(r.watched, id)
}

// shutDown ends a devbox of ours for good. One that has ended already is fine.
func (r *Runloop) shutDown(ctx context.Context, id string) error {
	var box devbox
	err := r.post(ctx, id, "shutdown", nil, &box, always)
	switch status := statusOf(err); {
	case err == nil && box.ended(), provider.CodeOf(err) == provider.CodeNotFound:
		return nil
	case err == nil:
		box, err = r.wait(ctx, id, nil, nil)
		return err
	case status == http.StatusConflict: // forcing would spoil the snapshot that somebody wanted
		return &provider.Error{
			Code: provider.CodeState, Retryable: true, SandboxID: id, Cause: err,
			Message: fmt.Sprintf("the devbox %s cannot be shut down while a snapshot of its disk is being made: try again when that is done", id),
		}
	case status == http.StatusBadRequest:
		if now, lookErr := r.get(ctx, id, always); lookErr == nil && now.ended() {
			return nil
		}
	}
	return err
}

// Logs reads the server's log in the devbox, which has to run for that.
func (r *Runloop) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	if req.Lines <= 0 {
		return nil, nil
	}
	box, err := r.owned(ctx, req.SandboxRef, always)
	if err != nil {
		return nil, err
	}
	if box.Status != running {
		return nil, provider.Errorf(provider.CodeState, "the devbox %s is %s: its server's log can be read while it runs", box.ID, box.detail())
	}
	text, err := r.execute(ctx, box.ID, fmt.Sprintf(`tail -n %d "$HOME/.berth/server.log" 2>/dev/null || true`, req.Lines), req.Lines, always)
	if err != nil {
		return nil, err
	}
	return lines(text), nil
}

var _ io.Closer = (*Runloop)(nil)

// Close ends idle connections.
func (r *Runloop) Close() error {
	r.probe.CloseIdleConnections()
	r.api.client.HTTPClient.CloseIdleConnections()
	return nil
}
