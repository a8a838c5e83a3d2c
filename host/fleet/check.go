package fleet

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/hashicorp/hcl/v2"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/sessions"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/shared/provider"
)

// CheckConfig starts every plugin with its configuration, at the same time, and lets it check its own part. found are the
// mistakes found so far. The error is a *ConfigError with all mistakes, if there are any.
func (f *Fleet) CheckConfig(ctx context.Context, found hcl.Diagnostics) error {
	mistakes := make([]hcl.Diagnostics, len(f.conf.Providers))
	problems := make([]error, len(f.conf.Providers))
	var checks sync.WaitGroup
	for i, p := range f.conf.Providers {
		checks.Go(func() {
			err := f.configure(ctx, p)
			var diagnosis *ConfigError
			if errors.As(err, &diagnosis) {
				mistakes[i] = diagnosis.Diagnostics
			} else if refusal := Refusal(err); refusal != nil {
				mistakes[i] = p.Explain(refusal)
			} else {
				problems[i] = err
			}
		})
	}
	checks.Wait()
	for _, diagnostics := range mistakes {
		found = append(found, diagnostics...)
	}
	if found.HasErrors() {
		return &ConfigError{found}
	}
	return errors.Join(problems...)
}

// CheckProvider starts a provider's plugin with its configuration and lists its sandboxes of this installation, which shows
// whether the provider accepts the credentials. It returns how many there are. The error's code is CodeUnsupported if the
// plugin started but cannot list.
func (f *Fleet) CheckProvider(ctx context.Context, label string) (sandboxes int, err error) {
	p, err := f.block(label)
	if err != nil {
		return 0, err
	}
	if err := f.configure(ctx, p); err != nil {
		return 0, err
	}
	connector, err := f.connector(ctx, p)
	if err != nil {
		return 0, err
	}
	listed, err := sessions.New(connector).List(ctx)
	return len(listed), err
}

// configure starts a provider's plugin with its configuration.
func (f *Fleet) configure(ctx context.Context, p *config.Provider) error {
	if diagnostics := p.CheckPlugin(); diagnostics.HasErrors() {
		return &ConfigError{diagnostics}
	}
	plugin, err := f.Plugin(p)
	if err != nil {
		return err
	}
	_, err = plugin.Describe(ctx)
	return pluginError(p.Label, err)
}

// Describe starts a plugin, asks what it is, and stops it. It needs no configuration: spec is that of
// Fleet.Spec, for instance.
func Describe(ctx context.Context, spec supervise.Spec) (provider.Description, error) {
	plugin := supervise.New(spec)
	description, err := plugin.Describe(ctx)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if stopError := plugin.Stop(stop); err == nil {
		err = stopError
	}
	return description, pluginError(spec.Name, err)
}

// CheckState reads or makes the host's secret, and finds out whether the state directory can be written.
func (f *Fleet) CheckState() error {
	if _, err := identify(f.conf); err != nil {
		return err
	}
	probe, err := os.CreateTemp(f.conf.Host.StateDir, ".check-*")
	if os.IsNotExist(err) && f.conf.Host.Secret != "" {
		return nil // nothing has been kept yet
	}
	if err != nil {
		return err
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// CheckRecords reads the records. It returns how many sessions have a sandbox, and how many connects and disconnects were
// interrupted and are not finished.
func (f *Fleet) CheckRecords(ctx context.Context) (sandboxes, interrupted int, err error) {
	store, err := f.records(ctx)
	if err != nil {
		return 0, 0, err
	}
	all, err := store.List(ctx)
	if err != nil {
		return 0, 0, connect.RecordsError(err)
	}
	owed, err := store.Owed(ctx, "")
	if err != nil {
		return 0, 0, connect.RecordsError(err)
	}
	interrupted = len(owed)
	for _, r := range all {
		if r.HasSandbox() {
			sandboxes++
		}
		if r.Interrupted() {
			interrupted++
		}
	}
	return sandboxes, interrupted, nil
}
