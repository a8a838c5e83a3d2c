// Package sessions is what is done to a session besides connecting it: list, check, renew, disconnect, and bring its
// record into agreement with what its provider has. Whatever changes a session is done under its lease.
package sessions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/recovery"
	"github.com/berth-dev/berth/shared/provider"
)

const (
	// lookLimit bounds a look at what a provider has of this installation, and surveyLimit one at a whole account, which
	// may have thousands of sandboxes.
	lookLimit   = 30 * time.Second
	surveyLimit = 2 * time.Minute
	// endLimit bounds suspending or destroying one sandbox: clouds take up to two minutes to write memory and disk away.
	endLimit = 3 * time.Minute
)

// Sessions are the sessions of this installation on one provider. Its methods may be called concurrently.
type Sessions struct {
	connector *connect.Connector
	account   recovery.Account
}

// New returns the sessions on the connector's provider.
func New(connector *connect.Connector) *Sessions {
	return &Sessions{connector: connector, account: connector.Account()}
}

// Owner returns the label value of this installation's sandboxes.
func (s *Sessions) Owner() string { return s.account.Owner }

// List returns this installation's sandboxes on the provider, without those that are gone. If there is an error, which is a
// *connect.Error, they are not all.
func (s *Sessions) List(ctx context.Context) ([]provider.Sandbox, error) {
	sandboxes, err := s.list(ctx, "")
	if err != nil {
		return sandboxes, s.failure("", "", err)
	}
	return sandboxes, nil
}

// Survey returns every sandbox in the provider's account that carries an owner's label, without those that are gone. A
// plugin that knows only its own owner's returns those. If there is an error, which is a *connect.Error, they are not all.
func (s *Sessions) Survey(ctx context.Context) ([]provider.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, surveyLimit)
	defer cancel()
	sandboxes, err := s.account.ListAllOwners(ctx)
	if err != nil {
		return sandboxes, s.failure("", "", err)
	}
	return sandboxes, nil
}

// underLease waits for the session's lease, works on the session, and records what became of it. Errors are
// *connect.Error.
func (s *Sessions) underLease(
	ctx context.Context, session string, waiting func(holder string), work func(context.Context, *lease.Lease) error,
) error {
	if waiting == nil {
		waiting = func(string) {}
	}
	l, err := lease.Take(ctx, s.account.Records, session, waiting)
	if err != nil {
		return s.failure(session, "", err)
	}
	s.connector.TellKeyOf(l.Record)
	if err = s.account.CheckProvider(l.Record); err == nil {
		err = work(l.Fenced(ctx), l)
	}
	return s.release(ctx, l, err)
}

// ifFree works on a session under its lease within endLimit, and does nothing when another host has the lease. Errors
// are *connect.Error.
func (s *Sessions) ifFree(ctx context.Context, session string, work func(context.Context, *lease.Lease) error) error {
	l, err := lease.Try(ctx, s.account.Records, session)
	var busy *records.BusyError
	if errors.As(err, &busy) {
		return nil
	}
	if err != nil {
		return s.failure(session, "", err)
	}
	s.connector.TellKeyOf(l.Record)
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	return s.release(ctx, l, work(l.Fenced(ctx), l))
}

// release records what became of the session, and returns the first error of the work and of the release.
func (s *Sessions) release(ctx context.Context, l *lease.Lease, err error) error {
	if released := l.Release(ctx); err == nil {
		err = released
	}
	if err != nil {
		return s.failure(l.Record.Session, l.Record.SandboxID, err)
	}
	return nil
}

func (s *Sessions) list(ctx context.Context, session string) ([]provider.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	return s.account.List(ctx, session)
}

// present lists the session's sandboxes, the recorded one first. That one is included even when the provider's listing
// lags, or when it has none: the next call on the sandbox tells whether it is still there.
func (s *Sessions) present(ctx context.Context, record records.Record) ([]provider.Sandbox, error) {
	sandboxes, err := s.list(ctx, record.Session)
	if record.SandboxID == "" || !record.HasSandbox() || record.Provider != s.account.Name {
		return sandboxes, err
	}
	unlisted := provider.CodeOf(err) == provider.CodeUnsupported
	if unlisted {
		err = nil
	}
	i := slices.IndexFunc(sandboxes, func(sandbox provider.Sandbox) bool { return sandbox.ID == record.SandboxID })
	switch {
	case i >= 0:
		sandboxes[0], sandboxes[i] = sandboxes[i], sandboxes[0]
	case unlisted || recovery.Fresh(record, recovery.ListingLag):
		sandboxes = slices.Insert(sandboxes, 0, recorded(record))
	}
	return sandboxes, err
}

// recorded returns the sandbox as its record describes it.
func recorded(r records.Record) provider.Sandbox {
	state := provider.StateRunning
	if r.State == records.StateSuspended {
		state = provider.StateSuspended
	}
	return provider.Sandbox{
		ID: r.SandboxID, State: state, Session: r.Session, Attempt: r.Attempt, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt,
	}
}

func without(sandboxes []provider.Sandbox, ids ...string) []provider.Sandbox {
	return slices.DeleteFunc(sandboxes, func(s provider.Sandbox) bool { return slices.Contains(ids, s.ID) })
}

func (s *Sessions) noSandbox(session string) *connect.Error {
	return &connect.Error{
		Code: connect.CodeNotFound, Provider: s.account.Name, Session: session, Cleanup: connect.CleanupNone,
		Message: fmt.Sprintf("session %q has no sandbox on provider %s", session, s.account.Name),
	}
}

// failure returns err, which is of whatever kind, as an *Error. sandboxID is for one that names no sandbox.
func (s *Sessions) failure(session, sandboxID string, err error) *connect.Error {
	e := connect.NewError(s.account.Name, session, err)
	if e.SandboxID == "" {
		e.SandboxID = sandboxID
	}
	return e
}
