package main

import (
	"bufio"
	"context"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	modal "github.com/modal-labs/modal-client/go"

	"github.com/berth-dev/berth/shared/provider"
)

// A server is started by a script. The script stays until the server has ended, so that the server is part of a program
// which the cloud runs and knows of; it says what became of the start and is not listened to after that. It is safe to
// repeat and to run twice at once.
//
// It keeps what it knows in .berth in the home directory, one directory for each port: pid (the number and the start
// time of the process, so that another one with that number is not taken for it), exit (the exit code) and log.

// prelude finds the directory, and says whether the server's process lives. It needs a POSIX shell, cat, mkdir, sleep
// and tail.
const prelude = `
for base in "$HOME" "${TMPDIR:-/tmp}"; do
  root=$base/.berth
  [ -n "$base" ] && (umask 077 && mkdir -p "$root") 2>/dev/null && [ -w "$root" ] && break
done
started() {
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  set -- ${stat##*) }
  [ "$1" != Z ] && [ "$1" != X ] || return 1
  shift 19
  echo "$1"
}
alive() {
  pid= since=
  [ -r "$dir/pid" ] && read -r pid since <"$dir/pid"
  [ -n "$since" ] && [ "$(started "$pid")" = "$since" ]
}
report() {
  if alive; then
    echo "berth: running"
  elif [ -e "$dir/pid" ]; then
    echo "berth: exited $(cat "$dir/exit" 2>/dev/null)"
    tail -n 20 "$dir/log" 2>/dev/null | tail -c 8192
  else
    echo "berth: none"
  fi
  echo
  echo "berth: end"
}
`

// starter starts the server unless it runs. Its arguments: the port, how long to look on (in twentieths of a second), the
// working directory or nothing, the names of the environment's variables, and the command. $0 is the runner.
const starter = prelude + `
port=$1 looks=$2 workdir=$3 names=$4
shift 4
trap '' HUP
dir=$root/$port
(umask 077 && mkdir -p "$dir") || exit 1
tries=0
until mkdir "$dir/lock" 2>/dev/null; do
  tries=$((tries + 1))
  [ $tries -lt 40 ] || break # whoever holds it has died: a start takes a moment
  sleep 0.05
done
mine=
if ! alive; then
  rm -f "$dir/exit" "$dir/pid"
  [ ! -e "$dir/log" ] || mv -f "$dir/log" "$dir/log.before"
  sh -c "$0" berth-server "$dir" "$workdir" "$names" "$@" >"$dir/log" 2>&1 </dev/null &
  mine=$!
  echo "$mine $(started $mine)" >"$dir/pid"
  echo "$port" >"$root/current"
fi
rmdir "$dir/lock" 2>/dev/null
while [ "$looks" -gt 0 ] && alive && [ ! -e "$dir/exit" ]; do
  looks=$((looks - 1))
  sleep 0.05
done
[ ! -e "$dir/exit" ] || [ -z "$mine" ] || wait "$mine"
report
exec >/dev/null 2>&1
[ -z "$mine" ] || wait "$mine"
`

// runner becomes the server's parent, which notes how it ended. The variables come in under other names, so that none of
// them (PATH, HOME, LD_PRELOAD) changes what the scripts themselves do.
const runner = `
dir=$1 workdir=$2 names=$3
shift 3
if [ -n "$workdir" ]; then
  mkdir -p "$workdir" 2>/dev/null
  cd "$workdir" || { echo 126 >"$dir/exit"; exit 126; }
fi
for name in $names; do
  eval "export $name=\"\$BERTH_ENV_$name\""
  unset "BERTH_ENV_$name"
done
"$@"
echo $? >"$dir/exit"
`

const reader = prelude + `
dir=$root/$(cat "$root/current" 2>/dev/null)
report
`

const logReader = prelude + `
dir=$root/$(cat "$root/current" 2>/dev/null)
cat "$dir/log.before" "$dir/log" 2>/dev/null | tail -n "$1" | tail -c 2000000
echo
echo "berth: end"
`

func startScript(port, looks int, workdir string, command []string, env map[string]string) []string {
	names := strings.Join(slices.Sorted(maps.Keys(env)), " ")
	return append([]string{"sh", "-c", starter, runner, strconv.Itoa(port), strconv.Itoa(looks), workdir, names}, command...)
}

func statusScript() []string { return []string{"sh", "-c", reader, "berth"} }

func logScript(lines int) []string {
	return []string{"sh", "-c", logReader, "berth", strconv.Itoa(lines)}
}

const envPrefix = "BERTH_ENV_"

