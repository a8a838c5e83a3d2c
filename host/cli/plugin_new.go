package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/scaffold"
	"github.com/berth-dev/berth/host/wire"
)

func (a *app) pluginNewCommand() *cobra.Command {
	var dir, modulePath, sdk string
	c := &cobra.Command{
		Use:   "new NAME",
		Short: "Write the beginning of a plugin of your own",
		Long: `Write a complete plugin in Go, as a module of its own: configuration, the four calls and what else a provider can
do on a toy cloud, a simulator of that cloud, tests, a Makefile. It builds and passes its tests as it is.

  berth plugin new acme                      into ./berth-provider-acme
  berth plugin new acme --dir ~/src/acme     into another directory, which must be empty or not exist
  cd berth-provider-acme && make test

Until the SDK's module is published, the plugin's go.mod points at a checkout of it: the one named with --sdk, else the
one this berth was built from, else the one that the working directory is in.`,
		Args: exactly("NAME"),
		RunE: run(func(c *cobra.Command, args []string) error {
			name := args[0]
			switch short, prefixed := strings.CutPrefix(name, config.PluginPrefix); {
			case prefixed:
				return usagef("%q: leave out %q, as in: berth plugin new %s", name, config.PluginPrefix, short)
			case !config.ValidName(name):
				return usagef("%q cannot be a plugin's name: it must be %s", name, config.NameRule)
			}
			plugin := scaffold.Plugin{Name: name, Module: modulePath}
			if plugin.Module == "" {
				plugin.Module = "example.com/" + config.PluginPrefix + name
			}
			if dir == "" {
				dir = config.PluginPrefix + name
			}
			var err error
			if plugin.Dir, err = filepath.Abs(dir); err != nil {
				return err
			}
			if plugin.SDK, err = scaffold.FindSDK(sdk); err != nil {
				return usageError{err}
			}
			if err := scaffold.Write(c.Context(), plugin); err != nil {
				return fmt.Errorf("no plugin was written: %w", err)
			}
			return a.printNewPlugin(plugin)
		}),
	}
	c.Flags().StringVar(&dir, "dir", "", "the `directory` to write to (default: berth-provider-NAME)")
	c.Flags().StringVar(&modulePath, "module", "", "the `path` of the new module (default: example.com/berth-provider-NAME)")
	c.Flags().StringVar(&sdk, "sdk", "", "a checkout of berth's module, the `directory` with its go.mod")
	return c
}

func (a *app) printNewPlugin(p scaffold.Plugin) error {
	if a.flags.output == "json" {
		return a.printJSON(wire.NewPlugin{Name: p.Name, Dir: p.Dir, Module: p.Module, SDK: p.SDK})
	}
	a.print(`%s is in %s

  cd %s
  make test     # all tests, against its simulated cloud
  make build    # %s, and the simulated cloud to try it with

Begin with README.md. The SDK is the checkout in %s.
`, p.Name, p.Dir, shellWord(p.Dir), filepath.Join("bin", config.PluginPrefix+p.Name), p.SDK)
	return nil
}

// shellWord quotes what a shell would not take as it is.
func shellWord(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-", r)
	}) {
		return shellQuote(text)
	}
	return text
}
