package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/connect"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/host/redact"
	"github.com/berth-dev/berth/host/supervise"
	"github.com/berth-dev/berth/shared/provider"
)

// stopTimeout bounds the end of all plugins when a command is over.
const stopTimeout = 15 * time.Second

// app is one run of the command: its streams, its configuration once it is loaded, and the plugins it has started.
type app struct {
	stdout *resultWriter
	stderr *redact.Writer // writes to screen
	screen *screen
	// secrets are what must not be shown. The configuration adds to them while it is read.
	secrets *redact.Set
	getenv  func(string) (string, bool)
	// ndjson says that standard error is for programs: one JSON object a line.
	ndjson atomic.Bool
	// connecting says that there may be something to undo.
	connecting  atomic.Bool
	interrupted atomic.Bool
	flags       struct{ config, output, logLevel string }

	conf    *config.Config
	log     hclog.Logger
	mutex   sync.Mutex
	plugins map[*config.Provider]*supervise.Plugin
	store   records.Store
	hooks   Hooks
}

// Hooks stand between the command and what it works with. They are for programs that test it: nil leaves things as they
// are.
type Hooks struct {
	Provider func(*supervise.Plugin) provider.Provider
	Records  func(records.Store) records.Store
}

func (h Hooks) provider(p *supervise.Plugin) provider.Provider {
	if h.Provider == nil {
		return p
	}
	return h.Provider(p)
}

func (h Hooks) records(s records.Store) records.Store {
	if h.Records == nil {
		return s
	}
	return h.Records(s)
}

func newApp(stdout, stderr io.Writer, getenv func(string) (string, bool)) *app {
	secrets := &redact.Set{}
	screen := newScreen(stderr)
	return &app{
		stdout: &resultWriter{to: stdout}, stderr: secrets.Writer(screen), screen: screen, secrets: secrets, getenv: getenv,
		plugins: map[*config.Provider]*supervise.Plugin{},
	}
}

// say writes one line to standard error.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }

// note says something that only people need to know.
func (a *app) note(format string, args ...any) {
	if !a.ndjson.Load() {
		a.say(format, args...)
	}
}

// diagnosed is a configuration that has mistakes. The diagnostics are shown by report.
type diagnosed struct {
	conf        *config.Config
	diagnostics hcl.Diagnostics
}

func (d diagnosed) Error() string {
	var mistakes []string
	for _, m := range d.diagnostics {
		if m.Severity != hcl.DiagError {
			continue
		}
		text := m.Summary + ": " + m.Detail
		if m.Subject != nil {
			text = fmt.Sprintf("%s line %d: %s", m.Subject.Filename, m.Subject.Start.Line, text)
		}
		mistakes = append(mistakes, text)
	}
	switch more := len(mistakes) - 1; more {
	case 0:
		return mistakes[0]
	case 1:
		return mistakes[0] + " There is one more mistake in the configuration."
	default:
		return fmt.Sprintf("%s There are %d more mistakes in the configuration.", mistakes[0], more)
	}
}

// load reads the configuration and sets up the log. It must come before everything that needs either.
func (a *app) load() error {
	var diagnostics hcl.Diagnostics
	if path := a.configPath(); path != "" {
		a.conf, diagnostics = config.Load(path, a.defaultPluginDir(), a.getenv, a.secrets)
	} else {
		a.conf, diagnostics = config.Default(a.defaultPluginDir(), a.getenv, a.secrets)
	}
	level, err := a.level()
	if err != nil {
		return err
	}
	a.log = hclog.New(&hclog.LoggerOptions{Name: "berth", Level: level, Output: a.stderr, JSONFormat: a.ndjson.Load()})
	if diagnostics.HasErrors() {
		return diagnosed{a.conf, diagnostics}
	}
	return nil
}

func (a *app) configPath() string {
	if a.flags.config != "" {
		return a.flags.config
	}
	if path, _ := a.getenv("BERTH_CONFIG"); path != "" {
		return path
	}
	if _, err := os.Stat("config.hcl"); err == nil {
		return "config.hcl"
	}
	return ""
}

// defaultPluginDir is plugins beside the executable, wherever a link to it stands.
func (a *app) defaultPluginDir() string {
	executable, err := os.Executable()
	if err != nil {
		return "plugins"
	}
	if target, err := filepath.EvalSymlinks(executable); err == nil {
		executable = target
	}
	return filepath.Join(filepath.Dir(executable), "plugins")
}

