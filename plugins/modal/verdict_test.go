package main

import (
	"context"
	"strings"
	"testing"
	"time"

	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/modal/sim"
	cloudkit "github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// verdict pings as a host does, until something else than "not yet" is answered or limit passes.
func verdict(t *testing.T, d *Modal, sandbox provider.Sandbox, endpoints provider.Endpoints, limit time.Duration) (last provider.PingResult, took time.Duration) {
	t.Helper()
	began, denied := time.Now(), time.Time{}
	for time.Since(began) < limit {
		last = ping(t, d, sandbox, endpoints)
		if last.Status == provider.PingDenied && denied.IsZero() {
			denied = time.Now()
		}
		if last.Status != provider.PingNotYet && (last.Status != provider.PingDenied || time.Since(denied) > 3*time.Second) {
			break
		}
		cloudkit.Pause(t.Context(), min(max(time.Since(began)/10, 15*time.Millisecond), time.Second))
	}
	return last, time.Since(began)
}

// control are the calls of the control plane.
func control(cloud *sim.Cloud) int {
	return cloud.Traffic.Count() - cloud.Traffic.Count("connect", "TaskExecStart", "TaskExecStdioRead", "TaskExecWait", "AuthTokenGet")
}

func TestAServerThatDiesAtOnceIsKnownByItsCodeAndLastLines(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	result := dies(t, d, sandbox, shellServer("echo first; echo last words >&2; exit 7"))
	if result.ExitCode == nil || *result.ExitCode != 7 || strings.Join(result.LogTail, "|") != "first|last words" {
		t.Errorf("%+v", result)
	}
	result = dies(t, d, sandbox, provider.Server{Command: []string{"no-such-program"}, Port: 8000})
	if result.ExitCode == nil || *result.ExitCode != 127 || !strings.Contains(strings.Join(result.LogTail, "\n"), "No such file") {
		t.Errorf("%+v", result)
	}
}

// dies starts a server that dies at once, and returns what becomes known of that: from the start already, or from a ping.
func dies(t *testing.T, d *Modal, sandbox provider.Sandbox, server provider.Server) provider.PingResult {
	t.Helper()
	endpoints, err := d.StartServer(t.Context(), startRequest(sandbox, server))
	if e := provider.AsError(err); e != nil {
		if e.Reason != provider.ReasonServerExited {
			t.Fatal(err)
		}
		return provider.PingResult{Status: provider.PingExited, ExitCode: e.ExitCode, LogTail: e.LogTail}
	}
	var last provider.PingResult
	cloudtest.Eventually(t, "the server is known to be dead", func() bool {
		last = ping(t, d, sandbox, endpoints)
		return last.Status == provider.PingExited
	})
	return last
}

// It measures, so the package's other tests wait until it is over.
func TestTheWaitEndsInTimeWithTheVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		happen func(cloud *sim.Cloud, id string)
		want   provider.PingStatus
		reason string
	}{
		"the server dies":      {script: "sleep 3; echo last words; exit 3", want: provider.PingExited, reason: "exited with code 3"},
		"the server is killed": {script: "sleep 3; kill -9 $$", want: provider.PingExited, reason: "exited with code 137"},
		"the sandbox is terminated": {
			script: "sleep 1000", want: provider.PingGone, reason: "it was terminated",
			happen: func(cloud *sim.Cloud, id string) { cloud.End(id, pb.GenericResult_GENERIC_STATUS_TERMINATED, 137) },
		},
		"the sandbox's lifetime is over": {
			script: "sleep 1000", want: provider.PingGone, reason: "its lifetime was over",
			happen: func(cloud *sim.Cloud, id string) { cloud.End(id, pb.GenericResult_GENERIC_STATUS_TIMEOUT, 0) },
		},
		"the sandbox is idle, which has an exit code of 0": {
			script: "sleep 1000", want: provider.PingGone, reason: "idle for too long",
			happen: func(cloud *sim.Cloud, id string) { cloud.End(id, pb.GenericResult_GENERIC_STATUS_IDLE_TIMEOUT, 0) },
		},
		"the sandbox is evicted": {
			script: "sleep 1000", want: provider.PingGone, reason: "evicted",
			happen: func(cloud *sim.Cloud, id string) {
				cloud.End(id, pb.GenericResult_GENERIC_STATUS_MEMORY_MANAGER_EVICTION, 0)
			},
		},
		"the sandbox is forgotten": {
			script: "sleep 1000", want: provider.PingGone, reason: "no longer exists",
			happen: func(cloud *sim.Cloud, id string) { cloud.Forget(id) },
		},
		"the sandbox ends in a way that is new": {
			script: "sleep 1000", want: provider.PingGone, reason: "the sandbox has ended: 42",
			happen: func(cloud *sim.Cloud, id string) { cloud.End(id, 42, 0) },
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t, sim.Options{})
			d := newTimedProvider(t, cloud, normalTimes, nil)
			sandbox := create(t, d, "s1")
			endpoints := start(t, d, sandbox, shellServer(c.script))
			if c.happen != nil {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan struct{})
				go func() {
					defer close(done)
					cloudkit.Pause(ctx, 500*time.Millisecond)
					c.happen(cloud, sandbox.ID)
				}()
				defer func() { <-done }()
			}
			result, took := verdict(t, d, sandbox, endpoints, 30*time.Second)
			if result.Status != c.want || !strings.Contains(result.Reason, c.reason) {
				t.Errorf("%+v", result)
			}
			limit := 6 * time.Second
			if c.want == provider.PingExited { // which happens after 3
				limit += 3 * time.Second
			}
			if took > limit {
				t.Errorf("took %s", took)
			}
			if c.want == provider.PingExited && c.script[:10] == "sleep 3; e" && strings.Join(result.LogTail, "") != "last words" {
				t.Errorf("log %q", result.LogTail)
			}
		})
	}
}

