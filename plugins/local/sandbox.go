package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/berth-dev/berth/plugins/local/keeper"
	"github.com/berth-dev/berth/plugins/local/store"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	// answerTime is how long a keeper may take for what it does at once.
	answerTime = 5 * time.Second
	// endTime is how long a keeper may take to end a server, which first has a moment to end by itself.
	endTime = 15 * time.Second
	// undoTime is how long a failed Create may take to remove what it made.
	undoTime = 20 * time.Second
	// tailLines is how many lines of the log Ping returns for a server that ended.
	tailLines = 20
)

// find reads the record of the sandbox of that name, and removes an expired sandbox. Its error is fs.ErrNotExist if
// there is none. The caller has locked the session.
func (l *Local) find(ctx context.Context, name string) (store.Record, error) {
	id, err := l.store.Find(name)
	if err != nil {
		return store.Record{}, err
	}
	record, err := l.store.Load(id)
	if err == nil && record.Expired() {
		if err := l.remove(ctx, id); err != nil {
			return store.Record{}, err
		}
		return store.Record{}, fs.ErrNotExist
	}
	return record, err
}

// load reads the record of a sandbox, and refuses another owner's.
func (l *Local) load(ref provider.SandboxRef) (store.Record, error) {
	record, err := l.store.Load(ref.SandboxID)
	if errors.Is(err, fs.ErrNotExist) {
		return record, gone(ref.SandboxID)
	}
	if err == nil && record.Owner != ref.Owner {
		return record, provider.Errorf(provider.CodeConflict, "the sandbox %s belongs to another owner", ref.SandboxID)
	}
	return record, err
}

// loadOf is load for a call that may name the session too. It refuses the sandbox of another one.
func (l *Local) loadOf(ref provider.SandboxRef, session string) (store.Record, error) {
	record, err := l.load(ref)
	if err == nil && session != "" && record.Session != session {
		return record, provider.Errorf(provider.CodeConflict, "the sandbox %s belongs to another session", ref.SandboxID)
	}
	return record, err
}

// lock loads a sandbox and locks its session until unlock is called.
func (l *Local) lock(ctx context.Context, ref provider.SandboxRef) (record store.Record, unlock func(), err error) {
	if _, err := l.load(ref); err != nil {
		return record, nil, err
	}
	unlock, err = l.store.Lock(ctx, store.NameOf(ref.SandboxID))
	if err != nil {
		return record, nil, err
	}
	if record, err = l.load(ref); err != nil {
		unlock()
		return record, nil, err
	}
	return record, unlock, nil
}

func gone(id string) error {
	return &provider.Error{
		Code: provider.CodeNotFound, Reason: provider.ReasonGone, SandboxID: id,
		Message: fmt.Sprintf("the sandbox %s does not exist any more", id),
	}
}

// wake makes the sandbox run, whatever its state. The origin of its result tells whether the sandbox was suspended. The
// caller has locked the session.
func (l *Local) wake(ctx context.Context, record store.Record, lifetime time.Duration) (provider.Sandbox, error) {
	client, err := l.keeper(ctx, record.ID)
	if err != nil {
		return provider.Sandbox{}, err
	}
	if later := endOf(lifetime); !record.ExpiresAt.IsZero() && later.After(record.ExpiresAt) {
		if err := l.moveEnd(ctx, client, record, later); err != nil {
			return provider.Sandbox{}, err
		}
		record.ExpiresAt = later
	}
	status, err := client.Resume(ctx)
	if err != nil {
		return provider.Sandbox{}, err
	}
	sandbox := sandboxOf(record, provider.StateRunning)
	sandbox.Origin = provider.OriginAttached
	if status.Woken {
		sandbox.Origin = provider.OriginWoken
	}
	if status.Server != nil { // also one that has ended: a ping tells how
		endpoints := endpointsOf(status.Server.Port, status.Server.ExtraPorts)
		sandbox.Endpoints = &endpoints
	}
	return sandbox, nil
}

