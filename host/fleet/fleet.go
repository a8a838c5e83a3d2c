package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/replies"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/shared/provider"
)

// stopTimeout bounds the end of all plugins.
const stopTimeout = 15 * time.Second

// Options are what a fleet is told besides its configuration. The zero value will do.
type Options struct {
	// Log may be nil.
	Log hclog.Logger
	// Reattach lists plugins that already run under a debugger, as LABEL=SOCKET,LABEL=SOCKET. See
	// provider.ReattachVariable.
	Reattach string
	// TellKey is told every session key before it is used, so that a front keeps it from what it shows. It is called
	// concurrently, and may be nil.
	TellKey func(key string)

	// Provider and Records let harnesses and tests stand between the fleet and a provider, or the records: what they
	// return is used instead. Nil normally. A plugin that nothing calls is not started.
	Provider func(label string, plugin *supervise.Plugin) provider.Provider
	Records  func(records.Store) records.Store
}

// Fleet is all that a configuration describes: plugins, records, and the sessions on the providers. Its methods may be
// called concurrently. Whoever made it closes it.
type Fleet struct {
	conf    *config.Config
	options Options
	log     hclog.Logger

	// opening is a lock that can be waited for with a context: opening the records may take long. It guards store and
	// identity, which are set when they are opened and stay.
	opening  chan struct{}
	store    records.Store
	identity identity

	mutex      sync.Mutex
	plugins    map[*config.Provider]*supervise.Plugin
	connectors map[*config.Provider]*connect.Connector
	closed     bool // set under both locks

	closing  sync.Once
	closeErr error
}

// New returns the fleet of a configuration. Nothing is started or opened until it is needed. The host's secret is
// added to conf.Secrets when it is read.
func New(conf *config.Config, options Options) *Fleet {
	f := &Fleet{
		conf: conf, options: options, log: options.Log, opening: make(chan struct{}, 1),
		plugins: map[*config.Provider]*supervise.Plugin{}, connectors: map[*config.Provider]*connect.Connector{},
	}
	if f.log == nil {
		f.log = hclog.NewNullLogger()
	}
	return f
}

// Close stops all plugins, at the same time, and then gives up the records. It returns within stopTimeout and a few
// seconds, whatever the plugins do; calls that are still under way then fail, so let them end first. Later calls of the
// fleet's methods fail. Close is idempotent: all calls wait for the end and return the same error.
func (f *Fleet) Close() error {
	f.closing.Do(func() { f.closeErr = f.close() })
	return f.closeErr
}

func (f *Fleet) close() error {
	f.opening <- struct{}{}
	f.mutex.Lock()
	f.closed = true // from here on neither plugins nor records are added
	f.mutex.Unlock()
	<-f.opening
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var stops sync.WaitGroup
	problems := make(chan error, len(f.plugins))
	for p, plugin := range f.plugins {
		stops.Go(func() {
			if err := plugin.Stop(ctx); err != nil {
				problems <- fmt.Errorf("stopping the plugin of provider %s: %w", p.Label, err)
			}
		})
	}
	stops.Wait()
	close(problems)
	var all []error
	for err := range problems {
		all = append(all, err)
	}
	if f.store != nil {
		if err := f.store.Close(); err != nil {
			all = append(all, fmt.Errorf("closing the records: %w", err))
		}
	}
	return errors.Join(all...)
}

// Plugin returns the supervised plugin of a provider block, the same one each time. It starts with its first call, with
// the configuration of the block, and Close stops it. The only error is that the fleet was closed.
func (f *Fleet) Plugin(p *config.Provider) (*supervise.Plugin, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.closed {
		return nil, closedError()
	}
	if plugin := f.plugins[p]; plugin != nil {
		return plugin, nil
	}
	spec := f.Spec(p)
	spec.Configure = func(d provider.Description) ([]byte, error) {
		values, diagnostics := p.PluginConfig(d)
		if diagnostics.HasErrors() {
			return nil, &ConfigError{diagnostics}
		}
		return values, nil
	}
	plugin := supervise.New(spec)
	f.plugins[p] = plugin
	return plugin, nil
}

// Spec returns how to run the plugin of a provider block, without a configuration for it.
func (f *Fleet) Spec(p *config.Provider) supervise.Spec {
	trust := p.Trust()
	return supervise.Spec{
		Name: p.Label, Path: p.Path, SHA256: trust.SHA256, Remedy: trust.Remedy, Refusal: trust.Refusal, Env: p.Env, MTLS: p.MTLS,
		StartTimeout: p.StartTimeout, Reattach: f.reattach(p.Label), Log: f.log,
	}
}

