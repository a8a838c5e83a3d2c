package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
	"unicode/utf8"
)

const (
	defaultTimeout = 120 * time.Second
	maxTimeout     = 24 * time.Hour
	// maxFile is the most that a "read" returns, in bytes.
	maxFile = 16 << 20
)

// action is a client's request. Arguments without effect here, such as an agent's thoughts, are ignored. Arguments that
// would change the outcome but are not supported are refused.
type action struct {
	Action string `json:"action"`
	// Timeout of "run", in seconds. V0 clients put it here, others into the arguments.
	Timeout *float64 `json:"timeout"`
	Args    struct {
		Command string   `json:"command"`
		Cwd     string   `json:"cwd"`
		Timeout *float64 `json:"timeout"`
		IsInput bool     `json:"is_input"`
		Hidden  bool     `json:"hidden"`

		Path      string `json:"path"`
		Content   string `json:"content"`
		Start     int    `json:"start"`
		End       *int   `json:"end"`
		ViewRange []int  `json:"view_range"`
	} `json:"args"`
}

// observation is the answer. Extras has exactly the fields that V0 clients know for the kind of observation: they pass
// them to a constructor that accepts no others.
type observation struct {
	Observation string         `json:"observation"`
	Content     string         `json:"content"`
	Message     string         `json:"message"`
	Extras      map[string]any `json:"extras"`
	Success     *bool          `json:"success,omitempty"`
}

// metadata of a command.
type metadata struct {
	// ExitCode is -1 for a command that was cut off, and 128 plus the signal for one that was killed by a signal.
	ExitCode   int    `json:"exit_code"`
	PID        int    `json:"pid"`
	WorkingDir string `json:"working_dir"`
	Prefix     string `json:"prefix"`
	Suffix     string `json:"suffix"`
}

func failure(format string, args ...any) observation {
	text := fmt.Sprintf(format, args...)
	return observation{Observation: "error", Content: text, Message: text, Extras: map[string]any{"error_id": ""}}
}

// execute executes an action. It stops when ctx ends.
func (s *server) execute(ctx context.Context, a action) observation {
	switch a.Action {
	case "run":
		return s.run(ctx, a)
	case "read":
		return s.read(a)
	case "write":
		return s.write(a)
	}
	return failure("the action %q is not known here; run, read and write are", a.Action)
}

func (s *server) run(ctx context.Context, a action) observation {
	timeout, ok := a.timeout()
	switch {
	case !ok:
		return failure("the timeout must be a number of seconds from 0 to %.0f", maxTimeout.Seconds())
	case a.Args.IsInput:
		return failure("is_input: this server has no running command to send input to; each command runs on its own")
	case a.Args.Command == "":
		return failure("run needs a command")
	}
	dir := s.resolve(a.Args.Cwd)
	result, err := s.command(ctx, a.Args.Command, dir, timeout)
	if err != nil {
		return failure("the command could not be started: %v", err)
	}
	success := result.exitCode == 0
	return observation{
		Observation: "run",
		Content:     result.output,
		Message:     fmt.Sprintf("Command `%s` executed with exit code %d.", a.Args.Command, result.exitCode),
		Extras: map[string]any{
			"command": a.Args.Command,
			"hidden":  a.Args.Hidden,
			"metadata": metadata{
				ExitCode: result.exitCode, PID: result.pid, WorkingDir: dir, Suffix: result.note,
			},
		},
		Success: &success,
	}
}

func (a action) timeout() (time.Duration, bool) {
	seconds := a.Timeout
	if seconds == nil {
		seconds = a.Args.Timeout
	}
	if seconds == nil {
		return defaultTimeout, true
	}
	return time.Duration(*seconds * float64(time.Second)), *seconds > 0 && *seconds <= maxTimeout.Seconds()
}

func (s *server) read(a action) observation {
	path, problem := s.file(a)
	if problem != "" {
		return failure("%s", problem)
	}
	file, err := os.Open(path)
	if err != nil {
		return failure("%s", fileProblem(path, err))
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	switch {
	case err != nil:
		return failure("%s", fileProblem(path, err))
	case len(content) > maxFile:
		return failure("%s is larger than %d bytes", path, maxFile)
	case !utf8.Valid(content):
		return failure("%s is not UTF-8 text", path)
	}
	return observation{
		Observation: "read",
		Content:     string(content),
		Message:     "I read the file " + path + ".",
		Extras:      map[string]any{"path": path, "impl_source": "default"},
	}
}

// write replaces the whole file. It creates missing directories.
func (s *server) write(a action) observation {
	path, problem := s.file(a)
	if problem != "" {
		return failure("%s", problem)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return failure("%s", fileProblem(path, err))
	}
	if err := os.WriteFile(path, []byte(a.Args.Content), 0o644); err != nil {
		return failure("%s", fileProblem(path, err))
	}
	return observation{
		Observation: "write",
		Message:     "I wrote to the file " + path + ".",
		Extras:      map[string]any{"path": path},
	}
}

// file returns the path of a read or write, or the problem with it.
func (s *server) file(a action) (path, problem string) {
	whole := a.Args.Start <= 0 && (a.Args.End == nil || *a.Args.End == -1) && len(a.Args.ViewRange) == 0
	switch {
	case a.Args.Path == "":
		return "", a.Action + " needs a path"
	case !whole:
		return "", "this server reads and writes whole files: leave out start, end and view_range"
	}
	path = s.resolve(a.Args.Path)
	// Opening a pipe or a device could block forever.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return "", path + " is not a regular file"
	}
	return path, ""
}

// resolve makes a path absolute. It restricts nothing, because that is the sandbox's task.
func (s *server) resolve(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(s.workdir, path)
}

func fileProblem(path string, err error) string {
	var detail *fs.PathError
	if errors.As(err, &detail) {
		err = detail.Err
	}
	return path + ": " + err.Error()
}
