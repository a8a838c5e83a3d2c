package main

import (
	"context"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"
	toolbox "github.com/daytonaio/daytona/libs/toolbox-api-client-go"

	"github.com/berth-dev/berth/shared/provider"
)

// A server is started by a script that the sandbox's daemon runs, and not in one of the daemon's sessions: a session is
// a shell that a server's "exit" or "exec" replaces for good, it starts a second copy when the first request's answer is lost, and
// its record of a process is gone when the shell is. The script is safe to repeat and to run twice at once.
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
  if [ -r /proc/self/stat ]; then
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    set -- ${stat##*) }
    [ "$1" != Z ] && [ "$1" != X ] || return 1
    shift 19
    echo "$1"
  else
    ps -o lstart= -p "$1" 2>/dev/null
  fi
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
}
`

// starter starts the server unless it runs. Its arguments: the port, how long to look on (in twentieths of a second), the
// working directory or nothing, the names of the environment's variables, and the command.
const starter = prelude + `
port=$1 looks=$2 workdir=$3 names=$4
shift 4
dir=$root/$port
(umask 077 && mkdir -p "$dir") || exit 1
tries=0
until mkdir "$dir/lock" 2>/dev/null; do
  tries=$((tries + 1))
  [ $tries -lt 40 ] || break # whoever holds it has died: a start takes a moment
  sleep 0.05
done
if ! alive; then
  rm -f "$dir/exit" "$dir/pid"
  [ ! -e "$dir/log" ] || mv -f "$dir/log" "$dir/log.before"
  detach=nohup
  ! command -v setsid >/dev/null 2>&1 || detach=setsid
  $detach sh -c "$0" berth-server "$dir" "$workdir" "$names" "$@" >"$dir/log" 2>&1 </dev/null &
  echo "$! $(started $!)" >"$dir/pid"
  echo "$port" >"$root/current"
fi
rmdir "$dir/lock" 2>/dev/null
while [ "$looks" -gt 0 ] && alive && [ ! -e "$dir/exit" ]; do
  looks=$((looks - 1))
  sleep 0.05
done
report
`

// runner becomes the server's parent, which notes how it ended. The variables come in under other names, so that none of
// them (PATH, HOME, LD_PRELOAD) changes what the script itself does; nor may they be named as its own.
const runner = `
BERTH_RUNNER_dir=$1 BERTH_RUNNER_workdir=$2 BERTH_RUNNER_names=$3
shift 3
if [ -n "$BERTH_RUNNER_workdir" ]; then
  mkdir -p "$BERTH_RUNNER_workdir" 2>/dev/null
  cd "$BERTH_RUNNER_workdir" || { echo 126 >"$BERTH_RUNNER_dir/exit"; exit 126; }
fi
for BERTH_RUNNER_name in $BERTH_RUNNER_names; do
  eval "export $BERTH_RUNNER_name=\"\$BERTH_ENV_$BERTH_RUNNER_name\""
  unset "BERTH_ENV_$BERTH_RUNNER_name"
