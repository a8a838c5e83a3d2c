package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/printable"
	"github.com/berth-dev/berth/host/regular"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/host/wire"
	"github.com/berth-dev/berth/shared/provider"
)

func (a *app) providersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "providers",
		Short: "List the configured providers and what their plugins can do",
		Args:  noArguments,
		RunE: run(func(c *cobra.Command, _ []string) error {
			if err := a.load(); err != nil {
				return err
			}
			var files []pluginFile
			for _, p := range a.conf.Providers {
				files = append(files, pluginFile{name: p.Label, spec: a.fleet.Spec(p)})
			}
			return a.printPlugins(c.Context(), [2]string{"PROVIDER", "PLUGIN"}, files)
		}),
	}
}

func (a *app) pluginCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "plugin",
		Short: "Look at plugins",
		Args:  isCommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		&cobra.Command{
			Use:   "list",
			Short: "List the plugins in the plugin directories",
			Long: `List the plugins in the plugin directory and in those of BERTH_PLUGIN_PATH. Of two with the same name the first one
counts. With a lock file beside the configuration, what is not locked is listed but not run.`,
			Args: noArguments,
			RunE: run(func(c *cobra.Command, _ []string) error {
				if err := a.load(); err != nil {
					return err
				}
				var files []pluginFile
				for _, plugin := range a.conf.InstalledPlugins() {
					file := pluginFile{
						name: plugin.Name, spec: a.fleet.Spec(a.conf.Unlisted(plugin.Name, plugin.Path)), shadowedBy: plugin.ShadowedBy,
					}
					file.unknown = a.conf.Lock != nil && file.spec.SHA256 == ""
					files = append(files, file)
				}
				return a.printPlugins(c.Context(), [2]string{"PLUGIN", "PROVIDER"}, files)
			}),
		},
		&cobra.Command{
			Use:   "describe NAME|PATH",
			Short: "Show what a plugin is, can do, and can be told",
			Long: `Start the plugin, ask what it is, and stop it. It needs neither credentials nor configuration. Name the plugin by its
provider block, by its name in the plugin directories, or by the path of its executable. -o markdown gives the table of
settings for its documentation.`,
			Args: exactly("NAME|PATH"),
			RunE: run(func(c *cobra.Command, args []string) error {
				if err := a.load(); err != nil {
					return err
				}
				p, err := a.pluginNamed(args[0])
				if err != nil {
					return err
				}
				d, err := fleet.Describe(c.Context(), a.fleet.Spec(p))
				if err != nil {
					return err
				}
				return a.printDescription(d)
			}),
		},
		a.pluginCallCommand(), a.pluginCheckCommand(), a.pluginNewCommand(), a.pluginLockCommand(),
	)
	return c
}

// pluginFile is a plugin to be described.
type pluginFile struct {
	name string
	spec supervise.Spec
	// shadowedBy is the executable that is run instead, if any; unknown is one that is not in the lock file. Neither is
	// run.
	shadowedBy string
	unknown    bool
}

// pluginNamed returns the provider block with the label or, without one, a provider for the plugin of that name in the plugin
// directories, or for the executable at that path, alone.
func (a *app) pluginNamed(nameOrPath string) (*config.Provider, error) {
	if a.conf.Has(nameOrPath) {
		p, err := a.conf.Provider(nameOrPath)
		if err != nil {
			return nil, err
		}
		if diagnostics := p.CheckPlugin(); diagnostics.HasErrors() {
			return nil, &fleet.ConfigError{Diagnostics: diagnostics}
		}
		return p, nil
	}
	name, path := strings.TrimPrefix(filepath.Base(nameOrPath), config.PluginPrefix), nameOrPath
	isName := !strings.ContainsRune(nameOrPath, filepath.Separator)
	if isName {
		path = a.conf.FindPlugin(nameOrPath)
	}
	p := a.conf.Unlisted(name, path)
	if !p.CheckPlugin().HasErrors() {
		return p, nil
	}
	if isName {
		return nil, a.noPlugin(nameOrPath)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, usagef("there is no plugin %s: there is no such file", path)
	}
	return nil, usagef("there is no plugin %s: it is not an executable file", path)
}