// wrapped gives the environment under the names by which it comes in. It travels in the protocol's own field for it, so
// that it is in no command line.
func wrapped(env map[string]string) map[string]string {
	renamed := map[string]string{}
	for name, value := range env {
		renamed[envPrefix+name] = value
	}
	return renamed
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// commandOf fills in the ports, and refuses what no shell can pass on.
func (m *Modal) commandOf(server provider.Server) (command []string, env map[string]string, err error) {
	command, env = server.Expand(m.portOf(server), server.ExtraPorts)
	if len(command) == 0 || command[0] == "" {
		return nil, nil, provider.Errorf(provider.CodeInvalid, "the server has no command")
	}
	for name, value := range env {
		if !variableName.MatchString(name) {
			return nil, nil, provider.Errorf(provider.CodeInvalid, "%.100q cannot be the name of an environment variable in Modal", name)
		}
		if strings.ContainsRune(value, 0) {
			return nil, nil, provider.Errorf(provider.CodeInvalid, "the environment variable %s holds a zero byte", name)
		}
	}
	if strings.ContainsRune(strings.Join(append(command, server.Workdir), ""), 0) {
		return nil, nil, provider.Errorf(provider.CodeInvalid, "the server's command or working directory holds a zero byte")
	}
	return command, env, nil
}

// run runs a script that is safe to repeat, and gives what it said.
func (m *Modal) run(ctx context.Context, id, doing string, script []string, env map[string]string) ([]string, error) {
	return patiently(ctx, m, m.pace.call, doing, func(ctx context.Context) ([]string, error) {
		return m.runOnce(ctx, id, script, env)
	})
}

// outputLimit is the most that is read of what a script says.
const outputLimit = 4 << 20

func (m *Modal) runOnce(ctx context.Context, id string, script []string, env map[string]string) ([]string, error) {
	handle := m.handle(ctx, id)
	process, err := handle.Exec(ctx, script, &modal.SandboxExecParams{Env: env, Stdout: modal.Pipe, Stderr: modal.Ignore})
	if err != nil {
		if !m.knowsWay(id) {
			_ = handle.Detach()
		}
		return nil, err
	}
	defer m.keep(handle)
	defer process.Stdout.Close()
	// Reading knows no context.
	defer context.AfterFunc(ctx, func() { process.Stdout.Close() })()
	var lines []string
	text := bufio.NewReader(io.LimitReader(process.Stdout, outputLimit))
	for {
		line, err := text.ReadString('\n')
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "berth: end":
			if last := len(lines) - 1; last >= 0 && lines[last] == "" {
				lines = lines[:last]
			}
			return lines, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == io.EOF:
			return nil, &provider.Error{
				Code: provider.CodeFailed, Reason: "NO_SHELL",
				Message: "the sandbox cannot run the script that starts servers; the image needs a shell (sh) with cat, mkdir, sleep and tail: " +
					strings.Join(provider.Tail(append(lines, line)), "; "),
			}
		case err != nil:
			return nil, err
		}
		lines = append(lines, line)
	}
}

// report is what a script says of the server.
type report struct {
	running bool
	exited  bool
	code    *int // nil where nobody knows, as when it was killed with its parent
	log     []string
}

func read(lines []string) report {
	for i, line := range lines {
		state, ours := strings.CutPrefix(line, "berth: ")
		if !ours {
			continue
		}
		said := report{running: state == "running"}
		if code, exited := strings.CutPrefix(state, "exited"); exited {
			said.exited, said.log = true, provider.Tail(withoutLast(lines[i+1:]))
			if number, err := strconv.Atoi(strings.TrimSpace(code)); err == nil {
				said.code = &number
			}
		}
		return said
	}
	return report{}
}

// withoutLast leaves out the empty line that a log with a line's end at its own end gets.
func withoutLast(lines []string) []string {
	if last := len(lines) - 1; last >= 0 && lines[last] == "" {
		return lines[:last]
	}
	return lines
}

// peek asks a sandbox's worker about the server, once and briefly. The control plane has no part in it where the way to
// the worker is known.
func (m *Modal) peek(ctx context.Context, id string) (report, error) {
	lines, err := ask(ctx, m.pace.peek, "looking at the server", func(ctx context.Context) ([]string, error) {
		return m.runOnce(ctx, id, statusScript(), nil)
	})
	return read(lines), err
}

// Logs gives what the server wrote last, in this run and the one before.
func (m *Modal) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	if err := m.hold(ctx, req.SandboxRef); err != nil || req.Lines <= 0 {
		return nil, err
	}
	lines, err := m.run(ctx, req.SandboxID, "reading the server's log", logScript(req.Lines), nil)
	if err != nil {
		return nil, m.explainSilence(ctx, req.SandboxID, err)
	}
	return withoutLast(lines), nil
}
