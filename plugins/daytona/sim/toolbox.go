package sim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// session is a shell in a sandbox that reads commands. If the shell is replaced or ends, the session is over.
type session struct {
	id       string
	shell    *simcloud.Process
	commands []*command
}

// command is a command of a session. As in Daytona, its files are on the sandbox's disk.
type command struct {
	id, text string
	dir      string // on this machine
}

// toolboxHandler returns the daemons of all sandboxes: /toolbox/{id}/...
func (c *Cloud) toolboxHandler() http.Handler {
	mux := http.NewServeMux()
	names := map[string]string{}
	handle := func(name, route string, handler func(t tool)) {
		method, path, _ := strings.Cut(route, " ")
		pattern := strings.TrimSpace(method + " /toolbox/{id}" + path)
		if method == "ANY" {
			pattern = "/toolbox/{id}" + path
		}
		names[pattern] = name
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if t, ok := c.tool(w, r); ok {
				handler(t)
			}
		})
	}
	handle("executeCommand", "POST /process/execute", tool.execute)
	handle("createSession", "POST /process/session", tool.createSession)
	handle("listSessions", "GET /process/session", tool.listSessions)
	handle("getSession", "GET /process/session/{session}", tool.getSession)
	handle("deleteSession", "DELETE /process/session/{session}", tool.deleteSession)
	handle("sessionExecuteCommand", "POST /process/session/{session}/exec", tool.sessionExecute)
	handle("getSessionCommand", "GET /process/session/{session}/command/{command}", tool.getCommand)
	handle("getSessionCommandLogs", "GET /process/session/{session}/command/{command}/logs", tool.commandLogs)
	handle("isPortInUse", "GET /port/{port}/in-use", tool.portInUse)
	handle("getVersion", "GET /version", func(t tool) { answer(t.w, http.StatusOK, map[string]any{"version": "0.190.0"}) })
	for _, path := range []string{"/work-dir", "/user-home-dir", "/project-dir"} {
		handle("getDir", "GET "+path, func(t tool) { answer(t.w, http.StatusOK, map[string]any{"dir": t.box.Home()}) })
	}
	handle("proxy", "ANY /proxy/{port}/{path...}", func(t tool) {
		port, _ := strconv.Atoi(t.r.PathValue("port"))
		forward(t.box, port, "/"+t.r.PathValue("path"), t.w, t.r)
	})
	return c.Traffic.HTTP(func(r *http.Request) string {
		_, pattern := mux.Handler(r)
		return cmp.Or(names[pattern], "toolbox")
	}, mux)
}

// tool is a call of a daemon.
type tool struct {
	cloud *Cloud
	s     *sandbox
	box   *simcloud.Box
	w     http.ResponseWriter
	r     *http.Request
}

func (c *Cloud) tool(w http.ResponseWriter, r *http.Request) (t tool, ok bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	id := r.PathValue("id") // not a name
	key, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	allowed, p := c.opens(id, key, c.byID(id) != nil && key == c.options.APIKey)
	if p == nil && !allowed {
		p = refusal(http.StatusUnauthorized, "authentication failed:\nBearer token is invalid")
	}
	var box *simcloud.Box
	if p == nil {
		box, p = c.reach(id, r)
	}
	if p != nil {
		refuseGin(w, r, p)
		return t, false
	}
	return tool{c, c.byID(id), box, w, r}, true
}

func (t tool) refuse(status int, format string, args ...any) {
	refuseGin(t.w, t.r, refusal(status, format, args...))
}

