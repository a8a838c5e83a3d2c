package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/host/wire"
)

func (a *app) pluginLockCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "lock [NAME...]",
		Short: "Trust the configured plugins as they are now, and no other binaries",
		Long: `Write name, version and SHA-256 of every configured plugin, or of the named ones only, to ` + config.LockName + ` beside the
configuration file. From then on berth refuses to run a plugin that was changed or that is not in the file, until this
command accepts it. A plugin is asked for its version, so look at a new binary before you lock it.

The file holds one checksum a platform: where hosts differ, run the command once on each.`,
		RunE: run(func(c *cobra.Command, names []string) error {
			if err := a.load(); err != nil {
				return err
			}
			if a.conf.LockPath() == "" {
				return usagef("the built-in configuration has no file to put %s beside: write a config.hcl first, or name one with --config", config.LockName)
			}
			return a.lock(c.Context(), names)
		}),
	}
}

// lock brings the lock file up to date: for the named plugins, or for all that are configured and no others.
func (a *app) lock(ctx context.Context, names []string) error {
	configured, err := a.configuredPlugins()
	if err != nil {
		return err
	}
	lock := &config.Lock{Path: a.conf.LockPath(), Plugins: map[string]config.Locked{}}
	if a.conf.Lock != nil {
		lock = a.conf.Lock
	}
	var changes []wire.LockChange
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(configured))
		for _, name := range slices.Sorted(maps.Keys(lock.Plugins)) {
			if configured[name] == nil {
				changes = append(changes, wire.LockChange{Name: name, Was: lock.Plugins[name].SHA256[config.Platform], Change: "removed"})
				delete(lock.Plugins, name)
			}
		}
	}
	for _, name := range names {
		if configured[name] == nil {
			return usagef("no provider block names the plugin %q. Configured: %s", name,
				strings.Join(slices.Sorted(maps.Keys(configured)), ", "))
		}
	}
	found, err := a.inspect(ctx, configured, slices.Compact(slices.Sorted(slices.Values(names))))
	if err != nil {
		return err
	}
	for _, change := range found {
		mark(&change, lock.Plugins[change.Name])
		lock.Plugins[change.Name] = locked(change, lock.Plugins[change.Name])
		changes = append(changes, change)
	}
	if slices.ContainsFunc(changes, func(c wire.LockChange) bool { return c.Change != "unchanged" }) {
		if err := lock.Write(); err != nil {
			return fmt.Errorf("the lock file cannot be written: %w", err)
		}
	}
	return a.printLock(lock.Path, changes)
}

// configuredPlugins returns one provider block for every configured plugin.
func (a *app) configuredPlugins() (map[string]*config.Provider, error) {
	configured := map[string]*config.Provider{}
	for _, p := range a.conf.Providers {
		if diagnostics := p.CheckPlugin(); diagnostics.HasErrors() {
			return nil, &fleet.ConfigError{Diagnostics: diagnostics}
		}
		other := configured[p.Plugin]
		if other != nil && other.Path != p.Path {
			return nil, &connect.Error{Code: connect.CodeInvalidConfig, Provider: p.Label, Message: fmt.Sprintf(
				"the provider blocks %q and %q call two executables %q, %s and %s: give one of them a name of its own with plugin = ...",
				other.Label, p.Label, p.Plugin, other.Path, p.Path)}
		}
		if other == nil || other.SHA256 == "" {
			configured[p.Plugin] = p
		}
	}
	return configured, nil
}

// inspect returns checksum and version of plugins. The version is that of the very binary with the checksum.
func (a *app) inspect(ctx context.Context, configured map[string]*config.Provider, names []string) ([]wire.LockChange, error) {
	found := make([]wire.LockChange, len(names))
	problems := make([]error, len(names))
	var inspections sync.WaitGroup
	for i, name := range names {
		inspections.Go(func() {
			p := configured[name]
			sum, err := checksum(p.Path)
			if err != nil {
				problems[i] = err
				return
			}
			spec := a.fleet.Spec(p)
			spec.Name, spec.SHA256, spec.Remedy, spec.Refusal = name, sum, "", ""
			if p.SHA256 != "" { // it counts in any case
				spec.SHA256 = p.SHA256
			}
			d, err := fleet.Describe(ctx, spec)
			found[i], problems[i] = wire.LockChange{Name: name, Version: d.Version, SHA256: sum}, err
		})
	}
	inspections.Wait()
	for _, err := range problems {
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// mark fills in what changes for a plugin, given its entry in the lock file before.
func mark(c *wire.LockChange, before config.Locked) {
	c.Was = before.SHA256[config.Platform]
	switch {
	case c.Was == "":
		c.Change = "added"
	case c.Was == c.SHA256 && c.Version == before.Version:
		c.Change, c.Was = "unchanged", ""
	default:
		c.Change = "changed"
	}
}

// locked returns the plugin's new entry. The checksums of other platforms stay as long as they are of the same version.
func locked(c wire.LockChange, before config.Locked) config.Locked {
	sums := map[string]string{}
	if before.Version == c.Version {
		maps.Copy(sums, before.SHA256)
	}
	sums[config.Platform] = c.SHA256
	return config.Locked{Version: c.Version, SHA256: sums}
}

func (a *app) printLock(path string, changes []wire.LockChange) error {
	if a.flags.output == "json" {
		return a.printJSON(wire.Lock{Lock: path, Plugins: changes})
	}
	rows := [][]any{{"PLUGIN", "VERSION", "CHANGE", "SHA256", "WAS"}}
	for _, c := range changes {
		rows = append(rows, []any{c.Name, orDash(c.Version), own(c.Change), own(orDash(prefix(c.SHA256))), own(orDash(prefix(c.Was)))})
	}
	a.printTable("no plugins are configured", rows)
	a.print("%s\n", path)
	return nil
}

// The states of a plugin binary's checksum.
const (
	checksumLocked  = "locked"     // it is the one that the lock file or the provider block names
	checksumChanged = "changed"    // it is another one, and refused
	checksumUnknown = "not locked" // there is a lock file, and the plugin is not in it
)

// checksumState compares a binary with what is trusted. It returns "" when nothing is restricted.
func (a *app) checksumState(spec supervise.Spec, sum string) string {
	switch {
	case spec.SHA256 != "" && spec.SHA256 == sum && spec.Refusal == "":
		return checksumLocked
	case spec.SHA256 != "":
		return checksumChanged
	case a.conf.Lock != nil:
		return checksumUnknown
	}
	return ""
}

// lockFinding checks the lock file. The binaries themselves are checked with their providers.
func (a *app) lockFinding() finding {
	if a.conf.Lock == nil {
		return a.finding("lock file", "none: any plugin binary is run. berth plugin lock makes one", nil)
	}
	var wrong []string
	for _, p := range a.conf.Providers {
		sum, err := checksum(p.Path)
		if state := a.checksumState(a.fleet.Spec(p), sum); err == nil && state != checksumLocked {
			wrong = append(wrong, fmt.Sprintf("%s is %s", p.Label, state))
		}
	}
	if len(wrong) > 0 {
		return a.finding("lock file", "", &connect.Error{
			Code: connect.CodePluginFailed, Message: a.conf.Lock.Path + ": " + strings.Join(wrong, ", "),
			Remedy: "berth plugin lock accepts the binaries as they are now",
		})
	}
	return a.finding("lock file", fmt.Sprintf("%s, all plugins as locked", a.conf.Lock.Path), nil)
}
