// Package config reads berth's configuration: HCL into typed values, and every mistake into a diagnostic that points at
// its line.
//
// Reading has two passes. Load needs no plugin: it checks everything the host owns and leaves the config blocks, which
// belong to the plugins, unevaluated. Provider.PluginConfig reads one config block, once the plugin has described what
// may stand in it.
package config

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/redact"
)

// Config is a configuration that was read. Its methods and those of its providers may be called concurrently.
type Config struct {
	// Path is the file as it was named to Load, and empty for the built-in configuration.
	Path  string
	Host  Host
	State State
	// Providers are in the order of the file. There is at least one unless Load reported errors.
	Providers []*Provider
	// Secrets takes in the secret values that are met, in Load and in PluginConfig. Whatever berth prints goes through it.
	Secrets *redact.Set
	// Lock is what the lock file beside the configuration says, and nil when there is none.
	Lock *Lock

	dir       string // what relative paths are relative to; absolute
	getenv    func(string) (string, bool)
	functions *hcl.EvalContext
	server    serverSettings
	health    connect.Health
	limits    connect.Limits
	fallback  hcl.Range // where a mistake points that no block is to blame for

	mutex sync.Mutex
	files map[string]*file
}

// Host is what concerns this installation of berth.
type Host struct {
	// PluginDir is where plugin binaries are, before all other directories of Config.PluginDirs. Absolute.
	PluginDir string
	// StateDir is where berth keeps what it must remember. Absolute; need not exist.
	StateDir string
	// Owner names this installation: two owners never touch each other's sandboxes. Empty when not configured; the
	// caller then derives one from the secret.
	Owner string
	// Secret is what session keys are derived from. Empty when not configured; the caller then keeps one of its own in
	// StateDir.
	Secret string
	// DefaultProvider is the label of the provider used when none is asked for: the configured one, or the only one.
	// Empty when there are several and none is named.
	DefaultProvider string
	// LogLevel is off, error, warn, info, debug or trace.
	LogLevel string
}

// Provider is one provider block: one plugin process with its own credentials.
type Provider struct {
	// Label is the block's name, unique in the configuration.
	Label string
	// Plugin is the plugin's name, and Path its executable: absolute, not checked to exist (see CheckPlugin).
	Plugin string
	Path   string
	// SHA256 is 64 lower-case hex digits that the executable must have, or empty.
	SHA256 string
	// Env is added to the plugin's environment. Its values may be secret.
	Env map[string]string
	// MTLS is whether the connection to the plugin is encrypted.
	MTLS bool
	// StartTimeout bounds the start of the plugin process, up to and including its configuration.
	StartTimeout time.Duration
	// Server is what is started in this provider's sandboxes. Its Health.Timeout is Health.ProbeTimeout.
	Server connect.Server
	Health connect.Health
	Limits connect.Limits
	// Lifetime is after how long the provider ends a sandbox by itself.
	Lifetime time.Duration
	// Labels go on every sandbox beside berth's own.
	Labels map[string]string

	config    *Config
	found     bool      // Path was looked for in the plugin directories, not configured
	stranger  bool      // no block of the configuration names it
	def       hcl.Range // the block's header
	named     hcl.Range // what names the plugin: the path, the plugin attribute or the label
	body      *hclsyntax.Body
	bodyRange hcl.Range         // of the config block's header; the provider's own when there is none
	fromEnv   map[string]string // by attribute, the environment variable its value came from; under config.mutex
}

const builtinName = "(built-in configuration)"

const builtinSource = "provider \"local\" {}\n"

// Load reads the configuration file at path. pluginDir is where plugins are when the file does not say; getenv looks an
// environment variable up as os.LookupEnv does; secrets becomes Config.Secrets. Config blocks are not evaluated yet.
//
// The result is never nil, so that diagnostics can be written with it, but it is whole only when there are no errors.
func Load(
	path, pluginDir string, getenv func(string) (string, bool), secrets *redact.Set,
) (*Config, hcl.Diagnostics) {
	c := newConfig(pluginDir, getenv, secrets)
	c.Path = path
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return c, hcl.Diagnostics{unreadable(path, err)}
	}
	c.dir = dir
	source, err := readText(path)
	if err != nil {
		return c, hcl.Diagnostics{unreadable(path, err)}
	}
	diagnostics := c.read(path, source)
	return c, c.finish(append(diagnostics, c.readLock()...))
}

// Default is the configuration without a file: the local provider and nothing else. It reports errors only when the
// environment gives no place to keep state.
func Default(
	pluginDir string, getenv func(string) (string, bool), secrets *redact.Set,
) (*Config, hcl.Diagnostics) {
	c := newConfig(pluginDir, getenv, secrets)
	return c, c.finish(c.read(builtinName, []byte(builtinSource)))
}

// Provider gives the provider of that label, or the default one for "".
func (c *Config) Provider(label string) (*Provider, error) {
	if label == "" {
		label = c.Host.DefaultProvider
	}
	for _, p := range c.Providers {
		if p.Label == label {
			return p, nil
		}
	}
	labels := c.labels()
	if label == "" {
		return nil, fmt.Errorf("several providers are configured (%s): choose one with --provider, or name one in the "+
			"configuration with host { provider = ... }", strings.Join(labels, ", "))
	}
	return nil, fmt.Errorf("there is no provider %q in the configuration.%s Configured: %s",
		label, DidYouMean(label, labels), strings.Join(labels, ", "))
}

// Request returns the request to connect a session on this provider.
func (p *Provider) Request(session string) connect.Request {
	return connect.Request{
		Session: session, Server: p.Server, Health: p.Health, Limits: p.Limits, Labels: p.Labels, Lifetime: p.Lifetime,
	}
}

// Has says that there is a provider with the label.
func (c *Config) Has(label string) bool {
	return slices.Contains(c.labels(), label)
}

// Write prints diagnostics with their source lines. Comments, and literal values that are or might be secret, are
// blotted out of those lines.
func (c *Config) Write(w io.Writer, diagnostics hcl.Diagnostics, color bool) error {
	var text strings.Builder
	if err := hcl.NewDiagnosticTextWriter(&text, c.maskedFiles(), 0, color).WriteDiagnostics(diagnostics); err != nil {
		return err
	}
	_, err := io.WriteString(w, c.Secrets.String(text.String()))
	return err
}

func newConfig(pluginDir string, getenv func(string) (string, bool), secrets *redact.Set) *Config {
	c := &Config{
		Host:    Host{PluginDir: pluginDir, StateDir: defaultStateDir(getenv), LogLevel: "warn"},
		State:   State{Lease: 30 * time.Second},
		Secrets: secrets,
		getenv:  getenv,
		health:  connect.DefaultHealth(),
		limits:  connect.DefaultLimits(),
		files:   map[string]*file{},
	}
	c.functions = c.functionContext()
	return c
}

// defaultStateDir follows the XDG base directory rules, and is empty when the environment has neither variable.
func defaultStateDir(getenv func(string) (string, bool)) string {
	if dir, _ := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "berth")
	}
	if home, _ := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "berth")
	}
	return ""
}

func (c *Config) labels() []string {
	var labels []string
	for _, p := range c.Providers {
		labels = append(labels, p.Label)
	}
	return labels
}

func unreadable(path string, err error) *hcl.Diagnostic {
	return &hcl.Diagnostic{
		Severity: hcl.DiagError,
		Summary:  "Cannot read the configuration",
		Detail:   fmt.Sprintf("%s: %s.", path, reason(err)),
	}
}
