package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/testbin"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
)

// installation is what the berth processes of a test have in common: a configuration, and the cloud. Each has a state
// directory of its own.
type installation struct {
	*testing.T
	cloud  *sim.Cloud
	dir    string
	berths string // the executable
	// keyInFile says that the configuration names everything, and the environment nothing.
	keyInFile bool
}

func newInstallation(t *testing.T, options sim.Options) *installation {
	t.Helper()
	testbin.Build(t, "./plugins/runloop")
	i := &installation{T: t, cloud: newCloud(t, options), dir: t.TempDir(), berths: testbin.Build(t, "./host")}
	config := `
		host {
			secret = "a secret of these tests"
			owner  = "tests"
		}
		provider "runloop" {
			env = { GORACE = "atexit_sleep_ms=0" }
		}
	`
	if err := os.WriteFile(filepath.Join(i.dir, "config.hcl"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

// connected is what `berth connect -o json` prints.
type connected struct {
	Sandbox struct {
		ID     string `json:"id"`
		Origin string `json:"origin"`
	} `json:"sandbox"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Error   struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// berth runs a fresh process and gives what it printed, and its exit code.
func (i *installation) berth(args ...string) (connected, string, int) {
	i.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	state, err := os.MkdirTemp(i.dir, "state-")
	if err != nil {
		i.Fatal(err)
	}
	sockets, err := os.MkdirTemp("/tmp", "b-") // a socket's path must be short
	if err != nil {
		i.Fatal(err)
	}
	defer os.RemoveAll(sockets)
	command := exec.CommandContext(ctx, i.berths, append(args, "-o", "json")...)
	command.Dir = i.dir
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + i.dir, "XDG_STATE_HOME=" + state, "XDG_RUNTIME_DIR=" + sockets,
		"GORACE=atexit_sleep_ms=0", "BERTH_LOG=trace",
	}
	for name, value := range i.cloud.Environment() {
		if i.keyInFile {
			break
		}
		command.Env = append(command.Env, name+"="+value)
	}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	command.WaitDelay = 10 * time.Second
	_ = command.Run() // the exit code tells
	if strings.Contains(stderr.String()+stdout.String(), canary) {
		i.Errorf("berth %s shows the API key", strings.Join(args, " "))
	}
	if strings.Contains(stderr.String(), "DATA RACE") {
		i.Errorf("%s", stderr.String())
	}
	var result connected
	_ = json.Unmarshal(stdout.Bytes(), &result)
	return result, stdout.String() + stderr.String(), command.ProcessState.ExitCode()
}

func (i *installation) connect(origin, session string) connected {
	i.Helper()
	result, output, code := i.berth("connect", session)
	if code != 0 || result.Sandbox.Origin != origin {
		i.Fatalf("connect %s: exit code %d, %+v, want %s\n%s", session, code, result.Sandbox, origin, output)
	}
	return result
}

func TestFreshProcessesShareNothingButTheCloud(t *testing.T) {
	t.Parallel()
	i := newInstallation(t, sim.Options{
		Provision: 100 * time.Millisecond, Suspend: 100 * time.Millisecond, Resume: 100 * time.Millisecond, LazyStatus: 50 * time.Millisecond,
	})
	created := i.connect("created", "s1")
	attached := i.connect("attached", "s1")
	if _, output, code := i.berth("disconnect", "s1", "--action", "suspend"); code != 0 {
		t.Fatalf("suspend: exit code %d\n%s", code, output)
	}
	if live := i.cloud.Live(); len(live) != 1 || live[0].Status != "suspended" {
		t.Errorf("after the suspend: %+v", live)
	}
	woken := i.connect("woken", "s1")
	for _, again := range []connected{attached, woken} {
		if again.Sandbox.ID != created.Sandbox.ID || again.URL != created.URL {
			t.Errorf("got %s at %s, then %s at %s", created.Sandbox.ID, created.URL, again.Sandbox.ID, again.URL)
		}
	}
	if created.Headers["X-Runloop-Tunnel-Authorization"] == "" || created.Headers["X-Session-API-Key"] == "" {
		t.Errorf("the headers are %+v", created.Headers)
	}
	if _, output, code := i.berth("disconnect", "s1"); code != 0 {
		t.Fatalf("disconnect: exit code %d\n%s", code, output)
	}
	if live := i.cloud.Live(); len(live) != 0 {
		t.Errorf("left: %+v", live)
	}
	if _, _, code := i.berth("connect", "s1", "--mode", "attach"); code != 4 {
		t.Errorf("attaching to nothing: exit code %d", code)
	}
}

// rounds is how often the race of two creates is run.
func rounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("BERTH_RACE_ROUNDS")
	if text == "" {
		return 5
	}
	count, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

func TestTwoProcessesThatConnectOneSessionEndWithOneSandbox(t *testing.T) {
	t.Parallel()
	i := newInstallation(t, sim.Options{Provision: 100 * time.Millisecond})
	// Both have looked and found nothing by the time the first devbox is made.
	i.cloud.Fail(simcloud.Fault{Operation: "create", Delay: time.Second})
	for round := range rounds(t) {
		session := fmt.Sprintf("s%d", round)
		results := make([]connected, 2)
		var processes sync.WaitGroup
		for n := range results {
			processes.Go(func() {
				result, output, code := i.berth("connect", session)
				if results[n] = result; code != 0 {
					t.Errorf("round %d: exit code %d\n%s", round, code, output)
				}
			})
		}
		processes.Wait()
		live := i.cloud.Live()
		if len(live) != 1 || results[0].Sandbox.ID != live[0].ID || results[1].Sandbox.ID != live[0].ID {
			t.Errorf("round %d: got %s and %s, %d left", round, results[0].Sandbox.ID, results[1].Sandbox.ID, len(live))
		}
		if _, output, code := i.berth("disconnect", session); code != 0 {
			t.Errorf("round %d: disconnect: exit code %d\n%s", round, code, output)
		}
	}
	if creates := i.cloud.Count("create"); creates <= rounds(t) {
		t.Errorf("%d rounds made %d devboxes: there was no race", rounds(t), creates)
	}
}
