package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	found = append(found, f.conf.CheckStateDir()...)
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
	if diagnostics := f.conf.CheckStateDir(); diagnostics.HasErrors() {
		return &ConfigError{diagnostics}
	}
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

// Exposures returns, in words, which files other users of this machine may read or change although they belong to this user
// alone. Permissions of a group count only for what berth makes itself: many systems give every user a group of its own.
func (f *Fleet) Exposures() []string {
	const group, others = 0o070, 0o007
	var found []string
	seen := map[string]bool{} // providers share plugins
	writable := func(what, path string, bits fs.FileMode) {
		if path != "" && permits(path, bits&0o022) && !seen[path] {
			seen[path] = true
			found = append(found, fmt.Sprintf("other users may change %s, %s: chmod go-w it", path, what))
		}
	}
	if exposed := f.exposedSecret(); exposed != "" {
		found = append(found, exposed)
	}
	state := f.conf.Host.StateDir
	writable("the directory of the records and the secret", state, group|others)
	writable("the records", filepath.Join(state, "records.db"), group|others)
	if f.conf.Path != "" {
		if f.conf.HoldsSecrets() && permits(f.conf.Path, 0o004) {
			found = append(found, fmt.Sprintf("other users may read %s, which holds secrets: chmod 600 it, or take them from "+
				"env() or file()", f.conf.Path))
		}
		writable("the configuration, which names what is run", f.conf.Path, others)
		writable("the lock file", f.conf.LockPath(), others)
	}
	for _, p := range f.conf.Providers {
		writable("the plugin of provider "+p.Label, p.Path, others)
		writable("the directory of that plugin", filepath.Dir(p.Path), others)
	}
	return found
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