// shell is what reads commands from its standard input.
var shell = []string{"bash"}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// execute runs a command. It answers once everybody has closed the command's outputs: also what it left in the background.
func (t tool) execute() {
	var request struct {
		Command string            `json:"command"`
		Cwd     string            `json:"cwd"`
		Envs    map[string]string `json:"envs"`
		Timeout int               `json:"timeout"`
	}
	if json.NewDecoder(t.r.Body).Decode(&request) != nil || strings.TrimSpace(request.Command) == "" {
		t.refuse(http.StatusBadRequest, "invalid request body: command is required")
		return
	}
	for name := range request.Envs {
		if !variableName.MatchString(name) {
			t.refuse(http.StatusBadRequest, "bad request: invalid environment variable name: %s", name)
			return
		}
	}
	ctx, cancel := t.r.Context(), context.CancelFunc(func() {})
	if request.Timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(request.Timeout)*time.Second)
	}
	defer cancel()
	process, err := t.box.Exec(ctx, simcloud.ExecSpec{Argv: shell, Env: request.Envs, Dir: request.Cwd, Stdin: true})
	if err != nil { // such as too large an environment
		answer(t.w, http.StatusOK, map[string]any{"exitCode": -1, "result": ""})
		return
	}
	_, _ = io.WriteString(process.Stdin, request.Command)
	_ = process.Stdin.Close()
	if err := process.Output.Ended(ctx); errors.Is(err, context.DeadlineExceeded) {
		_ = process.SignalGroup(context.WithoutCancel(ctx), syscall.SIGKILL)
		t.refuse(http.StatusRequestTimeout, "request timeout: command execution timeout")
		return
	}
	exit, _ := process.Wait(ctx)
	answer(t.w, http.StatusOK, map[string]any{"exitCode": exit.Code, "result": string(process.Output.Bytes(simcloud.Both))})
}

// session returns the session of a call.
func (t tool) session() *session {
	t.cloud.mutex.Lock()
	defer t.cloud.mutex.Unlock()
	return t.s.sessions[t.r.PathValue("session")]
}

func (t tool) createSession() {
	var request struct {
		SessionID string `json:"sessionId"`
	}
	switch err := json.NewDecoder(t.r.Body).Decode(&request); {
	case err != nil || request.SessionID == "":
		t.refuse(http.StatusBadRequest, "invalid request body")
		return
	case request.SessionID == "entrypoint":
		t.refuse(http.StatusBadRequest, "bad request: the session id is reserved")
		return
	}
	shell, err := t.box.Exec(t.r.Context(), simcloud.ExecSpec{Argv: shell, Stdin: true})
	if err != nil {
		t.refuse(http.StatusInternalServerError, "%v", err)
		return
	}
	t.cloud.mutex.Lock()
	_, taken := t.s.sessions[request.SessionID]
	if !taken {
		t.s.sessions[request.SessionID] = &session{id: request.SessionID, shell: shell}
	}
	t.cloud.mutex.Unlock()
	if taken {
		_ = shell.SignalGroup(t.r.Context(), syscall.SIGKILL)
		t.refuse(http.StatusConflict, "conflict: session already exists")
		return
	}
	t.w.WriteHeader(http.StatusCreated)
}

func (t tool) sessionExecute() {
	var request struct {
		Command  string `json:"command"`
		RunAsync bool   `json:"runAsync"`
		Async    bool   `json:"async"`
	}
	if json.NewDecoder(t.r.Body).Decode(&request) != nil || strings.TrimSpace(request.Command) == "" {
		t.refuse(http.StatusBadRequest, "invalid request body: command is required")
		return
	}
	session := t.session()
	if session == nil {
		t.refuse(http.StatusInternalServerError, "failed to execute command: not found: session not found")
		return
	}
	c := &command{id: newUUID(), text: request.Command}
	inside := filepath.Join(t.box.Home(), ".daytona", "sessions", session.id, c.id)
	c.dir = t.box.Path(inside)
	err := os.MkdirAll(c.dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, "command"), []byte(request.Command+"\n"), 0o600)
	}
	if err == nil { // in the shell itself, so a command that ends the shell leaves no exit code
		_, err = fmt.Fprintf(session.shell.Stdin, ". %[1]s/command >%[1]s/stdout 2>%[1]s/stderr </dev/null; echo $? >%[1]s/exit\n", inside)
	}
	if err != nil {
		t.refuse(http.StatusInternalServerError, "failed to execute command: failed to write command: write |1: broken pipe")
		return
	}
	t.cloud.mutex.Lock()
	session.commands = append(session.commands, c)
	t.cloud.mutex.Unlock()
	if request.RunAsync || request.Async {
		answer(t.w, http.StatusAccepted, map[string]any{"cmdId": c.id, "output": nil, "stdout": nil, "stderr": nil, "exitCode": nil})
		return
	}
	for c.exit() == nil { // forever, if the shell has died
		select {
		case <-time.After(10 * time.Millisecond):
		case <-t.r.Context().Done():
			return
		}
	}
	stdout, stderr, output := c.output()
	answer(t.w, http.StatusOK, map[string]any{"cmdId": c.id, "output": output, "stdout": stdout, "stderr": stderr, "exitCode": *c.exit()})
}