// moveEnd saves the new end of the sandbox's life, and notifies its keeper.
func (l *Local) moveEnd(ctx context.Context, client *keeper.Client, record store.Record, end time.Time) error {
	record.ExpiresAt = end
	if err := l.store.Save(record); err != nil {
		return err
	}
	_, err := client.Recheck(ctx)
	return err
}

// keeper returns a client for the sandbox's keeper. If there is none, it starts one, and the sandbox is suspended. The
// caller has locked the session.
func (l *Local) keeper(ctx context.Context, id string) (*keeper.Client, error) {
	for started := time.Now(); ; {
		lock, err := l.store.LockKeeper(id)
		if err != nil {
			return nil, err
		}
		if lock != nil {
			if err := keeper.Launch(ctx, l.executable, l.store, id, lock, &l.keepers); err != nil {
				return nil, fmt.Errorf("sandbox %s: %w", id, err)
			}
			return keeper.Dial(l.store, id)
		}
		client, err := keeper.Dial(l.store, id)
		if err == nil {
			err = answers(ctx, client)
		}
		if err == nil {
			return client, nil
		}
		if time.Since(started) > answerTime { // until then it may be starting, or just have died
			return nil, provider.Errorf(provider.CodeUnreachable, "the keeper of the sandbox %s lives but cannot be reached: %w", id, err)
		}
		if err := pause(ctx); err != nil {
			return nil, fmt.Errorf("reaching the keeper of the sandbox %s: %w", id, err)
		}
	}
}

// answers returns an error soon if a keeper is not listening.
func answers(ctx context.Context, client *keeper.Client) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	_, err := client.Status(ctx)
	return err
}

// end asks a keeper to end, and returns an error soon if it is not listening.
func end(ctx context.Context, client *keeper.Client) error {
	if err := answers(ctx, client); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	_, err := client.End(ctx)
	return err
}

// remove ends the sandbox's processes and removes it from disk. The caller has locked the session.
func (l *Local) remove(ctx context.Context, id string) error {
	lock, err := l.endKeeper(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Close()
	return l.store.Erase(ctx, id)
}

// endKeeper ends the sandbox's server and its keeper, if there is one, and returns the lock that prevents a new keeper.
func (l *Local) endKeeper(ctx context.Context, id string) (*os.File, error) {
	for started := time.Now(); ; {
		lock, err := l.store.LockKeeper(id)
		if err != nil {
			return nil, err
		}
		client, err := keeper.Dial(l.store, id)
		if lock != nil {
			if err == nil { // a keeper that ends in good order takes its address along: this one was killed
				keeper.SweepDead(client.Mark())
			}
			return lock, nil
		}
		if err == nil {
			err = end(ctx, client)
		}
		switch {
		case keeper.Refused(err):
			return nil, provider.Errorf(provider.CodeFailed, "ending the sandbox %s: %w", id, err)
		case err != nil && time.Since(started) > answerTime:
			keeper.Kill(client.PID(), l.store.Dir(id))
		}
		if err := pause(ctx); err != nil {
			return nil, fmt.Errorf("waiting for the keeper of the sandbox %s to end: %w", id, err)
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(5 * time.Millisecond):
		return nil
	}
}

// state returns the sandbox's state without asking its keeper. Its error is fs.ErrNotExist if there is no sandbox.
func (l *Local) state(id string) (provider.State, error) {
	alive, err := l.store.KeeperLives(id)
	if err != nil {
		return "", err
	}
	if !alive {
		return provider.StateSuspended, nil
	}
	client, err := keeper.Dial(l.store, id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return provider.StateStarting, nil
	case err != nil:
		return "", err
	case client.State() == keeper.Suspended:
		return provider.StateSuspended, nil
	}
	return provider.StateRunning, nil
}

func endOf(lifetime time.Duration) time.Time {
	if lifetime <= 0 {
		return time.Time{}
	}
	return time.Now().Add(lifetime)
}

func sandboxOf(record store.Record, state provider.State) provider.Sandbox {
	return provider.Sandbox{
		ID: record.ID, State: state, Session: record.Session, Owner: record.Owner, Attempt: record.Attempt,
		Labels: record.Labels, CreatedAt: record.CreatedAt, ExpiresAt: record.ExpiresAt,
	}
}
