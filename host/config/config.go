// Package config reads berth's configuration: it turns HCL into typed values, and every mistake into a diagnostic for
// its line.
//
// Reading has two passes. Load needs no plugin: it checks everything except the config blocks, which belong to the
// plugins. Provider.PluginConfig evaluates one config block, given the attributes that its plugin described.
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

// Config is a loaded configuration. Its methods and those of its providers may be called concurrently.
type Config struct {
	// Path is the path given to Load. It is empty for the built-in configuration.
	Path  string
	Host  Host
	State State
	// Providers are in the order of the file. There is at least one unless Load reported errors.
	Providers []*Provider
	// Secrets collects the secret values found by Load and PluginConfig. Everything berth prints is redacted with it.
	Secrets *redact.Set
	// Lock is the content of the lock file beside the configuration, or nil if there is none.
	Lock *Lock

	dir       string // base of relative paths; absolute
	getenv    func(string) (string, bool)
	functions *hcl.EvalContext
	server    serverSettings
	health    connect.Health
	limits    connect.Limits
	fallback  hcl.Range // where diagnostics that belong to no block point

	mutex sync.Mutex
	files map[string]*file
	// literalSecret is whether a secret stands in the file itself, rather than in a variable or another file.
	literalSecret bool
}

// Host has the settings of this installation of berth.
type Host struct {
	// PluginDir is the first of Config.PluginDirs. It is absolute.
	PluginDir string
	// StateDir is where berth keeps its state. It is absolute and need not exist. It is empty if neither the file nor the
	// environment names one: see Config.CheckStateDir.
	StateDir string
	// Owner names this installation. No owner touches another owner's sandboxes. If empty, the caller derives an owner
	// from the secret.
	Owner string
	// Secret is what session keys are derived from. If empty, the caller keeps a secret of its own in StateDir.
	Secret string
	// DefaultProvider is the label of the provider to use when none is asked for: the configured one, or the only one.
	// It is empty if there are several and none is configured.
	DefaultProvider string
	// LogLevel is off, error, warn, info, debug or trace.
	LogLevel string
}

// Provider is a provider block: one plugin process with its own credentials.
type Provider struct {
	// Label is the block's name, unique in the configuration.
	Label string
	// Plugin is the plugin's name, and Path its executable: an absolute path that need not exist (see CheckPlugin).
	Plugin string
	Path   string
	// SHA256 is the checksum that the executable must have, as 64 lower-case hex digits, or empty.
	SHA256 string
	// Env is added to the plugin's environment. Its values may be secret.
	Env map[string]string
	// MTLS selects whether the connection to the plugin is encrypted.
	MTLS bool
	// StartTimeout limits the start of the plugin process including its configuration.
	StartTimeout time.Duration
	// Server is the action server of this provider's sandboxes. Its Health.Timeout is Health.ProbeTimeout.
	Server connect.Server
	Health connect.Health
	Limits connect.Limits
	// Lifetime is how long a sandbox lives before the provider ends it.
	Lifetime time.Duration
	// Labels are added to berth's own labels of every sandbox.
	Labels map[string]string

	config    *Config
	found     bool      // Path was found by FindPlugin, not configured
	unlisted  bool      // the configuration has no block for it
	def       hcl.Range // the block's header
	named     hcl.Range // what names the plugin: the attribute path or plugin, or the label
	body      *hclsyntax.Body
	bodyRange hcl.Range         // of the config block's header, or def without one
	fromEnv   map[string]string // environment variables by the attributes they set; guarded by config.mutex
}

const builtinName = "(built-in configuration)"

// BuiltIn is the text of the built-in configuration.
const BuiltIn = "provider \"local\" {}\n"

// Load reads the configuration file at path. pluginDir is the directory of plugins if the file does not set one, getenv
// looks up environment variables as os.LookupEnv does, and secrets becomes Config.Secrets. Config blocks are not
// evaluated yet.
//
// The result is never nil, so that diagnostics can be printed with it, but it is complete only without errors.
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

// Default returns the configuration without a file: a single provider, local. It reports no errors.
func Default(
	pluginDir string, getenv func(string) (string, bool), secrets *redact.Set,
) (*Config, hcl.Diagnostics) {
	c := newConfig(pluginDir, getenv, secrets)
	return c, c.finish(c.read(builtinName, []byte(BuiltIn)))
}

// Provider returns the provider with the label, or the default one if label is empty.
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
	if c.Path == "" {
		return nil, fmt.Errorf("there is no provider %q: no configuration file was found, so the built-in one counts. Configured: %s",
			label, strings.Join(labels, ", "))
	}
	return nil, fmt.Errorf("there is no provider %q in the configuration.%s Configured: %s",
		label, DidYouMean(label, labels), strings.Join(labels, ", "))
}

// CheckStateDir reports that no directory for state is known. Commands that keep no state need none.
func (c *Config) CheckStateDir() hcl.Diagnostics {
	if c.Host.StateDir != "" {
		return nil
	}
	return hcl.Diagnostics{mistake("No place for state", c.fallback,
		"Neither XDG_STATE_HOME nor HOME is set to an absolute path. Set one of them, or state_dir in the host block.")}
}

// Request returns a request to connect a session on this provider.
func (p *Provider) Request(session string) connect.Request {
	return connect.Request{
		Session: session, Server: p.Server, Health: p.Health, Limits: p.Limits, Labels: p.Labels, Lifetime: p.Lifetime,
	}
}

// Has reports whether there is a provider with the label.
func (c *Config) Has(label string) bool {
	return slices.Contains(c.labels(), label)
}

// HoldsSecrets reports whether a secret stands in the configuration file itself, as far as it was evaluated.
func (c *Config) HoldsSecrets() bool {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.literalSecret
}

// noteSecret remembers that a secret stands in the file, unless a function such as env() gives the attribute's value.
func (c *Config) noteSecret(attribute *hcl.Attribute) {
	computed := false
	if expression, ok := attribute.Expr.(hclsyntax.Node); ok {
		_ = hclsyntax.VisitAll(expression, func(node hclsyntax.Node) hcl.Diagnostics {
			_, isCall := node.(*hclsyntax.FunctionCallExpr)
			computed = computed || isCall
			return nil
		})
	}
	if !computed {
		c.mutex.Lock()
		c.literalSecret = true
		c.mutex.Unlock()
	}
}

// Write prints diagnostics with their source lines. Comments, and literals that are or may be secret, are masked in
// those lines.
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

// defaultStateDir follows the XDG base directory specification. It returns "" if neither variable is set.
func defaultStateDir(getenv func(string) (string, bool)) string {
	if dir, _ := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "berth")
	}
	if home := homeOf(getenv); home != "" {
		return filepath.Join(home, ".local", "state", "berth")
	}
	return ""
}

// homeOf returns the home directory, or "" if the environment names none.
func homeOf(getenv func(string) (string, bool)) string {
	if home, _ := getenv("HOME"); filepath.IsAbs(home) {
		return home
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
