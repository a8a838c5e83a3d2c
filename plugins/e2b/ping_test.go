package main

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

// unhurried lets a provider take the times it really takes.
func unhurried(_ *Config, t *times) { *t = realTimes }

// control are the operations of the control API.
var control = []string{"create", "list", "get", "connect", "pause", "timeout", "refresh", "kill", "resume"}

func TestAServerThatDiesAtOnceIsReportedWithItsLastWords(t *testing.T) {
	t.Parallel()
	_, p := setup(t)
	sandbox := create(t, p, "s1")
	e := wantCode(t, second(p.StartServer(t.Context(), startRequest(sandbox, shell("echo last words >&2; exit 3")))), provider.CodeFailed)
	if e.Reason != provider.ReasonServerExited || e.ExitCode == nil || *e.ExitCode != 3 || strings.Join(e.LogTail, "|") != "last words" {
		t.Errorf("%+v", e)
	}
	e = wantCode(t, second(p.StartServer(t.Context(), startRequest(sandbox, provider.Server{Command: []string{"no-such-program"}}))), provider.CodeFailed)
	if e.ExitCode == nil || *e.ExitCode != 127 || !strings.Contains(strings.Join(e.LogTail, "|"), "no-such-program") {
		t.Errorf("%+v", e)
	}
	// After a failed start another one is possible.
	start(t, p, sandbox, actionServer())
}

// awaitVerdict pings like a host until there is a verdict, and checks that it comes within six seconds.
func awaitVerdict(t *testing.T, p *E2B, sandbox provider.Sandbox, endpoints provider.Endpoints, happens func()) provider.PingResult {
	t.Helper()
	if result := ping(t, p, sandbox, endpoints); result.Status != provider.PingNotYet {
		t.Fatalf("the first ping: %+v", result)
	}
	happens()
	began := time.Now()
	for {
		result := ping(t, p, sandbox, endpoints)
		switch took := time.Since(began); {
		case took >= 6*time.Second:
			t.Fatalf("no verdict after %s: %+v", took, result)
		case result.Status != provider.PingNotYet:
			return result
		}
		if err := pause(t.Context(), 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAServerThatDiesDuringTheWaitEndsIt(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{DialTime: time.Second})
	p := newProvider(t, cloud, unhurried)
	sandbox := create(t, p, "s1")
	endpoints := start(t, p, sandbox, shell("echo last words; while [ ! -e /home/user/die ]; do sleep 0.05; done; exit 7"))
	result := awaitVerdict(t, p, sandbox, endpoints, func() { inside(t, cloud, sandbox.ID, "touch /home/user/die") })
	if result.Status != provider.PingExited || result.ExitCode == nil || *result.ExitCode != 7 || strings.Join(result.LogTail, "|") != "last words" {
		t.Errorf("%+v", result)
	}
	// Another process, which has neither created nor attached, finds it out too.
	if result := awaitPing(t, newProvider(t, cloud), sandbox, endpoints); result.Status != provider.PingExited || *result.ExitCode != 7 {
		t.Errorf("another process: %+v", result)
	}
}

func TestAServerThatIsKilledDuringTheWaitEndsIt(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{DialTime: time.Second})
	p := newProvider(t, cloud, unhurried)
	sandbox := create(t, p, "s1")
	endpoints := start(t, p, sandbox, shell("echo $$ >/home/user/pid; exec sleep 1000"))
	result := awaitVerdict(t, p, sandbox, endpoints, func() { inside(t, cloud, sandbox.ID, "kill -9 $(cat /home/user/pid)") })
	if result.Status != provider.PingExited || result.ExitCode == nil || *result.ExitCode != 128+9 {
		t.Errorf("%+v", result)
	}
}

func TestASandboxThatIsPausedOrKilledDuringTheWaitEndsIt(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{DialTime: time.Second})
	for session, test := range map[string]struct {
		happens func(id string)
		want    provider.PingStatus
	}{
		"paused": {func(id string) { _ = cloud.Pause(id) }, provider.PingStopped},
		"killed": {cloud.Kill, provider.PingGone},
	} {
		p := newProvider(t, cloud, unhurried)
		sandbox := create(t, p, session)
		endpoints := start(t, p, sandbox, shell("exec sleep 1000"))
		result := awaitVerdict(t, p, sandbox, endpoints, func() { test.happens(sandbox.ID) })
		if result.Status != test.want {
			t.Errorf("%s: %+v", session, result)
		}
	}
}

