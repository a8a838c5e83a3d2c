package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// LockName is the name of the lock file, which is beside the configuration and has the checksums of trusted plugins.
const LockName = "berth.lock.hcl"

// Lock is the content of a lock file. A configuration with a lock file runs only the plugins in it.
type Lock struct {
	// Path is the path of the lock file.
	Path string
	// Plugins are the trusted plugins by name.
	Plugins map[string]Locked
}

// Locked is a trusted plugin.
type Locked struct {
	// Version is the plugin's description of itself when it was locked.
	Version string
	// SHA256 are the checksums of its binary in hex, by platform, such as "linux_amd64".
	SHA256 map[string]string
}

// Platform is the name of this platform in a lock file.
const Platform = runtime.GOOS + "_" + runtime.GOARCH

// lockHeader begins every lock file.
const lockHeader = `# The plugin binaries that the configuration beside this file trusts. berth runs no others.
# Made by "berth plugin lock", which also accepts a new binary. Keep it with the configuration.
`

// LockPath returns the path of the configuration's lock file, which need not exist. It is empty for the built-in
// configuration.
func (c *Config) LockPath() string {
	if c.Path == "" {
		return ""
	}
	return filepath.Join(c.dir, LockName)
}

// readLock reads the lock file, if there is one.
func (c *Config) readLock() hcl.Diagnostics {
	path := c.LockPath()
	source, err := readText(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return hcl.Diagnostics{unreadable(path, err)}
	}
	body, diagnostics := c.parse(path, source)
	if diagnostics.HasErrors() {
		return diagnostics
	}
	var file struct {
		Plugins []struct {
			Name    string            `hcl:"name,label"`
			Version string            `hcl:"version"`
			SHA256  map[string]string `hcl:"sha256"`
		} `hcl:"plugin,block"`
	}
	diagnostics = append(diagnostics, gohcl.DecodeBody(body, nil, &file)...)
	c.Lock = &Lock{Path: path, Plugins: map[string]Locked{}}
	for i, plugin := range file.Plugins {
		at := body.Blocks[i].DefRange()
		if _, twice := c.Lock.Plugins[plugin.Name]; twice {
			diagnostics = append(diagnostics, mistake("Duplicate plugin", at, "The plugin %q is locked twice.", plugin.Name))
		}
		for platform, sum := range plugin.SHA256 {
			if !sha256Form.MatchString(sum) {
				diagnostics = append(diagnostics, mistake("Unacceptable value", at,
					"The checksum of %q for %s must be 64 lower-case hex digits.", plugin.Name, platform))
			}
		}
		c.Lock.Plugins[plugin.Name] = Locked{Version: plugin.Version, SHA256: plugin.SHA256}
	}
	return diagnostics
}

// Write writes the lock file atomically. The same content always results in the same text.
func (l *Lock) Write() error {
	file := hclwrite.NewEmptyFile()
	for _, name := range slices.Sorted(maps.Keys(l.Plugins)) {
		plugin := l.Plugins[name]
		sums := map[string]cty.Value{}
		for platform, sum := range plugin.SHA256 {
			sums[platform] = cty.StringVal(sum)
		}
		file.Body().AppendNewline()
		body := file.Body().AppendNewBlock("plugin", []string{name}).Body()
		body.SetAttributeValue("version", cty.StringVal(plugin.Version))
		body.SetAttributeValue("sha256", cty.ObjectVal(sums))
	}
	return replaceFile(l.Path, append([]byte(lockHeader), hclwrite.Format(file.Bytes())...))
}

// replaceFile replaces a file atomically, so that nobody reads half of it.
func replaceFile(path string, text []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(text)
	err = errors.Join(err, file.Chmod(0o644), file.Sync(), file.Close())
	if err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

// Trust describes which binary of a plugin may be run.
type Trust struct {
	// SHA256 is the checksum that the binary must have. If empty, any binary may be run.
	SHA256 string
	// Refusal is the reason why no binary may be run, whatever its checksum. It is normally empty.
	Refusal string
	// Remedy tells a user how to accept another binary. If empty, the remedy is to change the provider block's sha256.
	Remedy string
}

// Trust returns which binary of the provider's plugin may be run: the one of its block or of the lock file. If both
// name one, they must agree.
func (p *Provider) Trust() Trust {
	trust := p.config.Trust(p.Plugin)
	switch {
	case p.unlisted && p.Path == p.config.FindPlugin(p.Plugin):
		return trust
	case p.unlisted: // whoever names a file trusts it
		return Trust{}
	case p.SHA256 == "":
		if p.config.Lock != nil && trust.SHA256 == "" {
			trust.Refusal = fmt.Sprintf("the plugin %q is not in %s for this platform (%s), and nothing else is run",
				p.Plugin, p.config.Lock.Path, Platform)
		}
		return trust
	case trust.SHA256 == "":
		return Trust{SHA256: p.SHA256}
	case trust.SHA256 != p.SHA256:
		trust.Refusal = fmt.Sprintf("the provider block of %q and %s trust different binaries of the plugin %q, %s and %s",
			p.Label, p.config.Lock.Path, p.Plugin, p.SHA256, trust.SHA256)
	}
	return trust
}

// Trust returns which binary of a plugin the lock file trusts. A plugin that the lock file lacks is accepted: whoever
// runs it does so knowingly.
func (c *Config) Trust(plugin string) Trust {
	if c.Lock == nil {
		return Trust{}
	}
	remedy := "run berth plugin lock " + plugin
	if c.Path != "config.hcl" { // which is found without being named
		remedy += " --config " + c.Path
	}
	return Trust{SHA256: c.Lock.Plugins[plugin].SHA256[Platform], Remedy: remedy}
}
