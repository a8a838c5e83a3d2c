package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/shared/provider"
)

// Session is a session on the provider that was chosen for it. Its methods may be called concurrently.
type Session struct {
	id        string
	fleet     *Fleet
	block     *config.Provider
	connector *connect.Connector
	sessions  *sessions.Sessions
}

// Session returns a session on the provider with the label. Without a label that is the provider that has the session's
// sandbox, else the default one. The session need not exist yet.
func (f *Fleet) Session(ctx context.Context, id, label string) (*Session, error) {
	label, err := f.labelOf(ctx, id, label)
	if err != nil {
		return nil, err
	}
	return f.sessionOn(ctx, id, label)
}

// labelOf returns label or, without one, that of the provider that has the session's sandbox; "" if none is recorded.
func (f *Fleet) labelOf(ctx context.Context, id, label string) (string, error) {
	if err := connect.CheckSession(id); err != nil {
		return "", err
	}
	if label != "" {
		return label, nil
	}
	return f.recordedProvider(ctx, id)
}

// ExistingSession is Session for a session that is there already. Where several providers are configured, none of them is
// the default and no record names the session's, the error's code is CodeNotFound.
func (f *Fleet) ExistingSession(ctx context.Context, id, label string) (*Session, error) {
	label, err := f.labelOf(ctx, id, label)
	if err != nil {
		return nil, err
	}
	if label == "" && f.conf.Host.DefaultProvider == "" {
		return nil, &connect.Error{
			Code: connect.CodeNotFound, Reason: ReasonNoRecord, Session: id, Cleanup: connect.CleanupNone,
			Message: fmt.Sprintf("session %q has no sandbox: no record names one", id),
		}
	}
	return f.sessionOn(ctx, id, label)
}

func (f *Fleet) sessionOn(ctx context.Context, id, label string) (*Session, error) {
	block, err := f.block(label)
	if err != nil {
		return nil, err
	}
	connector, err := f.connector(ctx, block)
	if err != nil {
		return nil, err
	}
	return &Session{id, f, block, connector, sessions.New(connector)}, nil
}

// recordedProvider returns the label of the provider that has the session's sandbox, or "" if there is no sandbox.
func (f *Fleet) recordedProvider(ctx context.Context, session string) (string, error) {
	store, err := f.records(ctx)
	if err != nil {
		return "", err
	}
	record, err := store.Get(ctx, session)
	switch {
	case errors.Is(err, records.ErrNotFound):
		return "", nil
	case err != nil:
		return "", connect.RecordsError(err)
	case !record.HasSandbox():
		return "", nil
	case !f.conf.Has(record.Provider):
		return "", notConfigured(record.OwnAttempt())
	}
	return record.Provider, nil
}

// Provider returns the label of the session's provider.
func (s *Session) Provider() string { return s.block.Label }

// Request returns the request to connect the session as configured. The caller may change it.
func (s *Session) Request() connect.Request { return s.block.Request(s.id) }

// Connect connects the session as connect.Connector.Connect does. request is that of Request, changed or not.
func (s *Session) Connect(ctx context.Context, request connect.Request, events func(connect.Event)) (connect.Result, error) {
	return s.connector.Connect(ctx, request, events)
}

// Ping looks at the session's sandbox as sessions.Sessions.Check does: it wakes and starts nothing.
func (s *Session) Ping(ctx context.Context) (connect.Probe, error) {
	return s.sessions.Check(ctx, s.Request())
}

// Look is Ping, except that a server that cannot be asked is not healthy, with the reason.
func (s *Session) Look(ctx context.Context) connect.Probe {
	probe, err := s.Ping(ctx)
	switch {
	case err != nil:
		probe.Ping = provider.PingResult{Status: provider.PingNotYet, Reason: err.Error()}
	case probe.Ping.Status == "":
		probe.Ping = provider.PingResult{Status: provider.PingStopped, Reason: "the sandbox is " + string(probe.Sandbox.State)}
	}
	return probe
}

// Renew prolongs the life of the session's sandbox as sessions.Sessions.Renew does.
func (s *Session) Renew(ctx context.Context, lifetime time.Duration, waiting func(holder string)) (
	sandboxID string, end time.Time, err error,
) {
	return s.sessions.Renew(ctx, s.id, lifetime, waiting)
}

// KeepAlive renews the session's sandbox by its configured lifetime again and again, as sessions.Sessions.KeepAlive does.
func (s *Session) KeepAlive(ctx context.Context, waiting func(holder string), tried func(sessions.Renewal)) error {
	return s.sessions.KeepAlive(ctx, s.id, s.Request().Lifetime, waiting, tried)
}

// Disconnect destroys or suspends the session's sandbox as sessions.Sessions.Disconnect does. It also destroys what
// earlier attempts of the session owe, on all providers.
func (s *Session) Disconnect(ctx context.Context, action sessions.Action, waiting func(holder string)) (sandboxID string, err error) {
	sandboxID, err = s.sessions.Disconnect(ctx, s.id, action, waiting)
	var failed *connect.Error
	missing := errors.As(err, &failed) && failed.Code == connect.CodeNotFound
	destroyed, unpaid := s.repay(ctx)
	switch {
	case unpaid != nil && (err == nil || missing):
		return cmp.Or(destroyed, sandboxID), unpaid
	case missing && destroyed != "" && action == sessions.ActionDestroy:
		return destroyed, nil
	}
	return sandboxID, err
}

// repay finishes what attempts of the session owe on other providers. It returns the id of the first sandbox that it
// destroyed, and the first error.
func (s *Session) repay(ctx context.Context) (destroyed string, err error) {
	store, err := s.fleet.records(ctx)
	if err != nil {
		return "", err
	}
	owed, err := store.Owed(ctx, s.id)
	if err != nil {
		return "", connect.RecordsError(err)
	}
	for _, attempt := range owed {
		if attempt.Provider == s.block.Label {
			continue
		}
		id, failed := s.fleet.repay(ctx, attempt)
		destroyed, err = cmp.Or(destroyed, id), cmp.Or(err, failed)
	}
	return destroyed, err
}

func (f *Fleet) repay(ctx context.Context, attempt records.Attempt) (destroyed string, err error) {
	if !f.conf.Has(attempt.Provider) {
		return "", notConfigured(attempt)
	}
	s, err := f.sessionOn(ctx, attempt.Session, attempt.Provider)
	if err != nil {
		return "", err
	}
	_, destroyed, err = s.sessions.Repay(ctx, attempt)
	return destroyed, err
}
