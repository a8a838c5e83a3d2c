package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/local/keeper"
	"github.com/berth-dev/berth/plugins/local/store"
	"github.com/berth-dev/berth/shared/provider"
)

// Config is the configuration of the provider block.
type Config struct {
	Root      string   `berth:"root" doc:"The directory that holds the sandboxes. Default: berth/local in $XDG_STATE_HOME, or in ~/.local/state."`
	Path      []string `berth:"path" doc:"Directories in which a server's command is looked for before PATH. Default: the plugin's own directory and, if that is called plugins, the one above it."`
	Ports     string   `berth:"ports" default:"auto" oneof:"auto,fixed" doc:"auto gives every server a free port of this machine. fixed gives it the port it asks for, or fails."`
	Listener  string   `berth:"listener" default:"own" oneof:"own,any" doc:"own sends the session key only to a process that the server's command has started (where the system tells: Linux). any sends it to whatever listens on the server's port, as docker run -p needs, whose port is opened by a daemon."`
	Isolation string   `berth:"isolation" default:"none" oneof:"none,bwrap" doc:"none runs servers as plain processes. bwrap (Linux) hides other processes from them, and lets them write to their own directory only."`
}

// open checks the configuration. It makes nothing, and removes what killed processes have left.
func open(ctx context.Context, config Config, log hclog.Logger) (*Local, error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, provider.Errorf(provider.CodeInternal, "finding this plugin's own executable: %w", err)
	}
	root, err := rootOf(config)
	if err != nil {
		return nil, err
	}
	path, err := pathOf(config, executable)
	if err != nil {
		return nil, err
	}
	l := &Local{
		log: log, store: store.Store{Root: root}, executable: executable,
		path: path, fixedPorts: config.Ports == "fixed", anyListener: config.Listener == "any",
	}
	l.probe = l.newProbeClient()
	if config.Isolation == "bwrap" {
		if l.bwrap, err = findBwrap(ctx); err != nil {
			return nil, err
		}
	}
	if err := l.store.RemoveLeftovers(); err != nil {
		log.Warn("removing what an interrupted run left behind", "root", root, "error", err)
	}
	ids, err := l.store.IDs()
	if err != nil {
		log.Warn("looking for what killed keepers left behind", "root", root, "error", err)
	}
	for _, id := range ids {
		keeper.CleanUp(l.store, id)
	}
	return l, nil
}

func rootOf(config Config) (string, error) {
	root := config.Root
	home, state := os.Getenv("HOME"), os.Getenv("XDG_STATE_HOME")
	fromHome := strings.HasPrefix(root, "~/")
	switch {
	case root == "" && filepath.IsAbs(state): // a relative one does not count, says the XDG specification
		root = filepath.Join(state, "berth", "local")
	case (root == "" || fromHome) && !filepath.IsAbs(home):
		return "", provider.InvalidField("root", "must be an absolute path here: there is no home directory (HOME is not set)")
	case root == "":
		root = filepath.Join(home, ".local", "state", "berth", "local")
	case fromHome:
		root = filepath.Join(home, root[2:])
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return "", provider.InvalidField("root", "%v", err)
	}
	switch info, err := os.Stat(root); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", provider.InvalidField("root", "%v", err)
	case !info.IsDir():
		return "", provider.InvalidField("root", "%s is not a directory", root)
	case info.Mode().Perm()&0o022 != 0:
		return "", provider.InvalidField("root", "others may write to %s: choose a directory of your own, or run chmod go-w on it", root)
	}
	return root, nil
}

func pathOf(config Config, executable string) ([]string, error) {
	if config.Path == nil {
		own := filepath.Dir(executable)
		if filepath.Base(own) == "plugins" { // servers may be installed beside the host
			return []string{filepath.Dir(own), own}, nil
		}
		return []string{own}, nil
	}
	var path []string
	for _, dir := range config.Path {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return nil, provider.InvalidField("path", "%v", err)
		}
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return nil, provider.InvalidField("path", "%s is not a directory", dir)
		}
		path = append(path, dir)
	}
	return path, nil
}

// findBwrap returns the path of a bubblewrap that works here.
func findBwrap(ctx context.Context) (string, error) {
	if runtime.GOOS != "linux" {
		return "", provider.InvalidField("isolation", `bubblewrap exists for Linux only: use "none"`)
	}
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		return "", provider.InvalidField("isolation", "bubblewrap is not installed (no bwrap in PATH): install the package "+
			"bubblewrap, for example with `apt-get install bubblewrap` or `dnf install bubblewrap`")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	trial := exec.CommandContext(ctx, bwrap, append(bwrapNamespaces(), "--", "true")...)
	if output, err := trial.CombinedOutput(); err != nil {
		return "", provider.InvalidField("isolation", "bubblewrap does not work here (%v: %.300s): it needs a kernel that lets "+
			"users make namespaces", err, strings.TrimSpace(string(output)))
	}
	return bwrap, nil
}
