package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/shared/provider"
)

// command is a berth command in a situation.
type command struct {
	name     string
	args     []string
	suspends bool // needs a provider that can
	prepare  func(context.Context, *world, *fleet.Fleet, records.Store) error
}

// sweepArgs sweep without any grace: what no record names goes at once.
var sweepArgs = []string{"gc", "--grace", "0s", "-o", "json"}

var connectArgs = []string{"connect", victim, "-o", "json", "--progress", "none"}

// commands are what is disturbed.
var commands = []command{
	{name: "connect-new", args: connectArgs},
	{name: "connect-running", args: connectArgs, prepare: connectVictim},
	{name: "connect-asleep", args: connectArgs, suspends: true, prepare: suspendVictim},
	{name: "disconnect", args: []string{"disconnect", victim}, prepare: connectVictim},
	{name: "suspend", args: []string{"disconnect", victim, "--action", "suspend"}, suspends: true, prepare: connectVictim},
	{name: "recover", args: []string{"recover", "-o", "json"}, prepare: interruptVictim},
	{name: "gc", args: sweepArgs, prepare: prepareSweep},
}

func commandOf(name string) command {
	return commands[slices.IndexFunc(commands, func(c command) bool { return c.name == name })]
}

func connectVictim(ctx context.Context, _ *world, f *fleet.Fleet, _ records.Store) error {
	_, err := connectSession(ctx, f, victim)
	return err
}

func suspendVictim(ctx context.Context, n *world, f *fleet.Fleet, store records.Store) error {
	if err := connectVictim(ctx, n, f, store); err != nil {
		return err
	}
	s, err := f.Session(ctx, victim, "")
	if err == nil {
		_, err = s.Disconnect(ctx, sessions.ActionSuspend, nil)
	}
	return err
}

// interruptVictim leaves what a host leaves that is killed between the end of a Create and its being recorded.
func interruptVictim(ctx context.Context, n *world, _ *fleet.Fleet, store records.Store) error {
	const attempt = "interrupted"
	err := write(ctx, store, victim, func(r *records.Record) {
		r.Provider, r.State, r.Attempt, r.CreatedAt = n.provider, records.StateCreating, attempt, time.Now()
	})
	if err != nil {
		return err
	}
	_, err = n.make(ctx, store, n.owner, victim, attempt)
	return err
}

// write writes a record, and leaves it as a host that ends then.
func write(ctx context.Context, store records.Store, id string, change func(*records.Record)) error {
	lease, record, err := store.Take(ctx, id)
	if err != nil {
		return err
	}
	change(&record)
	return store.Release(ctx, lease, record)
}

// make has the provider make a sandbox, as a host with these records does.
func (n *world) make(ctx context.Context, store records.Store, owner, id, attempt string) (string, error) {
	began, err := store.Began(ctx)
	if err != nil {
		return "", err
	}
	sandbox, err := n.hand.Create(ctx, provider.CreateRequest{
		Session: id, Owner: owner, Attempt: attempt, Server: n.hand.conf.Server.Server, Lifetime: time.Hour,
		Labels: map[string]string{connect.LabelRecords: connect.RecordsLabel(began)},
	})
	return sandbox.ID, err
}

// prepareSweep leaves one of everything: an interrupted session, an orphan, a record whose sandbox is gone, and another
// owner's sandbox.
func prepareSweep(ctx context.Context, n *world, f *fleet.Fleet, store records.Store) error {
	if err := interruptVictim(ctx, n, f, store); err != nil {
		return err
	}
	if _, err := n.make(ctx, store, n.owner, orphan, "forgotten"); err != nil {
		return err
	}
	if _, err := n.make(ctx, store, stranger+n.owner, stranger, "foreign"); err != nil {
		return err
	}
	id, err := n.make(ctx, store, n.owner, outdated, "gone")
	if err != nil {
		return err
	}
	err = write(ctx, store, outdated, func(r *records.Record) {
		r.Provider, r.State, r.SandboxID, r.CreatedAt = n.provider, records.StateRunning, id, time.Now()
	})
	// A record that is younger than listings may lag behind is believed.
	return errors.Join(err, n.age(ctx, outdated), n.hand.Destroy(ctx, provider.SandboxRef{Owner: n.owner, SandboxID: id}))
}

// age makes a record some minutes old.
func (n *world) age(ctx context.Context, id string) error {
	return n.onDatabase(ctx, func(conn *sql.Conn) error {
		_, err := conn.ExecContext(ctx, `UPDATE sessions SET updated_at = updated_at - 300000 WHERE owner = $1 AND session = $2`, n.owner, id)
		return err
	})
}

// prepare connects the bystander and then makes the command's situation.
func (n *world) prepare(ctx context.Context, c command) error {
	return n.asHost(ctx, func(f *fleet.Fleet, store records.Store) (err error) {
		if n.bystander, err = connectSession(ctx, f, bystander); err != nil {
			return fmt.Errorf("connecting the bystander: %w", err)
		}
		if c.prepare == nil {
			return nil
		}
		return c.prepare(ctx, n, f, store)
	})
}
