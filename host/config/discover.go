package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// PluginPrefix begins the file name of every plugin; the plugin's name follows.
const PluginPrefix = "berth-provider-"

// PluginPathVariable is the environment variable that names further plugin directories, separated as in PATH.
const PluginPathVariable = "BERTH_PLUGIN_PATH"

// Installed is a plugin in one of the plugin directories.
type Installed struct {
	Name string
	// Path is its executable.
	Path string
	// ShadowedBy is the executable of the same name in an earlier directory, which is the one that is run. Empty for
	// that one.
	ShadowedBy string
}

// PluginDirs are the directories in which plugins are looked for, the first match counting: Host.PluginDir, then those
// of BERTH_PLUGIN_PATH.
func (c *Config) PluginDirs() []string {
	dirs := []string{c.Host.PluginDir}
	list, _ := c.getenv(PluginPathVariable)
	for _, dir := range filepath.SplitList(list) {
		if dir == "" {
			continue
		}
		if absolute, err := filepath.Abs(dir); err == nil {
			dir = absolute
		}
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// FindPlugin gives the executable of a plugin: the one that is there, else the one that should be.
func (c *Config) FindPlugin(name string) string {
	for _, dir := range c.PluginDirs() {
		if path := filepath.Join(dir, PluginPrefix+name); executable(path) {
			return path
		}
	}
	return filepath.Join(c.Host.PluginDir, PluginPrefix+name)
}

// InstalledPlugins gives all plugins of the plugin directories by name, each before those it shadows. A directory that
// cannot be read has none.
func (c *Config) InstalledPlugins() []Installed { return installedIn(c.PluginDirs()) }

func installedIn(dirs []string) []Installed {
	var all []Installed
	first := map[string]string{}
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir)
		for _, entry := range entries {
			name, isPlugin := strings.CutPrefix(entry.Name(), PluginPrefix)
			path := filepath.Join(dir, entry.Name())
			if !isPlugin || !executable(path) {
				continue
			}
			all = append(all, Installed{Name: name, Path: path, ShadowedBy: first[name]})
			if first[name] == "" {
				first[name] = path
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Installed) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}
