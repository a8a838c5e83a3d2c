package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"

	"github.com/berth-dev/berth/host/config"
	"github.com/berth-dev/berth/host/fleet"
	"github.com/berth-dev/berth/host/redact"
	"github.com/berth-dev/berth/shared/provider"
)

// app is one call of the command: its streams and, once it is loaded, its configuration and the fleet.
type app struct {
	stdout *outlet // the result
	screen *screen // standard error
	// secrets are what must not be shown. The configuration adds to them while it is read.
	secrets *redact.Set
	getenv  func(string) (string, bool)
	// ndjson says that standard error is for programs: one JSON object a line.
	ndjson atomic.Bool
	// connecting says that there may be something to undo.
	connecting  atomic.Bool
	interrupted atomic.Bool
	// checking says that the command is the one that shows every mistake of the configuration.
	checking bool
	flags    struct{ config, output, logLevel string }

	// Set by load.
	conf  *config.Config
	log   hclog.Logger
	fleet *fleet.Fleet
	// options are those that the fleet is made with; load completes them.
	options fleet.Options
}

func newApp(stdout, stderr io.Writer, getenv func(string) (string, bool)) *app {
	a := &app{stdout: newResultOutlet(stdout), secrets: &redact.Set{}, getenv: getenv}
	a.screen = newScreen(stderr, a.leftOut)
	return a
}

// say writes one line to standard error. The format is ours; what the arguments say is cleaned as words does.
func (a *app) say(format string, args ...any) { fmt.Fprintln(a.screen, a.words(format, args...)) }

// note says something that only people need to know.
func (a *app) note(format string, args ...any) {
	if !a.ndjson.Load() {
		a.say(format, args...)
	}
}

// load reads the configuration and sets up the log and the fleet. It must come before everything that needs them. After a
// *fleet.ConfigError they are there, for what could be read of the configuration.
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
	a.log = a.newLog(level)
	a.options.Log = a.log
	a.options.TellKey = func(key string) { a.secrets.Add(key) }
	a.options.Reattach, _ = a.getenv(provider.ReattachVariable)
	a.fleet = fleet.New(a.conf, a.options)
	if diagnostics.HasErrors() {
		return &fleet.ConfigError{Diagnostics: diagnostics}
	}
	return nil
}

// session loads the configuration and returns a session on the provider with the label or, without one, on its own or the
// default one.
func (a *app) session(ctx context.Context, id, label string) (*fleet.Session, error) {
	if err := a.load(); err != nil {
		return nil, err
	}
	return a.fleet.Session(ctx, id, label)
}

// existing is session for what is done to a session that is there already.
func (a *app) existing(ctx context.Context, id, label string) (*fleet.Session, error) {
	if err := a.load(); err != nil {
		return nil, err
	}
	return a.fleet.ExistingSession(ctx, id, label)
}

// waiting tells a person for whom a command waits.
func (a *app) waiting(id string) func(holder string) {
	return func(holder string) { a.note("berth: waiting: %s is working on session %s", holder, id) }
}

// close ends what the command has started.
func (a *app) close() {
	if a.fleet == nil {
		return
	}
	if err := a.fleet.Close(); err != nil {
		a.log.Warn("not everything has ended as it should", "error", err)
	}
}

func (a *app) configPath() string {
	if a.flags.config != "" {
		return a.flags.config
	}
	if path, _ := a.getenv("BERTH_CONFIG"); path != "" {
		return path
	}
	if _, err := os.Lstat("config.hcl"); err == nil { // a link to nothing is no reason to use another one
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