// noPlugin returns the error of a name that neither a provider block nor a plugin has.
func (a *app) noPlugin(name string) error {
	var labels, installed []string
	for _, p := range a.conf.Providers {
		labels = append(labels, p.Label)
	}
	for _, plugin := range a.conf.InstalledPlugins() {
		if plugin.ShadowedBy == "" {
			installed = append(installed, plugin.Name)
		}
	}
	there := "No plugins are there."
	if len(installed) > 0 {
		there = "Plugins there: " + strings.Join(installed, ", ") + "."
	}
	return usagef("there is no plugin %q: no provider block has this label, and there is no %s%s in %s.%s %s", name, config.PluginPrefix, name,
		strings.Join(a.conf.PluginDirs(), ", "), config.DidYouMean(name, append(labels, installed...)), there)
}

func (a *app) printPlugins(ctx context.Context, headings [2]string, files []pluginFile) error {
	entries := make([]wire.Plugin, len(files))
	codes := make([]int, len(files))
	var describes sync.WaitGroup
	for i, file := range files {
		describes.Go(func() {
			e := &entries[i]
			e.Name, e.Path = file.name, file.spec.Path
			e.SHA256, _ = checksum(file.spec.Path)
			if e.ShadowedBy = file.shadowedBy; e.ShadowedBy != "" {
				return
			}
			if e.Checksum = a.checksumState(file.spec, e.SHA256); file.unknown {
				return
			}
			d, err := fleet.Describe(ctx, file.spec)
			if err != nil {
				f, code := a.failure(commandError{err})
				e.Error, codes[i] = &f, code
				return
			}
			e.Describe(d)
		})
	}
	describes.Wait()

	if a.flags.output == "json" {
		if err := a.printJSON(wire.Plugins{Plugins: entries}); err != nil {
			return err
		}
	} else {
		rows := [][]any{{headings[0], headings[1], "VERSION", "PROTOCOL", "CAN", "CHECKSUM", "SHA256", "PATH"}}
		for _, e := range entries {
			row := []any{e.Name, orDash(e.Plugin), orDash(e.Version), "-", "", own(orDash(e.Checksum)), own(orDash(prefix(e.SHA256))), e.Path}
			switch {
			case e.Error != nil:
				a.say("berth: %s: %s", e.Name, e.Error.Message)
				row[4] = own("does not start")
			case e.ShadowedBy != "":
				row[4] = "shadowed by " + e.ShadowedBy
			case e.Plugin == "":
				row[4] = own("not run")
			default:
				row[3], row[4] = e.Protocol, own(listed(e.Capabilities))
			}
			rows = append(rows, row)
		}
		a.printTable("no plugins in "+strings.Join(a.conf.PluginDirs(), ", "), rows)
	}
	for _, code := range codes {
		if code != 0 {
			return exitError(code)
		}
	}
	return nil
}

func listed(capabilities []provider.Capability) string {
	var list []string
	for _, c := range capabilities {
		list = append(list, string(c))
	}
	return orDash(strings.Join(list, ","))
}

func prefix(sum string) string { return sum[:min(12, len(sum))] }

func checksum(path string) (string, error) {
	file, err := regular.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func (a *app) printDescription(d provider.Description) error {
	switch a.flags.output {
	case "json":
		return a.printJSON(wire.NewDescription(d))
	case "markdown":
		table := printable.Text(a.secrets.String(provider.MarkdownTable(d.Attributes)))
		a.print("%s %s: %s Protocol %d. Can: %s.\n\n%s", d.Name, d.Version, d.Summary, provider.ProtocolVersion,
			own(strings.ReplaceAll(listed(d.Capabilities), ",", ", ")), own(table))
		return nil
	}
	a.print("%s %s (protocol %d)\n%s\n\ncan: %s\n\n", d.Name, d.Version, provider.ProtocolVersion, d.Summary, own(listed(d.Capabilities)))
	rows := [][]any{{"ATTRIBUTE", "TYPE", "DEFAULT", "ENVIRONMENT", "WHAT IT IS"}}
	for _, attribute := range d.Attributes {
		doc := attribute.Doc
		if len(attribute.OneOf) > 0 {
			doc += " One of " + strings.Join(attribute.OneOf, ", ") + "."
		}
		if attribute.Sensitive {
			doc += " Secret."
		}
		fallback := attribute.Default
		if attribute.Required {
			fallback = "required"
		}
		rows = append(rows, []any{
			attribute.Name, attribute.Type, orDash(fallback), orDash(strings.Join(attribute.Env, ", ")), doc,
		})
	}
	a.printTable("nothing to configure", rows)
	return nil
}