func (a *app) level() (hclog.Level, error) {
	name, from := a.conf.Host.LogLevel, "log_level"
	if env, _ := a.getenv("BERTH_LOG"); env != "" {
		name, from = env, "BERTH_LOG"
	}
	if a.flags.logLevel != "" {
		name, from = a.flags.logLevel, "--log-level"
	}
	level := hclog.LevelFromString(name)
	if level == hclog.NoLevel {
		return level, usagef("%s %s: the levels are off, error, warn, info, debug and trace", from, name)
	}
	return level, nil
}

// provider is config.Provider for a --provider flag, as a mistake in the command line when there is no such provider.
func (a *app) provider(label string) (*config.Provider, error) {
	p, err := a.conf.Provider(label)
	if err != nil {
		return nil, usageError{err}
	}
	return p, nil
}

// plugin gives the supervisor of a provider's plugin, the same one each time.
func (a *app) plugin(p *config.Provider) *supervise.Plugin {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if plugin := a.plugins[p]; plugin != nil {
		return plugin
	}
	spec := a.spec(p)
	spec.Configure = func(d provider.Description) ([]byte, error) {
		values, diagnostics := p.PluginConfig(d)
		if diagnostics.HasErrors() {
			return nil, diagnosed{a.conf, diagnostics}
		}
		return values, nil
	}
	plugin := supervise.New(spec)
	a.plugins[p] = plugin
	return plugin
}

// spec says how to run a provider's plugin, without a configuration for it.
func (a *app) spec(p *config.Provider) supervise.Spec {
	trust := p.Trust()
	return supervise.Spec{
		Name: p.Label, Path: p.Path, SHA256: trust.SHA256, Remedy: trust.Remedy, Refusal: trust.Refusal, Env: p.Env, MTLS: p.MTLS, StartTimeout: p.StartTimeout,
		Reattach: a.reattach(p.Label), Log: a.log,
	}
}

// reattach finds the provider in the list of plugins that run under a debugger: NAME=SOCKET,NAME=SOCKET.
func (a *app) reattach(label string) string {
	list, _ := a.getenv(provider.ReattachVariable)
	for entry := range strings.SplitSeq(list, ",") {
		if name, socket, ok := strings.Cut(entry, "="); ok && name == label {
			return socket
		}
	}
	return ""
}

// close stops all plugins, at the same time, and then gives up the records.
func (a *app) close() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var stops sync.WaitGroup
	for _, plugin := range a.plugins {
		stops.Go(func() {
			if err := plugin.Stop(ctx); err != nil {
				a.log.Warn("stopping a plugin", "error", err)
			}
		})
	}
	stops.Wait()
	if a.store != nil {
		if err := a.store.Close(); err != nil {
			a.log.Warn("closing the records", "error", err)
		}
	}
}

// owner names this installation on its sandboxes. All hosts with the same secret are one owner, unless configured
// otherwise.
func (a *app) owner(secret string) string {
	if a.conf.Host.Owner != "" {
		return a.conf.Host.Owner
	}
	sum := sha256.Sum256([]byte("berth owner\x00" + secret))
	return "berth-" + hex.EncodeToString(sum[:6])
}

// secret is what session keys are derived from: the configured one, or one made on first use and kept in the state
// directory.
func (a *app) secret() (string, error) {
	secret := a.conf.Host.Secret
	if secret == "" {
		var err error
		if secret, err = keptSecret(a.conf.Host.StateDir); err != nil {
			return "", err
		}
	}
	a.secrets.Add(secret)
	return secret, nil
}

func keptSecret(dir string) (string, error) {
	path := filepath.Join(dir, "secret")
	kept, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeSecret(dir, path); err == nil || errors.Is(err, fs.ErrExist) {
			kept, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return "", withHint("set state_dir in the host block to a directory that can be written", &connect.Error{
			Code: connect.CodeInvalidConfig, Message: "the host's secret cannot be kept: " + err.Error(), Cause: err,
		})
	}
	secret := strings.TrimSpace(string(kept))
	if len(secret) < 32 {
		return "", withHint("put the file back as it was; or remove it, and a new secret is made that opens none of the present sandboxes",
			&connect.Error{
				Code: connect.CodeInvalidConfig, Message: path + " is damaged: the host's secret has at least 32 characters",
			})
	}
	return secret, nil
}

// makeSecret writes a new secret under a temporary name and links it into place, so that of several processes that do
// this at once exactly one wins and no one reads half a secret.
func makeSecret(dir, path string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, ".secret-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if _, err := file.WriteString(randomHex(32) + "\n"); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	return os.Link(file.Name(), path)
}
