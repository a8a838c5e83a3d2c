package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// defaultPort is the server's when it asks for none.
const defaultPort = 8000

// StartServer starts the server unless one answers or its process runs.
func (r *Runloop) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	script, env, err := startScript(req.Server)
	if err != nil {
		return provider.Endpoints{}, err
	}
	box, err := r.owned(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID}, always)
	if err == nil {
		err = mustRun(box)
	}
	if err == nil {
		box, err = r.withTunnel(ctx, box)
	}
	if err != nil {
		return provider.Endpoints{}, err
	}
	endpoints, err := r.endpoints(box, req.Server)
	if err != nil {
		return provider.Endpoints{}, err
	}
	if r.answers(ctx, endpoints.Server, req.Server.Health, 2*r.timing.second) {
		return endpoints, nil
	}
	if err := r.start(ctx, box.ID, script, env); err != nil {
		return provider.Endpoints{}, err
	}
	r.pauseLooks(box.ID)
	return endpoints, r.secondLook(ctx, box.ID, endpoints.Server, req.Server.Health)
}

func mustRun(box devbox) error {
	switch {
	case box.Status == running:
		return nil
	case box.ended():
		return gone(box.ID, box.detail())
	}
	return &provider.Error{
		Code: provider.CodeState, SandboxID: box.ID,
		Message: fmt.Sprintf("the devbox %s is %s: attach to it first, which lets it run", box.ID, box.detail()),
	}
}

// withTunnel sees to it that a running devbox has the tunnel that was configured. Enabling is not idempotent: a refusal
// with 400 can mean that somebody else, or this call's own first try, was first.
func (r *Runloop) withTunnel(ctx context.Context, box devbox) (devbox, error) {
	if box.Tunnel != nil && box.Tunnel.AuthMode == "open" && r.config.Tunnel != "open" {
		r.log.Warn("the devbox's ports are open to anybody: its tunnel is replaced", "devbox", box.ID)
		if err := r.post(ctx, box.ID, "remove_tunnel", nil, nil, always); err != nil && statusOf(err) != http.StatusNotFound {
			return box, err
		}
		box.Tunnel = nil
	}
	if box.Tunnel != nil {
		return box, nil
	}
	err := r.post(ctx, box.ID, "enable_tunnel", r.tunnelRequest(), nil, always)
	if err != nil && statusOf(err) != http.StatusBadRequest {
		return box, err
	}
	now, lookErr := r.get(ctx, box.ID, always)
	switch {
	case lookErr != nil:
		return box, lookErr
	case now.Status != running:
		return now, mustRun(now)
	case now.Tunnel == nil && err != nil:
		return now, err
	case now.Tunnel == nil:
		return now, invalidAnswer("the tunnel of devbox " + box.ID)
	}
	return now, nil
}

var tunnelKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// endpoints says how a devbox's ports are reached. The tunnel's token opens them; the API key is never sent there.
func (r *Runloop) endpoints(box devbox, server provider.Server) (provider.Endpoints, error) {
	t := box.Tunnel
	switch {
	case t == nil:
		return provider.Endpoints{}, provider.Errorf(provider.CodeState, "the devbox %s has no tunnel", box.ID)
	case !tunnelKey.MatchString(t.Key), t.AuthMode != "open" && (t.AuthToken == "" || strings.ContainsAny(t.AuthToken, "\r\n")):
		return provider.Endpoints{}, provider.Errorf(provider.CodeUnreachable, "the tunnel of the devbox %s has no usable key or token", box.ID)
	case t.AuthMode == "open" && r.config.Tunnel != "open":
		return provider.Endpoints{}, provider.Errorf(provider.CodeState, "the tunnel of the devbox %s is open to anybody", box.ID)
	}
	endpoint := func(port int) provider.Endpoint {
		e := provider.Endpoint{URL: fillTunnel(r.tunnelURL, port, t.Key), Headers: map[string]string{}}
		if t.AuthToken != "" {
			// Not Authorization: that one belongs to the server behind the tunnel.
			e.Headers["X-Runloop-Tunnel-Authorization"] = "Bearer " + t.AuthToken
		}
		return e
	}
	all := provider.Endpoints{Server: endpoint(cmp.Or(server.Port, defaultPort)), Extra: map[string]provider.Endpoint{}}
	for name, port := range server.ExtraPorts {
		all.Extra[name] = endpoint(port)
	}
	return all, nil
}

