package cli

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completionLimit bounds the look into the records: whoever presses the key is waiting.
const completionLimit = time.Second

// addCompletion tells the shells what may stand where. No plugin is started for it, nothing is made, and files are offered
// only where a file is meant.
func (a *app) addCompletion(root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	flags := map[string]cobra.CompletionFunc{
		"config":    cobra.FixedCompletions([]string{"hcl"}, cobra.ShellCompDirectiveFilterFileExt),
		"log-level": choices("off", "error", "warn", "info", "debug", "trace"),
		"provider":  a.completeProvider,
		"session":   a.completeSession,
		"mode":      choices("auto", "attach", "create"),
		"progress":  choices("auto", "plain", "ndjson", "none"),
		"action":    choices("destroy", "suspend"),
		"dir":       cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs),
		"sdk":       cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs),
	}
	arguments := map[string][]cobra.CompletionFunc{
		"berth connect": {a.completeSession}, "berth ping": {a.completeSession}, "berth hold": {a.completeSession},
		"berth disconnect":      {a.completeSession},
		"berth plugin describe": {a.completePlugin}, "berth plugin check": {a.completePlugin},
		"berth plugin call": {a.completePlugin, choices(methodNames()...)},
	}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for name, complete := range flags {
			if c.LocalFlags().Lookup(name) != nil {
				_ = c.RegisterFlagCompletionFunc(name, complete) // fails only for a flag that is not there
			}
		}
		if inOrder := arguments[c.CommandPath()]; inOrder != nil {
			c.ValidArgsFunction = func(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
				if len(args) >= len(inOrder) {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				return inOrder[len(args)](c, args, begun)
			}
		}
		if c.CommandPath() == "berth plugin lock" {
			c.ValidArgsFunction = a.completeLocked
		}
		for _, below := range c.Commands() {
			visit(below)
		}
	}
	visit(root)
	_ = root.RegisterFlagCompletionFunc("output", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return outputsOf(c), cobra.ShellCompDirectiveNoFileComp
	})
}

// choices completes to one of them.
func choices(all ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp)
}

// loaded reads the configuration, as far as it can be read.
func (a *app) loaded() bool {
	_ = a.load()
	return a.fleet != nil
}

func (a *app) completeProvider(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var labels []string
	if a.loaded() {
		for _, p := range a.conf.Providers {
			labels = append(labels, cobra.CompletionWithDesc(p.Label, "the plugin "+p.Plugin))
		}
	}
	return labels, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeSession(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	if !a.loaded() {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(c.Context(), completionLimit)
	defer cancel()
	states, _ := a.fleet.RecordedSessions(ctx) // nothing is offered when the records cannot be read
	var ids []string
	for _, s := range states {
		ids = append(ids, cobra.CompletionWithDesc(s.Session, string(s.State)+" on "+s.Provider))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// completePlugin completes what pluginNamed takes. Whoever has typed a slash means a path.
func (a *app) completePlugin(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	if strings.ContainsRune(begun, os.PathSeparator) {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var names []string
	if a.loaded() {
		for _, p := range a.conf.Providers {
			names = append(names, p.Label)
		}
		for _, plugin := range a.conf.InstalledPlugins() {
			names = append(names, plugin.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

// completeLocked completes the names of configured plugins, each once.
func (a *app) completeLocked(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if a.loaded() {
		for _, p := range a.conf.Providers {
			if !slices.Contains(args, p.Plugin) {
				names = append(names, p.Plugin)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}
