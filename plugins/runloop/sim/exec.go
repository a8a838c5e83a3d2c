package sim

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/plugins/internal/simcloud"
)

// exec is a command in a devbox.
type exec struct {
	id      string
	shell   string
	started chan struct{}     // closed when process and problem are set; until then the command waits for its shell
	process *simcloud.Process // nil if the start failed
	problem string            // why the start failed
	exit    int
	done    chan struct{}
}

// execView is a command as the API shows it.
type execView struct {
	DevboxID        string  `json:"devbox_id"`
	ExecutionID     string  `json:"execution_id"`
	Status          string  `json:"status"`
	ShellName       *string `json:"shell_name"`
	ExitStatus      *int    `json:"exit_status"`
	Stdout          *string `json:"stdout"`
	Stderr          *string `json:"stderr"`
	StdoutTruncated *bool   `json:"stdout_truncated"`
	StderrTruncated *bool   `json:"stderr_truncated"`
}

// run starts a command in a running devbox. Commands in a named shell wait for each other. If the command id was used
// before, run returns that command. The caller must have locked the mutex.
func (c *Cloud) run(b *box, command, shell, commandID string) (*exec, error) {
	if earlier := b.execs[commandID]; commandID != "" && earlier != nil {
		return earlier, nil
	}
	machine, err := c.machineOf(b)
	if err != nil {
		return nil, err
	}
	e := &exec{id: commandID, shell: shell, started: make(chan struct{}), done: make(chan struct{})}
	if e.id == "" {
		e.id = newID("exec_")
	}
	b.execs[e.id] = e
	turn := make(chan struct{}, 1)
	if shell != "" {
		if b.shells[shell] == nil {
			b.shells[shell] = turn
			turn <- struct{}{}
		}
		turn = b.shells[shell]
	} else {
		turn <- struct{}{}
	}
	c.running.Go(func() {
		defer close(e.done)
		select {
		case <-turn:
		case <-c.ctx.Done():
			close(e.started)
			return
		}
		defer func() { turn <- struct{}{} }()
		process, err := machine.Exec(c.ctx, simcloud.ExecSpec{Argv: []string{"sh", "-c", command}})
		c.mutex.Lock()
		if err != nil {
			e.exit, e.problem = 127, err.Error()
		}
		e.process = process
		close(e.started)
		c.mutex.Unlock()
		if err != nil {
			return
		}
		exit, err := process.Wait(c.ctx)
		if err != nil {
			return
		}
		c.mutex.Lock()
		defer c.mutex.Unlock()
		if e.exit = exit.Code; exit.Signal != 0 {
			e.exit = 128 + int(exit.Signal)
		}
	})
	return e, nil
}

// show returns the view. It has output and exit status once the command has completed. The caller must have locked the
// mutex.
func (e *exec) show(devbox string, lastN int) execView {
	view := execView{DevboxID: devbox, ExecutionID: e.id, Status: "running"}
	if e.shell != "" {
		view.ShellName = &e.shell
	}
	select {
	case <-e.done:
	default:
		select {
		case <-e.started:
		default:
			view.Status = "queued"
		}
		return view
	}
	view.Status, view.ExitStatus = "completed", &e.exit
	out, errors := "", e.problem
	if e.process != nil {
		out, errors = string(e.process.Output.Bytes(simcloud.Stdout)), string(e.process.Output.Bytes(simcloud.Stderr))
	}
	out, outCut := lastLines(out, lastN)
	errors, errCut := lastLines(errors, lastN)
	view.Stdout, view.Stderr, view.StdoutTruncated, view.StderrTruncated = &out, &errors, &outCut, &errCut
	return view
}

func lastLines(text string, count int) (string, bool) {
	lines := strings.SplitAfter(text, "\n")
	if last := len(lines) - 1; lines[last] == "" {
		lines = lines[:last]
	}
	if len(lines) <= count {
		return text, false
	}
	return strings.Join(lines[len(lines)-count:], ""), true
}

func lastN(r *http.Request) int {
	if n, err := strconv.Atoi(r.URL.Query().Get("last_n")); err == nil && n > 0 {
		return n
	}
	return 100
}

