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

	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/modal/sim"
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
	testbin.Build(t, "./plugins/modal")
	sockets, err := os.MkdirTemp("/tmp", "b-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	m.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + m.dir, "XDG_RUNTIME_DIR=" + sockets, "BERTH_LOG=debug", "GORACE=atexit_sleep_ms=0",
		"MODAL_TOKEN_ID=" + tokenID, "MODAL_TOKEN_SECRET=" + canary, "MODAL_SERVER_URL=" + cloud.URL(),
	}
	const config = `
		host { secret = "a secret of this test, long enough" }
		provider "modal" {
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
		m.Errorf("berth %s: the secret is in what it printed", strings.Join(args, " "))
	}
	return o
}

type connection struct {
	Sandbox struct{ ID, Origin string }
	URL     string
	Headers map[string]string
}

func (m *machine) connect() connection {
	m.Helper()
	o := m.run("connect", "s1", "-o", "json", "--progress", "none")
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

func TestBerthCreatesThenAttachesThenRefusesToSuspendThenFindsNothingThenCreatesAnew(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{PathDirs: withActionServer(t), Create: 100 * time.Millisecond, Build: 100 * time.Millisecond})
	m := newMachine(t, cloud)
	first := m.connect()
	second := m.connect()
	if first.Sandbox.Origin != "created" || second.Sandbox.Origin != "attached" || first.Sandbox.ID != second.Sandbox.ID {
		t.Errorf("%+v, then %+v", first.Sandbox, second.Sandbox)
	}
	for _, c := range []connection{first, second} { // a new token leaves the one before as it was
		if status, body := get(t, c.URL+"/alive", c.Headers); status != 200 || !strings.Contains(body, "ok") {
			t.Errorf("the URL answers %d: %s", status, body)
		}
		if status, _ := get(t, c.URL+"/alive", nil); status != 401 {
			t.Errorf("without its headers the URL answers %d", status)
		}
	}

	if o := m.run("disconnect", "s1", "--action", "suspend"); o.code == 0 || !strings.Contains(o.stderr+o.stdout, "suspend") {
		t.Errorf("suspend: exit code %d\n%s\n%s", o.code, o.stdout, o.stderr)
	}
	if there := cloud.Sandboxes(); len(there) != 1 || there[0].ID != first.Sandbox.ID {
		t.Errorf("after the refusal: %+v", there)
	}
	if third := m.connect(); third.Sandbox.Origin != "attached" {
		t.Errorf("after the refusal: %+v", third.Sandbox)
	}

	cloud.End(first.Sandbox.ID, pb.GenericResult_GENERIC_STATUS_TIMEOUT, 0)
	if o := m.run("connect", "s1", "--mode", "attach", "-o", "json"); o.code != 4 {
		t.Errorf("attaching to what has ended: exit code %d\n%s", o.code, o.stdout)
	}
	anew := m.connect()
	if anew.Sandbox.Origin != "created" || anew.Sandbox.ID == first.Sandbox.ID {
		t.Errorf("after its end: %+v", anew.Sandbox)
	}
	m.disconnect("s1")
	if left := cloud.Sandboxes(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	if n := cloud.Traffic.Count("SandboxCreateV2"); n != 2 {
		t.Errorf("%d creates", n)
	}
	checkCanary(t, cloud)
}

// checkCanary looks for the secret everywhere but in its header.
func checkCanary(t *testing.T, cloud *sim.Cloud) {
	t.Helper()
	met := 0
	for _, call := range cloud.Traffic.Calls() {
		inHeader := call.Headers["X-Modal-Token-Secret"]
		delete(call.Headers, "X-Modal-Token-Secret")
		met += len(inHeader)
		if len(inHeader) > 0 && !strings.HasPrefix(call.Path, "/modal.client.ModalClient/") {
			t.Errorf("%s: the secret was sent to a sandbox", call.Path)
		}
		if text := fmt.Sprint(call.Headers, call.Path, call.Body); strings.Contains(text, canary) {
			t.Errorf("%s: the secret is somewhere else than in its header", call.Operation)
		}
	}
	if met == 0 {
		t.Error("the secret was never sent: this test looks in the wrong place")
	}
}

func TestTwoProcessesAtOnceMakeOneSandbox(t *testing.T) {
	t.Parallel()
	rounds := 5
	if text := os.Getenv("BERTH_RACE_ROUNDS"); text != "" {
		rounds, _ = strconv.Atoi(text)
	}
	cloud := newCloud(t, sim.Options{PathDirs: withActionServer(t), Create: 300 * time.Millisecond})
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

func TestTheSecretIsInNoProcessOfThePluginAndAnInterruptLeavesNothing(t *testing.T) {
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
	eventually(t, "the sandbox is being created", func() bool { return cloud.Traffic.Count("SandboxCreateV2") == 1 })
	looked := 0
	for _, process := range plugins(filepath.Dir(m.berth), m.dir) {
		looked++
		for _, file := range []string{"cmdline", "environ"} {
			if content, _ := os.ReadFile(filepath.Join(process, file)); bytes.Contains(content, []byte(canary)) {
				t.Errorf("the secret is in the plugin's %s", file)
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
		t.Error("the secret is in what berth printed")
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

func TestBerthTellsARefusedTokenFromAnEmptyCloud(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	m := newMachine(t, cloud)
	for i, variable := range m.env {
		if strings.HasPrefix(variable, "MODAL_TOKEN_SECRET=") {
			m.env[i] = "MODAL_TOKEN_SECRET=as-wrong"
		}
	}
	o := m.run("connect", "s1", "-o", "json")
	if o.code != 3 || !strings.Contains(o.stdout, "Token validation failed") || strings.Contains(o.stdout+o.stderr, "as-wrong") {
		t.Errorf("exit code %d: %s\n%s", o.code, o.stdout, o.stderr)
	}
	if cloud.Traffic.Count("SandboxCreateV2") != 0 {
		t.Error("it tried to create")
	}
}
