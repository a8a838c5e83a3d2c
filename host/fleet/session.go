package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/sessions"
)

// Session is a session on the provider that was chosen for it. Its methods may be called concurrently.
type Session struct {
	id        string
	block     *config.Provider
	connector *connect.Connector
	sessions  *sessions.Sessions
}

// Session returns a session on the provider with the label. Without a label that is the provider that has the session's
// sandbox, else the default one. The session need not exist yet.
func (f *Fleet) Session(ctx context.Context, id, label string) (*Session, error) {
	if err := connect.CheckSession(id); err != nil {
		return nil, err
	}
	if label == "" {
		var err error
		if label, err = f.recordedProvider(ctx, id); err != nil {
			return nil, err
		}
	}
	return f.sessionOn(ctx, id, label)
}

// ExistingSession is Session for a session that is there already. Where several providers are configured, none of them is
// the default and no record names the session's, the error's code is CodeNotFound.
func (f *Fleet) ExistingSession(ctx context.Context, id, label string) (*Session, error) {
	if err := connect.CheckSession(id); err != nil {
		return nil, err
	}
	if label == "" {
		var err error
		if label, err = f.recordedProvider(ctx, id); err != nil {
			return nil, err
		}
		if label == "" && f.conf.Host.DefaultProvider == "" {
			return nil, &connect.Error{
				Code: connect.CodeNotFound, Reason: ReasonNoRecord, Session: id, Cleanup: connect.CleanupNone,
				Message: fmt.Sprintf("session %q has no sandbox: no record names one", id),
			}
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
	return &Session{id, block, connector, sessions.New(connector)}, nil
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
		return "", &connect.Error{
			Code: connect.CodeInvalidConfig, Reason: ReasonNotConfigured,
			Session: session, Provider: record.Provider, SandboxID: record.SandboxID,
			Message: fmt.Sprintf("session %q has a sandbox on provider %s, which is not in the configuration", session, record.Provider),
		}
	}
	return record.Provider, nil
}

// Provider returns the label of the session's provider.
func (s *Session) Provider() string { return s.block.Label }

// Key returns the key that opens the session's server. It is a secret, and not among the configuration's.
func (s *Session) Key() string { return s.connector.SessionKey(s.id) }

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

// Renew prolongs the life of the session's sandbox as sessions.Sessions.Renew does.
func (s *Session) Renew(ctx context.Context, lifetime time.Duration, waiting func(holder string)) (
	sandboxID string, end time.Time, err error,
) {
	return s.sessions.Renew(ctx, s.id, lifetime, waiting)
}

// Disconnect destroys or suspends the session's sandbox as sessions.Sessions.Disconnect does.
func (s *Session) Disconnect(ctx context.Context, action sessions.Action, waiting func(holder string)) (sandboxID string, err error) {
	return s.sessions.Disconnect(ctx, s.id, action, waiting)
}