// exit returns the exit code, or nil while the command runs and if the shell died.
func (c *command) exit() *int {
	text, err := os.ReadFile(filepath.Join(c.dir, "exit"))
	code, parseErr := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || parseErr != nil {
		return nil
	}
	return &code
}

// output returns what a command printed. In both, three bytes before each line tell which stream it is from.
func (c *command) output() (stdout, stderr, both string) {
	read := func(name, mark string) string {
		text, _ := os.ReadFile(filepath.Join(c.dir, name))
		for line := range strings.Lines(string(text)) {
			both += mark + line
		}
		return string(text)
	}
	return read("stdout", "\x01\x01\x01"), read("stderr", "\x02\x02\x02"), both
}

func (c *command) dto() map[string]any {
	dto := map[string]any{"id": c.id, "command": c.text}
	if code := c.exit(); code != nil {
		dto["exitCode"] = *code
	}
	return dto
}

func (t tool) dto(s *session) map[string]any {
	t.cloud.mutex.Lock()
	defer t.cloud.mutex.Unlock()
	commands := []any{}
	for _, c := range s.commands {
		commands = append(commands, c.dto())
	}
	return map[string]any{"sessionId": s.id, "commands": commands}
}

func (t tool) getSession() {
	session := t.session()
	if session == nil {
		t.refuse(http.StatusNotFound, "not found: session not found")
		return
	}
	answer(t.w, http.StatusOK, t.dto(session))
}

func (t tool) listSessions() {
	t.cloud.mutex.Lock()
	var all []*session
	for _, s := range t.s.sessions {
		all = append(all, s)
	}
	t.cloud.mutex.Unlock()
	list := []any{}
	for _, s := range all {
		list = append(list, t.dto(s))
	}
	answer(t.w, http.StatusOK, list)
}

// deleteSession kills everything that was started in the session, including background processes.
func (t tool) deleteSession() {
	t.cloud.mutex.Lock()
	session := t.s.sessions[t.r.PathValue("session")]
	delete(t.s.sessions, t.r.PathValue("session"))
	t.cloud.mutex.Unlock()
	if session == nil {
		t.refuse(http.StatusNotFound, "not found: session not found")
		return
	}
	_ = session.shell.SignalGroup(t.r.Context(), syscall.SIGTERM)
	select {
	case <-session.shell.Exited():
	case <-time.After(200 * time.Millisecond): // Daytona waits longer
	}
	_ = session.shell.SignalGroup(t.r.Context(), syscall.SIGKILL)
	t.w.WriteHeader(http.StatusNoContent)
}

// command returns the command of a call. If there is none, it answers the call and returns nil.
func (t tool) command() *command {
	session := t.session()
	if session == nil {
		t.refuse(http.StatusNotFound, "not found: session not found")
		return nil
	}
	t.cloud.mutex.Lock()
	defer t.cloud.mutex.Unlock()
	for _, c := range session.commands {
		if c.id == t.r.PathValue("command") {
			return c
		}
	}
	t.refuse(http.StatusNotFound, "not found: command not found")
	return nil
}

func (t tool) getCommand() {
	if c := t.command(); c != nil {
		answer(t.w, http.StatusOK, c.dto())
	}
}

// commandLogs answers in text unless the client's version is recent.
func (t tool) commandLogs() {
	c := t.command()
	if c == nil {
		return
	}
	stdout, stderr, both := c.output()
	if !speaksJSON(t.r.Header.Get("X-Daytona-SDK-Version")) {
		t.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(t.w, both)
		return
	}
	answer(t.w, http.StatusOK, map[string]any{"output": both, "stdout": stdout, "stderr": stderr})
}

// speaksJSON reports whether a client's version is 0.167 or later.
func speaksJSON(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &major, &minor)
	return err == nil && (major > 0 || minor >= 167)
}

func (t tool) portInUse() {
	port, err := strconv.Atoi(t.r.PathValue("port"))
	if err != nil || port < 3000 || port > 9999 {
		t.refuse(http.StatusBadRequest, "bad request: port must be between 3000 and 9999")
		return
	}
	answer(t.w, http.StatusOK, map[string]any{"isInUse": t.box.Listening(port)})
}
