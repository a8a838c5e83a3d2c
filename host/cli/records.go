package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/sessions"
)

// records opens what berth remembers of its sessions, once. close closes it.
func (a *app) records(ctx context.Context) (records.Store, error) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.store != nil {
		return a.store, nil
	}
	secret, err := a.secret()
	if err != nil {
		return nil, err
	}
	store, err := records.Open(ctx, records.Options{
		URL: a.conf.State.URL, Dir: a.conf.Host.StateDir, Owner: a.owner(secret), Lease: a.conf.State.Lease, Log: a.log,
	})
	if err != nil {
		return nil, connect.RecordsError(err)
	}
	a.store = a.hooks.records(store)
	return a.store, nil
}

// connector gives the lifecycle on one configured provider. The plugin starts with the first call.
func (a *app) connector(ctx context.Context, p *config.Provider) (*connect.Connector, error) {
	if diagnostics := p.CheckPlugin(); diagnostics.HasErrors() {
		return nil, diagnosed{a.conf, diagnostics}
	}
	secret, err := a.secret()
	if err != nil {
		return nil, err
	}
	store, err := a.records(ctx)
	if err != nil {
		return nil, err
	}
	return connect.New(a.hooks.provider(a.plugin(p)), p.Label, a.owner(secret), []byte(secret), store), nil
}

// sessionConnector loads the configuration and gives the lifecycle on the provider of a session: the one named, else
// the one that has the session's sandbox, else the default.
func (a *app) sessionConnector(ctx context.Context, id, label string) (*connect.Connector, *config.Provider, error) {
	if err := a.load(); err != nil {
		return nil, nil, err
	}
	if label == "" {
		store, err := a.records(ctx)
		if err != nil {
			return nil, nil, err
		}
		record, err := store.Get(ctx, id)
		switch {
		case errors.Is(err, records.ErrNotFound):
		case err != nil:
			return nil, nil, connect.RecordsError(err)
		case record.HasSandbox() && !a.conf.Has(record.Provider):
			return nil, nil, withHint("bring its provider block back, at least until the session is disconnected", &connect.Error{
				Code: connect.CodeInvalidConfig, Session: id, Provider: record.Provider, SandboxID: record.SandboxID,
				Message: fmt.Sprintf("session %q has a sandbox on provider %s, which is not in the configuration", id, record.Provider),
			})
		case record.HasSandbox():
			label = record.Provider
		}
	}
	p, err := a.provider(label)
	if err != nil {
		return nil, nil, err
	}
	connector, err := a.connector(ctx, p)
	return connector, p, err
}

// sessions returns the sessions on every configured provider, or on the one named. A provider whose plugin is missing is
// in failures.
func (a *app) sessions(ctx context.Context, label string) (map[string]*sessions.Sessions, map[string]error, error) {
	if err := a.load(); err != nil {
		return nil, nil, err
	}
	blocks := a.conf.Providers
	if label != "" {
		p, err := a.provider(label)
		if err != nil {
			return nil, nil, err
		}
		blocks = []*config.Provider{p}
	}
	if _, err := a.records(ctx); err != nil {
		return nil, nil, err
	}
	providers, failures := map[string]*sessions.Sessions{}, map[string]error{}
	for _, p := range blocks {
		connector, err := a.connector(ctx, p)
		if err != nil {
			failures[p.Label] = err
			continue
		}
		providers[p.Label] = sessions.New(connector)
	}
	return providers, failures, nil
}

// waiting tells a person for whom a command waits.
func (a *app) waiting(id string) func(holder string) {
	return func(holder string) { a.note("berth: waiting: %s is working on session %s", holder, id) }
}

// count words a number of things.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
