package main

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/berth-dev/berth/plugins/local/keeper"
	"github.com/berth-dev/berth/shared/provider"
)

// List returns the owner's sandboxes. It removes expired ones, whose keepers have died.
func (l *Local) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	ids, err := l.store.IDs()
	if err != nil {
		return nil, err
	}
	var sandboxes []provider.Sandbox
	for _, id := range ids {
		record, err := l.store.Load(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			l.log.Warn("skipping a sandbox that cannot be read", "directory", l.store.Dir(id), "error", err)
			continue
		}
		if !req.Matches(record.Owner, record.Session) {
			continue
		}
		if record.Expired() && record.Owner == req.Owner {
			if err := l.Destroy(ctx, provider.SandboxRef{Owner: record.Owner, SandboxID: id}); err != nil {
				return nil, err
			}
			continue
		}
		state, err := l.state(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		sandboxes = append(sandboxes, sandboxOf(record, state))
	}
	return sandboxes, ctx.Err()
}

// Renew moves the end of the sandbox's life. No lifetime is no end.
func (l *Local) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	record, unlock, err := l.lock(ctx, req.SandboxRef)
	if err != nil {
		return time.Time{}, err
	}
	defer unlock()
	client, err := l.keeper(ctx, record.ID)
	if err != nil {
		return time.Time{}, err
	}
	end := endOf(req.Lifetime)
	return end, l.moveEnd(ctx, client, record, end)
}

// Suspend ends the server and keeps the directory. The keeper stays, to end the sandbox's life in time.
func (l *Local) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	record, unlock, err := l.lock(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	client, err := l.keeper(ctx, record.ID)
	if err != nil {
		return err
	}
	_, err = client.Suspend(ctx)
	return err
}

// Destroy ends everything that runs in the sandbox, and removes it.
func (l *Local) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	record, unlock, err := l.lock(ctx, ref)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return l.remove(ctx, record.ID)
}

// Logs returns the last lines that the servers of the sandbox wrote.
func (l *Local) Logs(_ context.Context, req provider.LogsRequest) ([]string, error) {
	if _, err := l.load(req.SandboxRef); err != nil {
		return nil, err
	}
	return keeper.History(l.store.ServerLog(req.SandboxID), req.Lines)
}