func TestASandboxWithoutAWorkerThatAnswersIsWaitedForAndKept(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	times := testTimes
	times.Patience, times.LookServer = time.Nanosecond, 300*time.Millisecond
	d := newTimedProvider(t, cloud, times, nil)
	sandbox := create(t, d, "s1")
	endpoints := start(t, d, sandbox, shellServer("sleep 1000"))
	cloud.Break(sandbox.ID)
	for range 3 {
		if result := ping(t, d, sandbox, endpoints); result.Status != provider.PingNotYet {
			t.Errorf("%+v", result)
		}
	}
	if there := cloud.Sandboxes(); len(there) != 1 {
		t.Errorf("there are %d", len(there))
	}
}

func TestAnotherProcessGetsTheVerdictToo(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	endpoints := start(t, d, sandbox, shellServer("sleep 3; echo last words; exit 3"))
	times := normalTimes
	times.LookCloud = time.Second
	other := newTimedProvider(t, cloud, times, nil)
	result, took := verdict(t, other, sandbox, endpoints, 30*time.Second)
	if result.Status != provider.PingExited || result.ExitCode == nil || *result.ExitCode != 3 {
		t.Errorf("after %s: %+v", took, result)
	}
}

func TestTheHealthWaitLeavesTheAPIAlone(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newTimedProvider(t, cloud, normalTimes, nil)
	sandbox := create(t, d, "s1")
	server := pythonServer()
	server.Command = []string{"sh", "-c", `sleep 1; exec "$@"`, "sh", "python3", "-IS", "-c", server.Command[3], "{port}"}
	endpoints := start(t, d, sandbox, server)
	before := control(cloud)
	if result, took := verdict(t, d, sandbox, endpoints, 20*time.Second); result.Status != provider.PingAlive {
		t.Fatalf("%+v after %s", result, took)
	}
	for range 20 {
		if result := ping(t, d, sandbox, endpoints); result.Status != provider.PingAlive {
			t.Errorf("%+v", result)
		}
	}
	if calls := control(cloud) - before; calls > 0 {
		t.Errorf("%d calls", calls)
	}
}

func TestProbesThatKeepFailingDoNotCostTheControlPlaneMoreThanOneCallInFiveSeconds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		broken bool
		least  int
	}{
		"while the worker answers for it": {false, 0},
		"while the worker is silent":      {true, 1},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t, sim.Options{})
			d := newTimedProvider(t, cloud, normalTimes, nil)
			sandbox := create(t, d, "s1")
			endpoints := start(t, d, sandbox, shellServer("sleep 1000"))
			if c.broken {
				cloud.Break(sandbox.ID)
			}
			began := time.Now()
			before := control(cloud)
			result, took := verdict(t, d, sandbox, endpoints, 12*time.Second)
			if result.Status != provider.PingNotYet {
				t.Errorf("%+v", result)
			}
			if calls := control(cloud) - before; calls < c.least || calls > 1+int(took/(5*time.Second)) {
				t.Errorf("%d calls in %s", calls, took)
			}
			if pings := len(cloud.Traffic.Since(began, "connect")); pings < 5 {
				t.Errorf("only %d pings", pings)
			}
		})
	}
}
