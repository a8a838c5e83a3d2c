package main

import (
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/shared/provider"
)

// verdict pings as a host does, at the plugin's normal pace, until something else than "not yet" is answered or limit passes.
func verdict(t *testing.T, d *Daytona, sandbox provider.Sandbox, endpoints provider.Endpoints, limit time.Duration) (last provider.PingResult, took time.Duration) {
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
		time.Sleep(min(max(time.Since(began)/10, 15*time.Millisecond), time.Second))
	}
	return last, time.Since(began)
}

// control are the calls of the API proper.
func control(cloud *sim.Cloud) int {
	return cloud.Traffic.Count() - cloud.Traffic.Count("preview", "executeCommand")
}

func TestAServerThatDiesAtOnceIsAnErrorWithItsCodeAndLastLines(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	_, err := d.StartServer(t.Context(), startRequest(sandbox, shellServer("echo first; echo last words >&2; exit 7")))
	e := provider.AsError(err)
	if e == nil || e.Reason != provider.ReasonServerExited || e.ExitCode == nil || *e.ExitCode != 7 || strings.Join(e.LogTail, "|") != "first|last words" {
		t.Fatalf("%+v", e)
	}
	_, err = d.StartServer(t.Context(), startRequest(sandbox, provider.Server{Command: []string{"no-such-program"}, Port: 8000}))
	if e := provider.AsError(err); e == nil || e.ExitCode == nil || *e.ExitCode != 127 || !strings.Contains(strings.Join(e.LogTail, "\n"), "not found") {
		t.Errorf("%+v", e)
	}
}

// It measures, so the package's other tests wait until it is over.
func TestTheWaitEndsInTimeWithTheVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		happen func(t *testing.T, cloud *sim.Cloud, id string)
		want   provider.PingStatus
		reason string
	}{
		"the server dies":      {script: "sleep 3; echo last words; exit 3", want: provider.PingExited, reason: "exited with code 3"},
		"the server is killed": {script: "sleep 3; kill -9 $$", want: provider.PingExited, reason: "exited with code 137"},
		"the sandbox is stopped": {
			script: "sleep 1000", want: provider.PingStopped, reason: "stopped",
			happen: func(t *testing.T, cloud *sim.Cloud, id string) { cloud.Force(id, "stopped", "", false) },
		},
		"the sandbox is archived": {
			script: "sleep 1000", want: provider.PingStopped, reason: "archived",
			happen: func(t *testing.T, cloud *sim.Cloud, id string) { cloud.Force(id, "archived", "", false) },
		},
		"the sandbox is evicted": {
			script: "sleep 1000", want: provider.PingGone, reason: "runner lost",
			happen: func(t *testing.T, cloud *sim.Cloud, id string) { cloud.Force(id, "error", "runner lost", false) },
		},
		"the sandbox is deleted": {
			script: "sleep 1000", want: provider.PingGone, reason: "no longer exists",
			happen: func(t *testing.T, cloud *sim.Cloud, id string) { cloud.Force(id, "destroyed", "", false) },
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t, sim.Options{})
			d := newProvider(t, cloud, nil)
			sandbox := create(t, d, "s1")
			endpoints := start(t, d, sandbox, shellServer(c.script))
			d = newProviderWith(t, cloud, normalTimes, nil)
			if c.happen != nil {
				done := make(chan struct{})
				go func() {
					defer close(done)
					<-time.After(500 * time.Millisecond)
					c.happen(t, cloud, sandbox.ID)
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

func TestAnUnknownStateIsWaitedForAndThenNamed(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	endpoints := start(t, d, sandbox, shellServer("sleep 1000"))
	cloud.Force(sandbox.ID, "hibernating", "", false)

	if result := ping(t, d, sandbox, endpoints); result.Status != provider.PingNotYet || !strings.Contains(result.Reason, "does not know") {
		t.Errorf("ping: %+v", result)
	}
	_, err := d.Attach(short(t, 300*time.Millisecond), attachRequest("s1"))
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeTimeout || !strings.Contains(e.Message, "does not know") {
		t.Errorf("attach: %v", err)
	}
	cloud.Force(sandbox.ID, "started", "", false)
	if again := attach(t, d, "s1"); again.ID != sandbox.ID {
		t.Errorf("attached to %s", again.ID)
	}
}

func TestTheHealthWaitLeavesTheAPIAlone(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	server := pythonServer()
	server.Command = []string{"sh", "-c", `sleep 1; exec "$@"`, "sh", "python3", "-IS", "-c", server.Command[3], "{port}"}
	endpoints := start(t, d, sandbox, server)
	d = newProviderWith(t, cloud, normalTimes, nil)
	before := control(cloud)
	if result, took := verdict(t, d, sandbox, endpoints, 20*time.Second); result.Status != provider.PingAlive {
		t.Fatalf("%+v after %s", result, took)
	}
	for range 20 {
		if result := ping(t, d, sandbox, endpoints); result.Status != provider.PingAlive {
			t.Errorf("%+v", result)
		}
	}
	if calls := control(cloud) - before; calls > 1 { // one, if this machine was so slow that the wait seemed to fail
		t.Errorf("%d calls", calls)
	}
}

func TestProbesThatKeepFailingCostOneCallInFiveSeconds(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	endpoints := start(t, d, sandbox, shellServer("sleep 1000"))
	d = newProviderWith(t, cloud, normalTimes, nil)
	began := time.Now()
	before := control(cloud)
	result, took := verdict(t, d, sandbox, endpoints, 8*time.Second)
	if result.Status != provider.PingNotYet {
		t.Errorf("%+v", result)
	}
	calls := cloud.Traffic.Since(began, "getSandbox", "getPortPreviewUrl")
	if len(calls) == 0 || len(calls) > 1+int(took/(5*time.Second)) || control(cloud)-before != len(calls) {
		t.Errorf("%d calls in %s, %d in all", len(calls), took, control(cloud)-before)
	}
	for i := 1; i < len(calls); i++ {
		if gap := calls[i].Time.Sub(calls[i-1].Time); gap < 4900*time.Millisecond {
			t.Errorf("two calls within %s", gap)
		}
	}
	if pings := len(cloud.Traffic.Since(began, "preview")); pings < 10 {
		t.Errorf("only %d pings", pings)
	}
}
