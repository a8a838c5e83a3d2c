package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// cloud is where the sandboxes of one provider are: a simulator's process, or a directory of this machine. It is used
// for one case at a time, and tells the truth about itself without asking a plugin.
type cloud struct {
	provider string
	env      []string // points berth at it
	block    string   // what stands in the provider's block of a configuration

	dir     string // of local sandboxes
	file    string // of mock sandboxes
	control string // a simulator's control URL; the others have none
	process *exec.Cmd
}

// clouds are the five, and whether a sandbox can sleep there.
var clouds = map[string]struct{ suspends bool }{
	"local": {true}, "daytona": {true}, "e2b": {true}, "modal": {false}, "runloop": {true},
}

// startCloud starts a provider's cloud with nothing in it. dir is its own.
func startCloud(ctx context.Context, bin, dir, name string) (*cloud, error) {
	c := &cloud{provider: name}
	if name == "local" {
		c.dir = filepath.Join(filepath.Dir(dir), "local") // one for all: its sandboxes share the machine's ports
		c.block = fmt.Sprintf("config {\nroot = %q\n}", c.dir)
		return c, nil
	}
	if name == "mock" {
		c.file = filepath.Join(dir, "mock.json")
		c.block = fmt.Sprintf("config {\nstate = %q\ncreate_latency = \"100ms\"\nready_after = \"100ms\"\n}", c.file)
		return c, nil
	}
	temporary := filepath.Join(dir, "boxes-"+name)
	if err := os.MkdirAll(temporary, 0o755); err != nil {
		return nil, err
	}
	c.process = exec.CommandContext(ctx, filepath.Join(bin, "sim", name), "-path", bin)
	c.process.Cancel = func() error { return c.process.Process.Signal(syscall.SIGTERM) }
	c.process.WaitDelay = 10 * time.Second
	c.process.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + temporary}
	var problems bytes.Buffer
	c.process.Stderr = &problems
	output, err := c.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.process.Start(); err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(output); lines.Scan(); {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		value = strings.Trim(value, "'")
		if strings.HasSuffix(name, "_SIM_CONTROL") {
			c.control = value
		} else {
			c.env = append(c.env, name+"="+value)
		}
	}
	if c.control == "" {
		err := c.process.Wait()
		return nil, fmt.Errorf("the simulated %s did not start: %w: %s", name, err, problems.String())
	}
	return c, nil
}

// close ends a simulator, and everything in it.
func (c *cloud) close() {
	if c.process != nil {
		_ = c.process.Cancel() // or it has ended
		_ = c.process.Wait()   // its exit code means nothing
	}
}

// box is one sandbox that is there, or on its way in or out.
type box struct {
	id, session, owner string
	state              boxState
}

type boxState string

const (
	running   boxState = "running"
	asleep    boxState = "suspended"
	changing  boxState = "changing"
	vanishing boxState = "vanishing" // ends without anybody doing anything about it
)

// stateWords are the clouds' own.
var stateWords = map[string]boxState{
	"running": running, "started": running, "stopped": asleep, "paused": asleep, "suspended": asleep, "archived": asleep,
	"destroying": vanishing, "destroyed": vanishing, "killing": vanishing, "shutdown": vanishing, "failure": vanishing,
}

// boxes are an owner's sandboxes, or everybody's.
func (c *cloud) boxes(ctx context.Context, owner string) ([]box, error) {
	all, err := c.all(ctx)
	return slices.DeleteFunc(all, func(b box) bool { return b.owner != owner && owner != "" }), err
}

func (c *cloud) all(ctx context.Context) ([]box, error) {
	if c.dir != "" {
		return c.directories()
	}
	if c.file != "" {
		return c.mocked()
	}
	var listed []struct {
		ID       string            `json:"id"`
		State    string            `json:"state"`
		Status   string            `json:"status"`
		Labels   map[string]string `json:"labels"`
		Metadata map[string]string `json:"metadata"`
		Tags     map[string]string `json:"tags"`
	}
	if err := c.ask(ctx, http.MethodGet, "boxes", nil, &listed); err != nil {
		return nil, err
	}
	var found []box
	for _, l := range listed {
		b := box{id: l.ID, state: changing}
		for _, labels := range []map[string]string{l.Labels, l.Metadata, l.Tags} {
			b.session += labels[provider.LabelSession]
			b.owner += labels[provider.LabelOwner]
		}
		word := l.State + l.Status
		if c.provider == "modal" { // which tells of those that run, and of no others
			word = "running"
		}
		if state, known := stateWords[word]; known {
			b.state = state
		}
		found = append(found, b)
	}
	return found, nil
}

