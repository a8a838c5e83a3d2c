package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// PluginPrefix is the prefix of the file name of every plugin. The plugin's name follows.
const PluginPrefix = "berth-provider-"

// PluginPathVariable is the environment variable with further plugin directories, separated as in PATH.
const PluginPathVariable = "BERTH_PLUGIN_PATH"

// Installed is a plugin in one of the plugin directories.
type Installed struct {
	Name string
	// Path is the executable.
	Path string
	// ShadowedBy is the executable of the same name in an earlier directory, which is run instead. It is empty for the
	// one that is run.
	ShadowedBy string
}

// PluginDirs returns the directories in which to look for plugins: Host.PluginDir, then those of BERTH_PLUGIN_PATH. The
// first match counts.
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

// FindPlugin returns the path of a plugin's executable. If there is none, it returns where it should be.
func (c *Config) FindPlugin(name string) string {
	for _, dir := range c.PluginDirs() {
		if path := filepath.Join(dir, PluginPrefix+name); executable(path) {
			return path
		}
	}
	return filepath.Join(c.Host.PluginDir, PluginPrefix+name)
}

// InstalledPlugins returns all plugins in the plugin directories, sorted by name, each before those it shadows.
// Directories that cannot be read are skipped.
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