// answers says whether a server is healthy within a time.
func (r *Runloop) answers(ctx context.Context, endpoint provider.Endpoint, check provider.HealthCheck, within time.Duration) bool {
	if check.Timeout <= 0 || check.Timeout > within {
		check.Timeout = within
	}
	return provider.Probe(ctx, r.probe, endpoint, check).Status == provider.PingAlive
}

// The server leaves its traces in ~/.berth of the devbox: pid (process number and start time), exit (its exit code) and
// server.log. There they serve every process that asks, and a devbox that does not run gives no stale answer.

// preamble defines runs, which says whether the server's process lives. Process numbers alone would not do: they come
// back after a resume, when the disk still has the old ones.
const preamble = `d="$HOME/.berth"
born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
runs() { read -r pid at 2>/dev/null <"$d/pid" && kill -0 "$pid" 2>/dev/null && [ "$(born "$pid")" = "$at" ]; }
`

// prepareScript makes the place for the traces, for nobody else to read, and says whether the server runs. What a server
// of before the last suspend left goes: until the new one has written its own, it would be taken for the new one's end.
const prepareScript = preamble + `umask 077
mkdir -p "$d" && chmod 700 "$d" || exit 1
exec 9>"$d/lock"
if command -v flock >/dev/null 2>&1; then flock 9; fi
if runs; then echo running; else rm -f "$d/pid" "$d/exit"; echo none; fi
`

// startingScript starts the server. Several may run at the same time: one of them starts it. The environment comes from
// a file that is removed at once, because it holds secrets, and a command line is seen by every process of the devbox.
const startingScript = preamble + `umask 077
env="$d/env-%[1]s"
exec 9>"$d/lock"
if command -v flock >/dev/null 2>&1; then flock 9; fi
if runs || ! [ -r "$env" ]; then
  rm -f "$env"
  exit 0
fi
rm -f "$d/exit"
: >"$d/server.log"
(
  exec 9>&-
  umask 022
  . "$env"
  rm -f "$d"/env-*
  %[2]s
  exec %[3]s
) >>"$d/server.log" 2>&1 </dev/null &
pid=$!
echo "$pid $(born "$pid")" >"$d/pid"
exec 9>&-
wait "$pid"
code=$?
echo "$code" >"$d/exit"
exit "$code"
`

// statusScript says what has become of the server, with the end of its log.
const statusScript = preamble + `if runs; then
  echo running
elif [ -e "$d/pid" ]; then
  echo "exited $(cat "$d/exit" 2>/dev/null)"
  tail -n 40 "$d/server.log" 2>/dev/null
else
  echo none
fi
`

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// startScript gives the script that starts a server, with a place for the name of the environment's file, and that
// file.
func startScript(server provider.Server) (text func(nonce string) string, env string, err error) {
	command, variables := server.Expand(cmp.Or(server.Port, defaultPort), server.ExtraPorts)
	if len(command) == 0 || command[0] == "" {
		return nil, "", provider.Errorf(provider.CodeInvalid, "the server has no command")
	}
	if _, given := variables["HOST"]; !given {
		variables["HOST"] = "0.0.0.0" // a tunnel does not reach a server that listens on loopback
	}
	var file strings.Builder
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if !variableName.MatchString(name) {
			return nil, "", provider.Errorf(provider.CodeInvalid, "%q is not the name of an environment variable", name)
		}
		if strings.Contains(variables[name], "\x00") {
			return nil, "", provider.Errorf(provider.CodeInvalid, "the environment variable %s has a NUL in it", name)
		}
		fmt.Fprintf(&file, "export %s=%s\n", name, quote(variables[name]))
	}
	words := make([]string, 0, len(command))
	for _, word := range command {
		if strings.Contains(word, "\x00") {
			return nil, "", provider.Errorf(provider.CodeInvalid, "the server's command has a NUL in it")
		}
		words = append(words, quote(word))
	}
	enter := ":"
	if server.Workdir != "" {
		enter = fmt.Sprintf("mkdir -p -- %[1]s; cd -- %[1]s || exit 98", quote(server.Workdir))
	}
	return func(nonce string) string { return fmt.Sprintf(startingScript, nonce, enter, strings.Join(words, " ")) }, file.String(), nil
}