done
"$@"
echo "$?" >"$BERTH_RUNNER_dir/exit"
`

const reader = prelude + `
dir=$root/$(cat "$root/current" 2>/dev/null)
report
`

const logReader = prelude + `
dir=$root/$(cat "$root/current" 2>/dev/null)
cat "$dir/log.before" "$dir/log" 2>/dev/null | tail -n "$1" | tail -c 2000000
`

func startScript(port, looks int, workdir string, command []string, env map[string]string) string {
	names := strings.Join(slices.Sorted(maps.Keys(env)), " ")
	return shell(starter, append([]string{runner, strconv.Itoa(port), strconv.Itoa(looks), workdir, names}, command...)...)
}

func statusScript() string { return shell(reader, "berth") }

func logScript(lines int) string { return shell(logReader, "berth", strconv.Itoa(lines)) }

// shell makes a command line that any shell reads alike, whichever one the daemon picks. arguments begin with $0.
func shell(script string, arguments ...string) string {
	words := []string{"sh", "-c", quote(script)}
	for _, argument := range arguments {
		words = append(words, quote(argument))
	}
	return strings.Join(words, " ")
}

func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

const envPrefix = "BERTH_ENV_"

// wrapped gives the environment under the names by which it comes in. It travels in the daemon's own field for it, so
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
func (d *Daytona) commandOf(server provider.Server) (command []string, env map[string]string, err error) {
	command, env = server.Expand(d.portOf(server), server.ExtraPorts)
	if len(command) == 0 || command[0] == "" {
		return nil, nil, provider.Errorf(provider.CodeInvalid, "the server has no command")
	}
	for name, value := range env {
		if !variableName.MatchString(name) {
			return nil, nil, provider.Errorf(provider.CodeInvalid, "%.100q cannot be the name of an environment variable in Daytona", name)
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

// report is what a script says of the server.
type report struct {
	running bool
	exited  bool
	code    *int // nil where nobody knows, as when it was killed with its parent
	log     []string
}

// inside runs a script in a sandbox that should run, and gives its daemon a while to be up: after a start, or on
// another machine, it is not at once.
func (d *Daytona) inside(ctx context.Context, sandbox *apiclient.Sandbox, script string, env map[string]string) (report, error) {
	daemon, err := d.toolbox(sandbox.ToolboxProxyUrl, sandbox.Id)
	if err != nil {
		return report{}, err
	}
	wait := d.pace.retry
	for began := time.Now(); ; wait = min(2*wait, d.pace.pollMost) {
		said, err := d.execute(ctx, daemon, script, env)
		if err == nil {
			return said, nil
		}
		f := failureOf(err)
		if !f.public.Retryable || f.public.RetryAfter > patienceLimit || ctx.Err() != nil || time.Since(began) > d.pace.daemon {
			return report{}, d.explainSilence(ctx, sandbox, f)
		}
		if !pause(ctx, max(wait, f.public.RetryAfter)) {
			return report{}, ctxFailure(ctx, "reaching the sandbox's daemon")
		}
	}
}

// explainSilence looks at a sandbox whose daemon refuses: it may have been stopped.
func (d *Daytona) explainSilence(ctx context.Context, sandbox *apiclient.Sandbox, f *failure) error {
	if ctx.Err() != nil || f.public.Code != provider.CodeUnreachable {
		return aboutSandbox(f, sandbox.Id)
	}
	now, err := d.get(ctx, sandbox.Id)
	switch {
	case err == nil && isGone(now), provider.CodeOf(err) == provider.CodeNotFound:
		return gone(sandbox.Id)
	case err == nil && now.GetState() != apiclient.SANDBOXSTATE_STARTED:
		return notRunning(now)
	}
	return aboutSandbox(f, sandbox.Id)
}

// execute runs a script and reads what it says of the server.
func (d *Daytona) execute(ctx context.Context, daemon *toolbox.APIClient, script string, env map[string]string) (report, error) {
	output, err := d.output(ctx, daemon, script, env)
	if err != nil {
		return report{}, err
	}
	lines := strings.Split(strings.TrimRight(output, "\n"), "\n")
	for i, line := range lines {
		state, ours := strings.CutPrefix(line, "berth: ") // a shell's own greetings may come before
		if !ours {
			continue
		}
		said := report{running: state == "running"}
		if code, exited := strings.CutPrefix(state, "exited"); exited {
			said.exited, said.log = true, provider.Tail(lines[i+1:])
			if number, err := strconv.Atoi(strings.TrimSpace(code)); err == nil {
				said.code = &number
			}
		}
		return said, nil
	}
	return report{}, provider.Errorf(provider.CodeFailed, "the sandbox cannot run the script that starts servers: %.500s", strings.Join(provider.Tail(lines), "; "))
}

// scriptTime is how long a script may run, in seconds: longer than any does.
const scriptTime = 12

// output runs a script in the sandbox and gives what it printed.
func (d *Daytona) output(ctx context.Context, daemon *toolbox.APIClient, script string, env map[string]string) (string, error) {
	request := toolbox.NewExecuteRequest(script)
	request.SetTimeout(scriptTime)
	if len(env) > 0 {
		request.SetEnvs(env)
	}
	response, err := ask(ctx, d.pace.call, "running a script in the sandbox", func(ctx context.Context) (*toolbox.ExecuteResponse, *http.Response, error) {
		return daemon.ProcessAPI.ExecuteCommand(ctx).Request(*request).Execute()
	})
	if err != nil {
		return "", asDaemon(failureOf(err))
	}
	return response.Result, nil
}

// asDaemon reads a failure of the way into the sandbox. There 400 and 404 come from the proxy: the sandbox has no
// address yet or is being moved, which passes, or it is stopped.
func asDaemon(f *failure) error {
	if f.status != http.StatusBadRequest && f.status != http.StatusNotFound {
		return f
	}
	e := *f.public
	e.Code, e.Reason, e.Retryable = provider.CodeUnreachable, "", true
	return &failure{public: &e, status: f.status, text: f.text}
}
