package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/shared/provider"
)

func (a *app) providersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "providers",
		Short: "List the configured providers and what their plugins can do",
		Args:  cobra.NoArgs,
		RunE: run(func(c *cobra.Command, _ []string) error {
			if err := a.load(); err != nil {
				return err
			}
			var paths []pluginFile
			for _, p := range a.conf.Providers {
				paths = append(paths, pluginFile{name: p.Label, spec: a.spec(p)})
			}
			return a.printPlugins(c.Context(), [2]string{"PROVIDER", "PLUGIN"}, paths)
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
			Short: "List the plugins in the plugin directory",
			Args:  cobra.NoArgs,
			RunE: run(func(c *cobra.Command, _ []string) error {
				if err := a.load(); err != nil {
					return err
				}
				var files []pluginFile
				for _, name := range config.InstalledPlugins(a.conf.Host.PluginDir) {
					files = append(files, pluginFile{name: name, spec: a.bareSpec(name)})
				}
				return a.printPlugins(c.Context(), [2]string{"PLUGIN", "PROVIDER"}, files)
			}),
		},
		&cobra.Command{
			Use:   "describe NAME|PATH",
			Short: "Show what a plugin is, can do, and can be told",
			Long: `Start the plugin, ask what it is, and stop it. It needs neither credentials nor configuration. The plugin is named
as in the plugin directory, or by the path of its executable.`,
			Args: cobra.ExactArgs(1),
			RunE: run(func(c *cobra.Command, args []string) error {
				if err := a.load(); err != nil {
					return err
				}
				d, err := a.describe(c.Context(), a.bareSpec(args[0]))
				if err != nil {
					return err
				}
				a.printDescription(d)
				return nil
			}),
		},
		a.pluginNewCommand(),
	)
	return c
}

// pluginFile is a plugin to be described.
type pluginFile struct {
	name string
	spec supervise.Spec
}

// bareSpec runs a plugin that need not be configured: by name from the plugin directory, or by path.
func (a *app) bareSpec(nameOrPath string) supervise.Spec {
	path := nameOrPath
	if !strings.ContainsRune(nameOrPath, filepath.Separator) {
		path = filepath.Join(a.conf.Host.PluginDir, config.PluginPrefix+nameOrPath)
	}
	return supervise.Spec{Name: nameOrPath, Path: path, MTLS: true, Log: a.log}
}

// describe starts a plugin, asks what it is, and stops it.
func (a *app) describe(ctx context.Context, spec supervise.Spec) (provider.Description, error) {
	plugin := supervise.New(spec)
	description, err := plugin.Describe(ctx)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if stopError := plugin.Stop(stop); err == nil {
		err = stopError
	}
	return description, pluginFailure(spec.Name, err)
}

func (a *app) printPlugins(ctx context.Context, headings [2]string, files []pluginFile) error {
	type entry struct {
		Name         string                `json:"name"`
		Plugin       string                `json:"plugin,omitempty"`
		Version      string                `json:"version,omitempty"`
		Protocol     int                   `json:"protocol,omitempty"`
		Path         string                `json:"path"`
		SHA256       string                `json:"sha256,omitempty"`
		Capabilities []provider.Capability `json:"capabilities,omitempty"`
		Error        *failure              `json:"error,omitempty"`
	}
	entries := make([]entry, len(files))
	codes := make([]int, len(files))
	var describes sync.WaitGroup
	for i, file := range files {
		describes.Go(func() {
			e := &entries[i]
			e.Name, e.Path = file.name, file.spec.Path
			e.SHA256, _ = checksum(file.spec.Path)
			d, err := a.describe(ctx, file.spec)
			if err != nil {
				f, code := a.failure(commandError{err})
				e.Error, codes[i] = &f, code
				return
			}
			e.Plugin, e.Version, e.Protocol, e.Capabilities = d.Name, d.Version, provider.ProtocolVersion, d.Capabilities
		})
	}
	describes.Wait()

	if a.flags.output == "json" {
		a.printJSON(map[string][]entry{"plugins": entries})
	} else {
		rows := [][]string{{headings[0], headings[1], "VERSION", "PROTOCOL", "CAN", "SHA256", "PATH"}}
		for _, e := range entries {
			if e.Error != nil {
				a.say("berth: %s: %s", e.Name, e.Error.Message)
				rows = append(rows, []string{e.Name, "-", "-", "-", "does not start", orDash(prefix(e.SHA256)), e.Path})
				continue
			}
			rows = append(rows, []string{
				e.Name, e.Plugin, e.Version, fmt.Sprint(e.Protocol), words(e.Capabilities), prefix(e.SHA256), e.Path,
			})
		}
		a.printTable("no plugins in "+a.conf.Host.PluginDir, rows)
	}
	for _, code := range codes {
		if code != 0 {
			return exitError(code)
		}
	}
	return nil
}

func words(capabilities []provider.Capability) string {
	var list []string
	for _, c := range capabilities {
		list = append(list, string(c))
	}
	return orDash(strings.Join(list, ","))
}

func prefix(sum string) string { return sum[:min(12, len(sum))] }

func checksum(path string) (string, error) {
	file, err := os.Open(path)
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

func (a *app) printDescription(d provider.Description) {
	if a.flags.output == "json" {
		a.printJSON(newDescription(d))
		return
	}
	fmt.Fprintf(a.stdout, "%s %s (protocol %d)\n%s\n\ncan: %s\n\n", d.Name, d.Version, provider.ProtocolVersion, d.Summary, words(d.Capabilities))
	rows := [][]string{{"ATTRIBUTE", "TYPE", "DEFAULT", "ENVIRONMENT", "WHAT IT IS"}}
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
		rows = append(rows, []string{
			attribute.Name, string(attribute.Type), orDash(fallback), orDash(strings.Join(attribute.Env, ", ")), doc,
		})
	}
	a.printTable("nothing to configure", rows)
}

type description struct {
	Name         string                 `json:"name"`
	Version      string                 `json:"version"`
	Protocol     int                    `json:"protocol"`
	Summary      string                 `json:"summary"`
	Capabilities []provider.Capability  `json:"capabilities"`
	Attributes   []descriptionAttribute `json:"attributes"`
}

type descriptionAttribute struct {
	Name      string                 `json:"name"`
	Type      provider.AttributeType `json:"type"`
	Required  bool                   `json:"required"`
	Sensitive bool                   `json:"sensitive"`
	Default   string                 `json:"default,omitempty"`
	Env       []string               `json:"env,omitempty"`
	OneOf     []string               `json:"one_of,omitempty"`
	Doc       string                 `json:"doc"`
}

func newDescription(d provider.Description) description {
	j := description{
		Name: d.Name, Version: d.Version, Protocol: provider.ProtocolVersion, Summary: d.Summary,
		Capabilities: append([]provider.Capability{}, d.Capabilities...), Attributes: []descriptionAttribute{},
	}
	for _, attribute := range d.Attributes {
		j.Attributes = append(j.Attributes, descriptionAttribute(attribute))
	}
	return j
}