// quote makes one word of a shell command of any text.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// start runs the start script. All of it may be done again: the script sees to it that there is one server.
func (r *Runloop) start(ctx context.Context, id string, script func(nonce string) string, env string) error {
	state, err := r.execute(ctx, id, prepareScript, 0, always)
	if err != nil || state == "running" {
		return err
	}
	nonce := rand.Text()
	file := map[string]any{"file_path": ".berth/env-" + nonce, "contents": env}
	if err := r.post(ctx, id, "write_file_contents", file, nil, always); err != nil {
		return err
	}
	// Without a shell_name: commands of one named shell wait for each other, and this one does not end.
	var started execution
	err = r.post(ctx, id, "execute_async", map[string]any{"command": script(nonce)}, &started, always)
	if err == nil && started.Status == "" {
		err = invalidAnswer("an execution")
	}
	return err
}

// execution is the API's view of a command in a devbox. Its output and exit status are there once it has completed.
type execution struct {
	Status     string `json:"status"`
	ExitStatus *int   `json:"exit_status"`
	Stdout     string `json:"stdout"`
	Stderr     string `json:"stderr"`
}

// execute runs a short command to its end and gives what it printed, without the last line's end. lines is how much of that
// is wanted; 0 is the API's own idea.
func (r *Runloop) execute(ctx context.Context, id, command string, lines int, repeat repeat) (string, error) {
	var result execution
	operation := "execute"
	body := map[string]any{
		"command": command, "command_id": newCommandID(), "optimistic_timeout": max(1, int(r.timing.hold/time.Second)),
	}
	if lines > 0 {
		operation += "?last_n=" + strconv.Itoa(lines)
	}
	for range 3 { // a slow one is asked for again by its command_id
		if err := r.post(ctx, id, operation, body, &result, repeat); err != nil {
			return "", err
		}
		if repeat == never || result.Status != "running" && result.Status != "queued" {
			break
		}
	}
	switch {
	case result.Status == "":
		return "", invalidAnswer("an execution")
	case result.Status != "completed" || result.ExitStatus == nil:
		return "", &provider.Error{
			Code: provider.CodeUnreachable, Retryable: true, SandboxID: id,
			Message: fmt.Sprintf("the devbox %s is too slow: a short command is still %s", id, result.Status),
		}
	case *result.ExitStatus != 0:
		return "", provider.Errorf(provider.CodeFailed, "a short command in the devbox %s failed with exit code %d: %.200s",
			id, *result.ExitStatus, strings.TrimSpace(result.Stderr))
	}
	return strings.TrimRight(result.Stdout, "\n"), nil
}

// newCommandID makes a UUID of version 7, by which the API recognises a command that is sent again.
func newCommandID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	ms := time.Now().UnixMilli()
	for i := range 6 {
		b[i] = byte(ms >> (40 - 8*i))
	}
	b[6] = b[6]&0x0f | 0x70
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// serverStatus asks the devbox what has become of the server: nil unless it has ended.
func (r *Runloop) serverStatus(ctx context.Context, id string) (*provider.Error, error) {
	text, err := r.execute(ctx, id, statusScript, 0, never)
	if err != nil {
		return nil, err
	}
	first, log, _ := strings.Cut(text, "\n")
	code, ended := strings.CutPrefix(first, "exited ")
	if !ended && first != "exited" {
		return nil, nil
	}
	var exitCode *int // unknown if the server was killed together with what waited for it
	if number, err := strconv.Atoi(code); err == nil {
		exitCode = &number
	}
	exited := provider.ServerExited(exitCode, lines(log))
	exited.SandboxID = id
	return exited, nil
}

// secondLook watches a started server for a moment. It is over at once when the server answers.
func (r *Runloop) secondLook(ctx context.Context, id string, endpoint provider.Endpoint, check provider.HealthCheck) error {
	for began := time.Now(); time.Since(began) < r.timing.second; {
		if r.answers(ctx, endpoint, check, r.timing.second) {
			return nil
		}
		if !sleep(ctx, max(20*time.Millisecond, time.Since(began)/10)) {
			return provider.AsError(ctx.Err())
		}
	}
	exited, err := r.serverStatus(ctx, id)
	if err != nil || exited == nil {
		return nil //nolint:nilerr // it was started; whether it lives is for the health wait to say
	}
	return exited
}

func lines(text string) []string {
	if text = strings.TrimRight(text, "\n"); text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}
