package cloudtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
)

// Machine is a user's: the real executables, a configuration and an environment that name a cloud, and a secret that
// nothing may show.
type Machine struct {
	*testing.T
	Dir    string
	Env    []string
	berth  string
	canary string
}

// NewMachine makes a machine with a plugin of this module. config is the content of the configuration file.
func NewMachine(t *testing.T, plugin, canary, config string, env ...string) *Machine {
	t.Helper()
	testbin.Build(t, "./plugins/"+plugin)
	m := &Machine{T: t, Dir: t.TempDir(), Env: env, berth: testbin.Build(t, "./host"), canary: canary}
	if err := os.WriteFile(filepath.Join(m.Dir, "config.hcl"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

// command is a berth that shares nothing with another but the configuration and the cloud.
func (m *Machine) command(ctx context.Context, args ...string) *exec.Cmd {
	m.Helper()
	home, err := os.MkdirTemp("/tmp", "b-") // the path of a socket must be short
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { os.RemoveAll(home) })
	command := exec.CommandContext(ctx, m.berth, args...)
	command.Dir, command.WaitDelay = m.Dir, 10*time.Second
	command.Env = slices.Concat([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_STATE_HOME=" + filepath.Join(home, "state"), "XDG_RUNTIME_DIR=" + home,
		"GORACE=atexit_sleep_ms=0",
	}, m.Env)
	return command
}

// Outcome is what became of a berth.
type Outcome struct {
	Code           int
	Stdout, Stderr string
	Connection     // what it printed, if that was one
}

// Connection is what `berth connect -o json` prints.
type Connection struct {
	Sandbox struct{ ID, Origin string }
	URL     string
	Headers map[string]string
}

// Run runs berth in a process of its own, in a state directory of its own.
func (m *Machine) Run(args ...string) Outcome {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), 2*time.Minute)
	defer cancel()
	return m.run(m.command(ctx, args...), func() {})
}

// run runs a command, does something meanwhile, and looks for the canary in what was printed.
func (m *Machine) run(command *exec.Cmd, meanwhile func()) Outcome {
	m.Helper()
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Start()
	if err == nil {
		meanwhile()
		err = command.Wait()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.Error(err)
	}
	o := Outcome{Code: command.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
	if strings.Contains(o.Stdout+o.Stderr, m.canary) {
		m.Errorf("%s: the secret is in what it printed", command)
	}
	if strings.Contains(o.Stderr, "DATA RACE") {
		m.Errorf("%s", o.Stderr)
	}
	_ = json.Unmarshal(stdout.Bytes(), &o.Connection) // not everything prints one
	return o
}

// Connect connects a session, which must succeed.
func (m *Machine) Connect(session string) Connection {
	m.Helper()
	o := m.Run("connect", session, "-o", "json")
	if o.Code != 0 || o.Sandbox.ID == "" {
		m.Fatalf("connect: exit code %d\n%s\n%s", o.Code, o.Stdout, o.Stderr)
	}
	return o.Connection
}

// Disconnect disconnects a session, which must succeed.
func (m *Machine) Disconnect(session string, args ...string) {
	m.Helper()
	if o := m.Run(append([]string{"disconnect", session}, args...)...); o.Code != 0 {
		m.Fatalf("disconnect: exit code %d\n%s\n%s", o.Code, o.Stdout, o.Stderr)
	}
}

// InterruptConnect interrupts a connect of a new session when a condition holds. Before, it looks for the canary in the
// plugin's process.
func (m *Machine) InterruptConnect(what string, condition func() bool) {
	m.Helper()
	command := m.command(m.Context(), "connect", "s1", "-o", "json", "--log-level", "trace")
	o := m.run(command, func() {
		Eventually(m.T, what, condition)
		plugins := pluginsOf(command.Process.Pid)
		if len(plugins) != 1 {
			m.Errorf("%d plugin processes", len(plugins))
		}
		for _, process := range plugins {
			for _, file := range []string{"cmdline", "environ"} {
				content, err := os.ReadFile(filepath.Join(process, file))
				if err != nil || bytes.Contains(content, []byte(m.canary)) {
					m.Errorf("the secret is in the plugin's %s, or it cannot be read: %v", file, err)
				}
			}
		}
		if err := command.Process.Signal(os.Interrupt); err != nil {
			m.Fatal(err)
		}
	})
	if o.Code != 130 {
		m.Errorf("exit code %d\n%s\n%s", o.Code, o.Stdout, o.Stderr)
	}
}

// pluginsOf returns the directories in /proc of the plugins that a process started.
func pluginsOf(pid int) []string {
	var found []string
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range all {
		status, _ := os.ReadFile(filepath.Join(process, "status"))
		exe, _ := os.Readlink(filepath.Join(process, "exe"))
		if strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", pid)) && strings.HasPrefix(filepath.Base(exe), "berth-provider-") {
			found = append(found, process)
		}
	}
	return found
}

// Race has two processes connect one new session at once, for BERTH_RACE_ROUNDS rounds, and returns how many these are. Both
// must end with the one sandbox there is. there returns the ids of all sandboxes, and remove removes them after each round.
func (m *Machine) Race(there func() []string, remove func(session string, ids []string)) int {
	m.Helper()
	rounds := 5
	if text := os.Getenv("BERTH_RACE_ROUNDS"); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			m.Fatal(err)
		}
	}
	for round := range rounds {
		session := fmt.Sprintf("s%d", round)
		var outcomes [2]Outcome
		var both sync.WaitGroup
		for i := range outcomes {
			both.Go(func() { outcomes[i] = m.Run("connect", session, "-o", "json") })
		}
		both.Wait()
		ids := there()
		for _, o := range outcomes {
			if o.Code != 0 || len(ids) != 1 || o.Sandbox.ID != ids[0] {
				m.Errorf("round %d: exit code %d, connected %+v, there are %v\n%s\n%s", round, o.Code, o.Sandbox, ids, o.Stdout, o.Stderr)
			}
		}
		remove(session, ids)
	}
	return rounds
}