// execute is POST execute. It waits for the end of the command, but not long.
func (c *Cloud) execute(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Command    string   `json:"command"`
		CommandID  string   `json:"command_id"`
		Optimistic *float64 `json:"optimistic_timeout"`
		Shell      string   `json:"shell_name"`
	}
	if !decode(w, r, &body) {
		return
	}
	wait := 25 * time.Second
	if body.Optimistic != nil {
		wait = min(wait, seconds(*body.Optimistic))
	}
	c.runAndShow(w, r, body.Command, body.Shell, body.CommandID, wait)
}

func (c *Cloud) executeAsync(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Command string `json:"command"`
		Shell   string `json:"shell_name"`
	}
	if decode(w, r, &body) {
		c.runAndShow(w, r, body.Command, body.Shell, "", 0)
	}
}

func (c *Cloud) runAndShow(w http.ResponseWriter, r *http.Request, command, shell, commandID string, wait time.Duration) {
	if command == "" {
		fail(w, http.StatusBadRequest, "command is required")
		return
	}
	c.mutex.Lock()
	b := c.runningBox(w, r)
	if b == nil {
		c.mutex.Unlock()
		return
	}
	e, err := c.run(b, command, shell, commandID)
	c.mutex.Unlock()
	if err != nil {
		fail(w, http.StatusInternalServerError, "%v", err)
		return
	}
	select {
	case <-e.done:
	case <-time.After(wait):
	case <-r.Context().Done():
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	answer(w, e.show(b.view.ID, lastN(r)))
}

// runningBox returns the devbox of a request if it runs; otherwise it answers and returns nil. For some operations
// Runloop is known to answer 400 if the devbox does not run; for the others we assume it. The caller must have locked
// the mutex.
func (c *Cloud) runningBox(w http.ResponseWriter, r *http.Request) *box {
	b := c.boxOf(w, r)
	if b != nil && b.view.Status != "running" {
		fail(w, http.StatusBadRequest, "Devbox is not running: it is %s", b.view.Status)
		return nil
	}
	return b
}

// execOf returns the command of a request. If there is none, it answers and returns nil. The caller must have locked
// the mutex.
func (c *Cloud) execOf(w http.ResponseWriter, r *http.Request) *exec {
	b := c.boxOf(w, r)
	if b == nil {
		return nil
	}
	e := b.execs[r.PathValue("execution")]
	if e == nil {
		fail(w, http.StatusNotFound, "Execution not found")
	}
	return e
}

func (c *Cloud) execution(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if e := c.execOf(w, r); e != nil {
		answer(w, e.show(r.PathValue("id"), lastN(r)))
	}
}

func (c *Cloud) executionWait(w http.ResponseWriter, r *http.Request) {
	var body statusQuestion
	if !decode(w, r, &body) {
		return
	}
	if !body.onlyHas("queued", "running", "completed") {
		fail(w, http.StatusBadRequest, "Invalid statuses")
		return
	}
	c.mutex.Lock()
	e := c.execOf(w, r)
	c.mutex.Unlock()
	if e == nil {
		return
	}
	select {
	case <-e.done:
		c.mutex.Lock()
		defer c.mutex.Unlock()
		answer(w, e.show(r.PathValue("id"), lastN(r)))
	case <-time.After(min(body.waitTime(25*time.Second), 25*time.Second, c.options.MaxHold)):
		w.Header().Set("X-Should-Retry", "true")
		fail(w, http.StatusRequestTimeout, "Timed out waiting for the execution")
	case <-r.Context().Done():
	}
}

func (c *Cloud) executionKill(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	e := c.execOf(w, r)
	c.mutex.Unlock()
	if e == nil {
		return
	}
	select {
	case <-e.started:
	case <-r.Context().Done():
		return
	}
	if e.process != nil {
		_ = e.process.SignalGroup(r.Context(), syscall.SIGKILL) // it may have ended
	}
	select {
	case <-e.done:
	case <-r.Context().Done():
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	answer(w, e.show(r.PathValue("id"), lastN(r)))
}

// stream sends output as server-sent events.
func (c *Cloud) stream(stream simcloud.Stream) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mutex.Lock()
		e := c.execOf(w, r)
		c.mutex.Unlock()
		if e == nil {
			return
		}
		offset, _ := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
		w.Header().Set("Content-Type", "text/event-stream")
		select {
		case <-e.started:
		case <-r.Context().Done():
			return
		}
		if e.process == nil {
			return
		}
		for {
			chunk, err := e.process.Output.Next(r.Context(), stream, offset)
			if err != nil {
				return
			}
			offset = chunk.End()
			event, _ := json.Marshal(map[string]any{"output": string(chunk.Data), "offset": offset})
			fmt.Fprintf(w, "data: %s\n\n", event)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// place returns the path on this machine of a path in a devbox, and creates its directory.
func place(machine *simcloud.Box, inside string) (string, error) {
	if !path.IsAbs(inside) {
		inside = path.Join(machine.Home(), inside)
	}
	outside := machine.Path(inside)
	return outside, os.MkdirAll(filepath.Dir(outside), 0o755)
}

// file returns the path on this machine of a file in a running devbox.
func (c *Cloud) file(w http.ResponseWriter, r *http.Request, inside string) (string, bool) {
	if inside == "" {
		fail(w, http.StatusBadRequest, "a path is required")
		return "", false
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	b := c.runningBox(w, r)
	if b == nil {
		return "", false
	}
	machine, err := c.machineOf(b)
	if err == nil {
		inside, err = place(machine, inside)
	}
	if err != nil {
		fail(w, http.StatusInternalServerError, "%v", err)
		return "", false
	}
	return inside, true
}

func (c *Cloud) writeFile(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Path     string `json:"file_path"`
		Contents string `json:"contents"`
	}
	if !decode(w, r, &body) {
		return
	}
	if file, ok := c.file(w, r, body.Path); ok {
		c.saved(w, r, os.WriteFile(file, []byte(body.Contents), 0o644)) // readable by all, as in Runloop
	}
}

func (c *Cloud) saved(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil {
		fail(w, http.StatusInternalServerError, "%v", err)
		return
	}
	zero, empty := 0, ""
	answer(w, execView{DevboxID: r.PathValue("id"), ExecutionID: newID("exec_"), Status: "completed", ExitStatus: &zero, Stdout: &empty, Stderr: &empty})
}

func (c *Cloud) readFile(w http.ResponseWriter, r *http.Request) {
	var body struct {
		FilePath string `json:"file_path"`
		Path     string `json:"path"`
	}
	if !decode(w, r, &body) {
		return
	}
	file, ok := c.file(w, r, body.FilePath+body.Path)
	if !ok {
		return
	}
	content, err := os.ReadFile(file)
	if err != nil {
		fail(w, http.StatusNotFound, "File not found")
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if body.Path != "" {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	_, _ = w.Write(content)
}

func (c *Cloud) uploadFile(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseMultipartForm(1 << 20); err != nil {
		fail(w, http.StatusBadRequest, "not a form: %v", err)
		return
	}
	upload, _, err := r.FormFile("file")
	if err != nil {
		fail(w, http.StatusBadRequest, "file is required")
		return
	}
	defer upload.Close()
	file, ok := c.file(w, r, r.FormValue("path"))
	if !ok {
		return
	}
	content, err := io.ReadAll(upload)
	if err == nil {
		err = os.WriteFile(file, content, 0o644)
	}
	if err != nil {
		fail(w, http.StatusInternalServerError, "%v", err)
		return
	}
	answer(w, struct{}{})
}

// logs answers with the output of completed commands.
func (c *Cloud) logs(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	b := c.boxOf(w, r)
	if b == nil {
		return
	}
	type entry struct {
		Level     string `json:"level"`
		Source    string `json:"source"`
		Timestamp int64  `json:"timestamp_ms"`
		Message   string `json:"message"`
		CmdID     string `json:"cmd_id"`
	}
	entries := []entry{}
	only := r.URL.Query().Get("execution_id")
	for id, e := range b.execs {
		select {
		case <-e.done: // running ones are skipped
		default:
			continue
		}
		if e.process == nil || only != "" && only != id {
			continue
		}
		for line := range strings.Lines(string(e.process.Output.Bytes(simcloud.Both))) {
			entries = append(entries, entry{"INFO", "exec", time.Now().UnixMilli(), strings.TrimSuffix(line, "\n"), id})
		}
	}
	answer(w, map[string]any{"logs": entries})
}
