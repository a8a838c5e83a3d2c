package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/printable"
	"github.com/berth-dev/berth/shared/providertest"
)

func (a *app) pluginCheckCommand() *cobra.Command {
	var label, only string
	var noMTLS bool
	c := &cobra.Command{
		Use:   "check NAME|PATH",
		Short: "Hold a plugin to the contract",
		Long: `Run the conformance suite against a plugin: any executable, in any language. Name the plugin by its provider
block, by its name in the plugin directories, or by the path of its executable.

The suite makes sandboxes, about fifty, and destroys them again. It configures the plugin as the provider block does
that names it, with that block's server in the sandboxes; a plugin that no block names gets what its environment
variables say, and a small server in Python.

Progress goes to standard error, the report to standard output. Exit codes: 0 every check passed or was skipped with a
reason, 8 a check failed.`,
		Args: exactly("NAME|PATH"),
		RunE: run(func(c *cobra.Command, args []string) error {
			if err := providertest.CheckOnly(only); err != nil {
				return usageError{err}
			}
			if err := a.load(); err != nil {
				return err
			}
			p, err := a.underTest(c.Context(), args[0], label)
			if err != nil {
				return err
			}
			p.Only, p.NoMTLS = only, p.NoMTLS || noMTLS
			report := providertest.Check(c.Context(), p, a.checkEnded)
			if err := c.Context().Err(); err != nil {
				return err
			}
			return a.printConformance(report)
		}),
	}
	c.Flags().StringVar(&label, "provider", "", "the provider block to configure the plugin by (default: the one that names it)")
	c.Flags().StringVar(&only, "only", "", "run only the checks whose GROUP/NAME matches, and what they need, such as create/* or ping/redirect,ping/slow")
	c.Flags().BoolVar(&noMTLS, "no-mtls", false, "connect without mTLS, for plugins whose gRPC library cannot")
	return c
}

// underTest finds out what the suite needs to test a plugin.
func (a *app) underTest(ctx context.Context, nameOrPath, label string) (providertest.Plugin, error) {
	named, err := a.pluginNamed(nameOrPath)
	if err != nil {
		return providertest.Plugin{}, err
	}
	spec := a.fleet.Spec(named)
	if label == "" && a.conf.Has(nameOrPath) {
		label = nameOrPath
	}
	block, err := a.blockOf(named, label)
	if err != nil {
		return providertest.Plugin{}, err
	}
	under := providertest.Plugin{Path: named.Path}
	if block == nil {
		block = named
	} else {
		a.takeServer(block, &under)
		spec.Env, spec.MTLS, under.NoMTLS = block.Env, block.MTLS, !block.MTLS
		for name, value := range block.Env {
			under.Env = append(under.Env, name+"="+value)
		}
	}
	description, err := fleet.Describe(ctx, spec)
	if fleet.Untrusted(err) != nil {
		return under, err
	}
	if err != nil {
		return under, nil //nolint:nilerr // the suite finds that too, and says what to do
	}
	values, diagnostics := block.PluginConfig(description)
	if diagnostics.HasErrors() {
		return under, &fleet.ConfigError{Diagnostics: diagnostics}
	}
	decoder := json.NewDecoder(bytes.NewReader(values))
	decoder.UseNumber()
	return under, decoder.Decode(&under.Config)
}

// blockOf finds the provider block with the label or, without one, the block that names the plugin; nil when there is none.
func (a *app) blockOf(named *config.Provider, label string) (*config.Provider, error) {
	if label != "" {
		p, err := a.conf.Provider(label)
		if err != nil {
			return nil, usageError{err}
		}
		return p, nil
	}
	var found []*config.Provider
	var labels []string
	for _, p := range a.conf.Providers {
		if p.Plugin == named.Plugin || sameFile(p.Path, named.Path) {
			found, labels = append(found, p), append(labels, p.Label)
		}
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return found[0], nil
	}
	return nil, usagef("several provider blocks name this plugin (%s): choose one with --provider", strings.Join(labels, ", "))
}

func sameFile(a, b string) bool {
	one, errOne := os.Stat(a)
	other, errOther := os.Stat(b)
	return errOne == nil && errOther == nil && os.SameFile(one, other)
}

// takeServer takes the server of a block, with a session key made for the occasion.
func (a *app) takeServer(block *config.Provider, under *providertest.Plugin) {
	under.Server, under.Health = block.Server.Server, block.Server.Health
	if len(block.Server.KeyEnv) == 0 {
		return
	}
	key := randomHex(16)
	a.secrets.Add(key)
	under.Server.Env = maps.Clone(under.Server.Env)
	if under.Server.Env == nil {
		under.Server.Env = map[string]string{}
	}
	for _, name := range block.Server.KeyEnv {
		under.Server.Env[name] = key
	}
	under.Headers = map[string]string{block.Server.KeyHeader: key}
}

// checkEnded shows the end of a check as a line of progress.
func (a *app) checkEnded(r providertest.Result) {
	switch r.Status {
	case providertest.Pass:
		a.note("ok    %s/%s (%s)", r.Group, r.Name, short(r.Duration))
	case providertest.Fail:
		a.note("FAIL  %s/%s (%s): %s", r.Group, r.Name, short(r.Duration), r.Detail)
	case providertest.Skip:
		a.note("skip  %s/%s: %s", r.Group, r.Name, r.Detail)
	case providertest.Running:
	}
}

func (a *app) printConformance(report providertest.Report) error {
	for i := range report.Results {
		detail := a.secrets.String(report.Results[i].Detail)
		if a.flags.output != "json" {
			detail = strings.ReplaceAll(detail, "\n", "\n            ") // no line of a plugin looks like one of the report
		}
		report.Results[i].Detail = detail
	}
	var text bytes.Buffer
	var err error
	switch a.flags.output {
	case "json":
		err = a.printJSON(report)
	case "junit":
		err = report.WriteJUnit(&text)
	default:
		err = report.WriteText(&text)
	}
	if err != nil {
		return err
	}
	fmt.Fprint(a.stdout, printable.Text(a.secrets.String(text.String())))
	if report.Failed() {
		return exitError(exitPlugin)
	}
	return nil
}
