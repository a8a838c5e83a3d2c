package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-dev/berth/plugins/local/keeper"
	"github.com/berth-dev/berth/plugins/local/store"
	"github.com/berth-dev/berth/shared/provider"
)

// passedOn are the variables a server takes over from this machine. Everything else of its environment is asked for.
var passedOn = []string{
	"PATH", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
}

// specOf returns the process to start for a server in a sandbox whose ports are reserved.
func (l *Local) specOf(record store.Record, server provider.Server) (keeper.Spec, error) {
	args, asked := server.Expand(record.Port, record.ExtraPorts)
	dir, err := l.workDir(record.ID, server.Workdir)
	if err != nil {
		return keeper.Spec{}, err
	}
	env := l.environment(asked)
	if _, ok := asked["HOME"]; !ok {
		env["HOME"] = l.store.WorkDir(record.ID)
	}
	program, err := l.findProgram(args[0], dir, env["PATH"])
	if err != nil {
		return keeper.Spec{}, err
	}
	spec := keeper.Spec{Path: program, Args: args, Dir: dir, Port: record.Port, ExtraPorts: record.ExtraPorts}
	for name, value := range env {
		spec.Env = append(spec.Env, name+"="+value)
	}
	slices.Sort(spec.Env)
	if l.bwrap != "" {
		l.isolate(&spec, l.store.WorkDir(record.ID))
	}
	return spec, nil
}

// environment returns a server's environment, but for HOME.
func (l *Local) environment(asked map[string]string) map[string]string {
	env := map[string]string{"HOST": "127.0.0.1"}
	for _, name := range passedOn {
		if value, ok := os.LookupEnv(name); ok {
			env[name] = value
		}
	}
	if l.bwrap != "" {
		env["TMPDIR"] = "/tmp"
	}
	maps.Copy(env, asked)
	return env
}

// checkServer refuses a server that cannot be started, whatever its sandbox is.
func (l *Local) checkServer(server provider.Server) error {
	command, asked := server.Expand(65535, nil)
	return provider.CheckProcess(command, l.environment(asked), server.Workdir, 0)
}

// workDir is where a server starts: its sandbox's own directory, one below it, or any other. It is made if it is missing.
func (l *Local) workDir(id, asked string) (string, error) {
	dir := asked
	if !filepath.IsAbs(asked) {
		if asked == "~" || strings.HasPrefix(asked, "~/") {
			asked = asked[1:] // the sandbox's own directory is the server's home
		}
		dir = filepath.Join(l.store.WorkDir(id), asked)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", provider.Errorf(provider.CodeFailed, "making the server's working directory: %w: name one that can be made, or one relative "+
			"to the sandbox's own", err)
	}
	return dir, nil
}

// findProgram finds the executable for a command's first word: a path, or a name that is looked for in the provider's
// path and then in the server's PATH.
func (l *Local) findProgram(name, dir, searchPath string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		program, err := exec.LookPath(name)
		if err != nil {
			return "", provider.Errorf(provider.CodeFailed, "the server's command cannot be started: %w", err)
		}
		return program, nil
	}
	places := slices.Concat(l.path, filepath.SplitList(searchPath))
	for _, place := range places {
		if !filepath.IsAbs(place) {
			continue
		}
		if program, err := exec.LookPath(filepath.Join(place, name)); err == nil {
			return program, nil
		}
	}
	return "", provider.Errorf(provider.CodeFailed, "the server's command %q was not found in %s: install it, name it by an "+
		"absolute path, or add its directory to the provider's path", name, strings.Join(places, ", "))
}

// bwrapNamespaces is the part of bubblewrap's arguments that depends on what the kernel permits: the whole file system
// to be read, devices and a process table of its own, a private /tmp, and no privileges.
func bwrapNamespaces() []string {
	return []string{
		"--die-with-parent", "--unshare-pid", "--unshare-ipc", "--cap-drop", "ALL",
		"--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",
	}
}

// isolate wraps a server into bubblewrap. Nothing secret goes into the arguments: the environment passes through.
func (l *Local) isolate(spec *keeper.Spec, work string) {
	args := append([]string{l.bwrap}, bwrapNamespaces()...)
	args = append(args, "--tmpfs", l.store.Root) // other sandboxes, and the keepers' tokens
	for _, hidden := range []string{"/tmp", l.store.Root} {
		if strings.HasPrefix(spec.Path, hidden+"/") {
			args = append(args, "--ro-bind", spec.Path, spec.Path)
		}
	}
	args = append(args, "--bind", work, work, "--chdir", spec.Dir, "--", spec.Path)
	spec.Args = append(args, spec.Args[1:]...)
	spec.Path, spec.Dir, spec.Isolated = l.bwrap, "/", true
}