// reattach returns the socket of a provider's plugin that runs under a debugger, or "".
func (f *Fleet) reattach(label string) string {
	for entry := range strings.SplitSeq(f.options.Reattach, ",") {
		if name, socket, ok := strings.Cut(entry, "="); ok && name == label {
			return socket
		}
	}
	return ""
}

// Owner returns the name of this installation on its sandboxes.
func (f *Fleet) Owner() (string, error) {
	id, err := identify(f.conf)
	return id.owner, err
}

// records returns what berth remembers of its sessions, opened at the first call.
func (f *Fleet) records(ctx context.Context) (records.Store, error) {
	select {
	case f.opening <- struct{}{}:
		defer func() { <-f.opening }()
	case <-ctx.Done():
		return nil, connect.RecordsError(ctx.Err())
	}
	if f.closed {
		return nil, closedError()
	}
	if f.store != nil {
		return f.store, nil
	}
	if diagnostics := f.conf.CheckStateDir(); diagnostics.HasErrors() {
		return nil, &ConfigError{diagnostics}
	}
	id, err := identify(f.conf)
	if err != nil {
		return nil, err
	}
	var store records.Store
	store, err = records.Open(ctx, records.Options{
		URL: f.conf.State.URL, Dir: f.conf.Host.StateDir, Owner: id.owner, Lease: f.conf.State.Lease, Log: f.log,
	})
	if err != nil {
		return nil, connect.RecordsError(err)
	}
	if f.options.Records != nil {
		store = f.options.Records(store)
	}
	if exposed := f.exposedSecret(); exposed != "" {
		f.log.Warn(exposed)
	}
	f.store, f.identity = store, id
	return store, nil
}

// exposedSecret returns what is wrong with the permissions of the host's secret, "" if nothing is.
func (f *Fleet) exposedSecret() string {
	path := secretPath(f.conf.Host.StateDir)
	if f.conf.Host.Secret != "" || !permits(path, 0o077) {
		return ""
	}
	return fmt.Sprintf("other users may read or change %s, which session keys are derived from: chmod 600 it; "+
		"if somebody may have read it, remove it and connect the sessions anew", path)
}

// permits reports whether there is a file at the path whose mode has one of the bits.
func permits(path string, bits fs.FileMode) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Perm()&bits != 0
}

// block returns the provider block with the label, or for "" the default one.
func (f *Fleet) block(label string) (*config.Provider, error) {
	p, err := f.conf.Provider(label)
	if err != nil {
		return nil, &ChoiceError{err}
	}
	return p, nil
}

// connector returns the lifecycle on a provider, the same one each time, so that equal connects at the same time share one
// attempt.
func (f *Fleet) connector(ctx context.Context, p *config.Provider) (*connect.Connector, error) {
	if diagnostics := p.CheckPlugin(); diagnostics.HasErrors() {
		return nil, &ConfigError{diagnostics}
	}
	store, err := f.records(ctx)
	if err != nil {
		return nil, err
	}
	plugin, err := f.Plugin(p)
	if err != nil {
		return nil, err
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if connector := f.connectors[p]; connector != nil {
		return connector, nil
	}
	on := provider.Provider(plugin)
	if f.options.Provider != nil {
		on = f.options.Provider(p.Label, plugin)
	}
	connector := connect.New(replies.Check(on, p.Label, store), p.Label, f.identity.owner, []byte(f.identity.secret), store)
	connector.TellKeys(f.options.TellKey)
	f.connectors[p] = connector
	return connector, nil
}

// sessionsOn returns the sessions on every provider, or on the one named, by its label. A provider whose plugin is missing
// is in failures.
func (f *Fleet) sessionsOn(ctx context.Context, only string) (
	providers map[string]*sessions.Sessions, failures map[string]error, err error,
) {
	blocks := f.conf.Providers
	if only != "" {
		p, err := f.block(only)
		if err != nil {
			return nil, nil, err
		}
		blocks = []*config.Provider{p}
	}
	if _, err := f.records(ctx); err != nil {
		return nil, nil, err
	}
	providers, failures = map[string]*sessions.Sessions{}, map[string]error{}
	for _, p := range blocks {
		connector, err := f.connector(ctx, p)
		if err != nil {
			failures[p.Label] = err
			continue
		}
		providers[p.Label] = sessions.New(connector)
	}
	return providers, failures, nil
}
