package main

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
	"github.com/berth-dev/berth/plugins/daytona/sim"
)

// machine is a user's: the real executables, and a configuration that names a cloud.
type machine struct {
	*testing.T
	berth string
	dir   string
	env   []string
}

func newMachine(t *testing.T, cloud *sim.Cloud) *machine {
	t.Helper()
	m := &machine{T: t, berth: testbin.Build(t, "./host"), dir: t.TempDir()}
	testbin.Build(t, "./plugins/daytona")
	sockets, err := os.MkdirTemp("/tmp", "b-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	m.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + m.dir, "XDG_RUNTIME_DIR=" + sockets, "BERTH_LOG=debug", "GORACE=atexit_sleep_ms=0",
		"DAYTONA_API_KEY=" + canary, "DAYTONA_API_URL=" + cloud.URL(),
	}
	const config = `
		host { secret = "a secret of this test, long enough" }
		provider "daytona" {
			env = { GORACE = "atexit_sleep_ms=0" }
		}
	`
	if err := os.WriteFile(filepath.Join(m.dir, "config.hcl"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

type outcome struct {
	code           int
	stdout, stderr string
}

// run runs berth in a process of its own, in a state directory of its own: nothing is shared but the cloud.
func (m *machine) run(args ...string) outcome {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), 2*time.Minute)
	defer cancel()
	state, err := os.MkdirTemp(m.dir, "state-")
	if err != nil {
		m.Fatal(err)
	}
	command := exec.CommandContext(ctx, m.berth, args...)
	command.Dir = m.dir
	command.Env = slices.Concat(m.env, []string{"XDG_STATE_HOME=" + state})
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err = command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.Fatal(err)
	}
	o := outcome{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	if strings.Contains(o.stdout+o.stderr, canary) {
		m.Errorf("berth %s: the API key is in what it printed", strings.Join(args, " "))
	}
	return o
}

type connection struct {
	Sandbox struct{ ID, Origin string }
	URL     string
	Headers map[string]string
}

func (m *machine) connect(session string) connection {
	m.Helper()
	o := m.run("connect", session, "-o", "json", "--progress", "none")
	if o.code != 0 {
		m.Fatalf("connect: exit code %d\n%s\n%s", o.code, o.stdout, o.stderr)
	}
	var c connection
	if err := json.Unmarshal([]byte(o.stdout), &c); err != nil {
		m.Fatalf("%v: %s", err, o.stdout)
	}
	return c
}

func (m *machine) disconnect(session string, args ...string) {
	m.Helper()
	if o := m.run(append([]string{"disconnect", session}, args...)...); o.code != 0 {
		m.Fatalf("disconnect: exit code %d\n%s\n%s", o.code, o.stdout, o.stderr)
	}
}

func TestBerthCreatesThenAttachesThenSuspendsThenWakesThenDestroys(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{
		PathDirs: withActionServer(t), TokenCache: time.Second,
		Create: 100 * time.Millisecond, Start: 100 * time.Millisecond, Stop: 100 * time.Millisecond, Delete: 100 * time.Millisecond,
	})
	m := newMachine(t, cloud)
	var ids []string
	for i, want := range []string{"created", "attached", "woken"} {
		if want == "woken" {
			m.disconnect("s1", "--action", "suspend")
			if now := cloud.Sandboxes(); len(now) != 1 || now[0].State != "stopped" {
				t.Fatalf("after suspending: %+v", now)
			}
		}
		c := m.connect("s1")
		ids = append(ids, c.Sandbox.ID)
		if c.Sandbox.Origin != want || ids[i] != ids[0] {
			t.Errorf("connect %d: %s %s, want %s %s", i+1, c.Sandbox.Origin, ids[i], want, ids[0])
		}
		status, body := get(t, c.URL+"/alive", c.Headers)
		if status != 200 || !strings.Contains(body, "ok") {
			t.Errorf("the URL answers %d: %s", status, body)
		}
		if status, _ := get(t, c.URL+"/alive", nil); status != 307 {
			t.Errorf("without its headers the URL answers %d", status)
		}
	}
	m.disconnect("s1")
	if left := cloud.Sandboxes(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	if n := cloud.Traffic.Count("createSandbox"); n != 1 {
		t.Errorf("%d creates", n)
	}
	for _, call := range cloud.Traffic.Calls() {
		key := call.Headers["Authorization"]
		delete(call.Headers, "Authorization")
		if call.Operation == "preview" && len(key) > 0 {
			t.Errorf("%s: the API key was sent to a sandbox's port", call.Path)
		}
		if text := fmt.Sprint(call.Headers, call.Path, call.Body); strings.Contains(text, canary) {
			t.Errorf("%s: the API key is somewhere else than in its header", call.Operation)
		}
	}
}

func TestTwoProcessesAtOnceMakeOneSandbox(t *testing.T) {
	t.Parallel()
	rounds := 5
	if text := os.Getenv("BERTH_RACE_ROUNDS"); text != "" {
		rounds, _ = strconv.Atoi(text)
	}
	cloud := newCloud(t, sim.Options{PathDirs: withActionServer(t), Create: 50 * time.Millisecond})
	m := newMachine(t, cloud)
	for round := range rounds {
		session := fmt.Sprintf("s%d", round)
		var group sync.WaitGroup
		var connections [2]connection
		for i := range connections {
			group.Go(func() {
				o := m.run("connect", session, "-o", "json", "--progress", "none")
				if o.code != 0 || json.Unmarshal([]byte(o.stdout), &connections[i]) != nil {
					t.Errorf("round %d: exit code %d: %s", round, o.code, o.stdout)
				}
			})
		}
		group.Wait()
		there := cloud.Sandboxes()
		if len(there) != 1 || connections[0].Sandbox.ID != there[0].ID || connections[1].Sandbox.ID != there[0].ID {
			t.Errorf("round %d: %+v and %+v; there are %d sandboxes", round, connections[0].Sandbox, connections[1].Sandbox, len(there))
		}
		for _, sandbox := range there {
			d := newProvider(t, cloud, nil)
			if err := d.remove(t.Context(), sandbox.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d rounds, never more than one sandbox", rounds)
}

func TestTheKeyIsInNoProcessOfThePluginAndAnInterruptLeavesNothing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{PathDirs: withActionServer(t), Create: 2 * time.Second})
	m := newMachine(t, cloud)
	command := exec.CommandContext(t.Context(), m.berth, "connect", "s1", "-o", "json", "--log-level", "trace")
	command.Dir, command.Env = m.dir, slices.Concat(m.env, []string{"XDG_STATE_HOME=" + m.dir})
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the sandbox is being created", func() bool { return cloud.Traffic.Count("createSandbox") == 1 })
	looked := 0
	for _, process := range plugins(filepath.Dir(m.berth), m.dir) {
		looked++
		for _, file := range []string{"cmdline", "environ"} {
			if content, _ := os.ReadFile(filepath.Join(process, file)); bytes.Contains(content, []byte(canary)) {
				t.Errorf("the API key is in the plugin's %s", file)
			}
		}
	}
	if looked == 0 {
		t.Error("the plugin's process was not found")
	}
	if err := command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()
	if code := command.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d: %s", code, stdout.String())
	}
	if strings.Contains(stdout.String()+stderr.String(), canary) {
		t.Error("the API key is in what berth printed")
	}
	eventually(t, "nothing is left", func() bool { return len(cloud.Sandboxes()) == 0 })
}

// plugins gives the directories in /proc of the plugins that a berth started: children of the one that works in dir.
func plugins(bin, dir string) []string {
	var found []string
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range all {
		line, _ := os.ReadFile(filepath.Join(process, "cmdline"))
		status, _ := os.ReadFile(filepath.Join(process, "status"))
		_, rest, _ := strings.Cut(string(status), "PPid:\t")
		parent, _, _ := strings.Cut(rest, "\n")
		works, _ := os.Readlink(filepath.Join("/proc", parent, "cwd"))
		if strings.HasPrefix(string(line), filepath.Join(bin, "plugins")) && works == dir {
			found = append(found, process)
		}
	}
	return found
}

func TestBerthTellsARefusedKeyFromAnEmptyCloud(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	m := newMachine(t, cloud)
	for i, variable := range m.env {
		if strings.HasPrefix(variable, "DAYTONA_API_KEY=") {
			m.env[i] = "DAYTONA_API_KEY=dtn_wrong"
		}
	}
	o := m.run("connect", "s1", "-o", "json")
	if o.code != 3 || !strings.Contains(o.stdout, "401") || strings.Contains(o.stdout+o.stderr, "dtn_wrong") {
		t.Errorf("exit code %d: %s\n%s", o.code, o.stdout, o.stderr)
	}
	if cloud.Traffic.Count("createSandbox") != 0 {
		t.Error("it tried to create")
	}
}