func TestAStateThatIsNotKnownIsWaitedOutAndNamed(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	cloud.SetState(sandbox.ID, "hibernating")
	cloud.Unroute(sandbox.ID, true)
	cloudtest.Eventually(t, "a ping names the state", func() bool {
		result := ping(t, p, sandbox, *sandbox.Endpoints)
		if result.Status != provider.PingNotYet {
			t.Fatalf("%+v", result)
		}
		return strings.Contains(result.Reason, "hibernating")
	})
	listed, err := p.List(t.Context(), provider.ListRequest{Owner: owner})
	if err != nil || len(listed) != 1 || listed[0].State != provider.StateUnknown || listed[0].Detail != "hibernating" {
		t.Errorf("listed: %+v, %v", listed, err)
	}
}

func TestWaitingForAServerThatBootsCostsNoControlCall(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{DialTime: time.Second})
	p := newProvider(t, cloud, unhurried)
	sandbox := create(t, p, "s1")
	began := time.Now()
	endpoints := start(t, p, sandbox, shell("sleep 2.5; exec berth-action-server --port {port}"))
	if result := awaitPing(t, p, sandbox, endpoints); result.Status != provider.PingAlive {
		t.Fatalf("%+v", result)
	}
	if calls := cloud.Traffic.Since(began, control...); len(calls) > 0 {
		t.Errorf("%d control calls, the first a %s", len(calls), calls[0].Operation)
	}
	// While it is up, nobody but the server is asked.
	began = time.Now()
	for range 10 {
		ping(t, p, sandbox, endpoints)
	}
	if calls := cloud.Traffic.Since(began); len(calls) != 10 {
		t.Errorf("10 pings made %d calls", len(calls))
	}
}

func TestProbesThatKeepFailingCostOneControlCallInFiveSeconds(t *testing.T) {
	t.Parallel()
	var cells cells
	defer cells.wait()
	for what, spoil := range map[string]func(*sim.Cloud, string){
		"the port stays closed":   func(*sim.Cloud, string) {},
		"the way there is broken": func(cloud *sim.Cloud, id string) { cloud.Unroute(id, true) },
		"the proxy denies that there is a sandbox": func(cloud *sim.Cloud, id string) {
			cloud.Traffic.Fail(simcloud.Fault{
				Operation: "port", Status: http.StatusBadGateway, Headers: map[string]string{"Content-Type": "application/json"},
				Body: `{"sandboxId":"` + id + `","message":"The sandbox was not found","code":502}`,
			})
		},
	} {
		cells.run(t, what, func(t *testing.T) {
			cloud := newCloud(t, sim.Options{})
			p := newProvider(t, cloud, unhurried)
			sandbox := create(t, p, "s1")
			endpoints := start(t, p, sandbox, shell("exec sleep 1000"))
			spoil(cloud, sandbox.ID)
			began := time.Now()
			pings := 0
			for time.Since(began) < 7*time.Second {
				if result := ping(t, p, sandbox, endpoints); result.Status != provider.PingNotYet {
					t.Fatalf("%+v", result)
				}
				pings++
				if err := pause(t.Context(), 20*time.Millisecond); err != nil {
					t.Fatal(err)
				}
			}
			calls := cloud.Traffic.Since(began, control...)
			if len(calls) > 2 || len(calls) == 2 && calls[1].Time.Sub(calls[0].Time) < 5*time.Second-100*time.Millisecond {
				t.Errorf("%d pings made %d control calls", pings, len(calls))
			}
		})
	}
}