// directories reads the local provider's store.
func (c *cloud) directories() ([]box, error) {
	entries, err := os.ReadDir(filepath.Join(c.dir, "sandboxes"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var found []box
	for _, entry := range entries {
		dir := filepath.Join(c.dir, "sandboxes", entry.Name())
		var sandbox struct{ ID, Session, Owner string }
		err := readJSON(filepath.Join(dir, "sandbox.json"), &sandbox)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		b := box{sandbox.ID, sandbox.Session, sandbox.Owner, asleep}
		var keeper struct {
			PID   int
			State string
		}
		err = readJSON(filepath.Join(dir, "keeper.json"), &keeper)
		if err == nil && keeper.State == "running" && syscall.Kill(keeper.PID, 0) == nil {
			b.state = running
		}
		found = append(found, b)
	}
	return found, err
}

// mocked reads the mock's file.
func (c *cloud) mocked() (found []box, err error) {
	var world struct {
		Sandboxes map[string]struct {
			ID, Session, Owner string
			DestroyedAt        time.Time `json:"destroyed_at"`
		}
	}
	err = readJSON(c.file, &world)
	for _, s := range world.Sandboxes {
		if s.DestroyedAt.IsZero() {
			found = append(found, box{s.ID, s.Session, s.Owner, running})
		}
	}
	return found, err
}

func readJSON(path string, into any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(content, into)
}

// call is one that a simulator has logged.
type call struct {
	Time      time.Time `json:"time"`
	Operation string    `json:"operation"`
	Method    string    `json:"method"`
	Path      string    `json:"path"`
	Outcome   string    `json:"outcome"`
	Status    int       `json:"status"`
}

func (c call) String() string {
	return fmt.Sprintf("%s (%s %s: %s)", c.Operation, c.Method, c.Path, c.Outcome)
}

// calls are what a simulator was asked since it was told to forget. The other clouds log none.
func (c *cloud) calls(ctx context.Context) (logged []call, err error) {
	if c.control != "" {
		err = c.ask(ctx, http.MethodGet, "calls", nil, &logged)
	}
	return logged, err
}

// forget begins the log of calls anew and removes the faults.
func (c *cloud) forget(ctx context.Context) error {
	if c.control == "" {
		return nil
	}
	err := c.ask(ctx, http.MethodDelete, "calls", nil, nil)
	return errors.Join(err, c.ask(ctx, http.MethodDelete, "faults", nil, nil))
}

// loseAnswers drops the connection after the effect of one call of an operation, that many of them having passed.
func (c *cloud) loseAnswers(ctx context.Context, operation string, skip int) error {
	fault := map[string]any{"operation": operation, "skip": skip, "count": 1, "after": true, "drop": true}
	return c.ask(ctx, http.MethodPost, "faults", fault, nil)
}

// changes says that a call may change something at the provider. What is only read through a POST is named.
func (c *cloud) changes(made call) bool {
	switch made.Operation {
	case "wait", "execution_wait", "read_file", // runloop
		"envd.List", "envd.Connect", // e2b
		"AppGetOrCreate", "ImageGetOrCreate", "ImageJoinStreaming", "AuthTokenGet", "ClientHello", "EnvironmentGetOrCreate",
		"SandboxGetFromName", "SandboxGetFromNameV2", "SandboxList", "SandboxListV2", "SandboxTagsGet", "SandboxGetTaskId",
		"SandboxGetTaskIdV2", "SandboxWait", "SandboxWaitV2", "SandboxGetTunnels", "SandboxGetTunnelsV2",
		"SandboxGetCommandRouterAccess", "TaskGetCommandRouterAccess", "TaskExecWait", "TaskExecPoll", "TaskExecStdioRead": // modal
		return false
	}
	return made.Method != http.MethodGet
}

// ask speaks with a simulator's control surface.
func (c *cloud) ask(ctx context.Context, method, what string, send, answer any) error {
	var body io.Reader
	if send != nil {
		text, err := json.Marshal(send)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.control+"/_sim/"+what, body)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		text, _ := io.ReadAll(response.Body)
		return fmt.Errorf("the simulator answers %s: %s", response.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}
