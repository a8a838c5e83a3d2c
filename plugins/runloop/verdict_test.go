package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
	"github.com/berth-dev/berth/shared/provider"
)

// controlCalls are the calls of the API since a time: everything but the tunnels.
func controlCalls(cloud *sim.Cloud, since time.Time) []simcloud.Call {
	return slices.DeleteFunc(cloud.Since(since), func(c simcloud.Call) bool { return c.Operation == "tunnel" })
}

func TestAHealthyServerCostsNoCallOfTheAPI(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	endpoints := start(t, r, made, actionServer())
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
	began := time.Now()
	for range 50 {
		if result := ping(t, r, made, endpoints); !alive(result) {
			t.Errorf("%+v", result)
		}
	}
	if calls := controlCalls(cloud, began); len(calls) != 0 {
		t.Errorf("calls: %+v", calls)
	}
}

// It measures, so the package's other tests wait until it is over.
func TestPingsThatFailAskTheAPISeldom(t *testing.T) {
	for name, change := range map[string]func(cloud *sim.Cloud, id string){
		"AServerThatBoots":   func(*sim.Cloud, string) {},
		"AStatusNobodyKnows": func(cloud *sim.Cloud, id string) { cloud.Force(id, "migrating", "") },
		"AnAPIThatFails": func(cloud *sim.Cloud, _ string) {
			cloud.Fail(simcloud.Fault{Operation: "execute", Status: 503})
		},
		"AnAPIThatHasLimits": func(cloud *sim.Cloud, _ string) {
			cloud.Fail(simcloud.Fault{Operation: "execute", Status: 429, Headers: map[string]string{"Retry-After": "1"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t, sim.Options{})
			times := brisk
			times.LookServer, times.LookCloud = time.Second, time.Second
			r := newRunloopWith(t, cloud, nil, times)
			made := create(t, r, "s1")
			endpoints := start(t, r, made, shell("sleep 1000"))
			change(cloud, made.ID)
			began := time.Now()
			pings := 0
			cloudtest.Eventually(t, "some looks were due", func() bool {
				if result := ping(t, r, made, endpoints); result.Status != provider.PingNotYet {
					t.Errorf("%+v", result)
				}
				pings++
				return time.Since(began) > 3500*time.Millisecond
			})
			// A server that was just started is looked at sooner. Where a look inside fails, the devbox is asked for too.
			const early = 4
			most := int(time.Since(began)/times.LookServer) + early
			if name != "AServerThatBoots" {
				most *= 2
			}
			if calls := controlCalls(cloud, began); len(calls) == 0 || len(calls) > most || pings < 2*most {
				t.Errorf("%d pings made %d calls", pings, len(calls))
			}
		})
	}
}

// TestTheWaitEndsWithAVerdict measures with the real pace of looks, so the package's other tests wait until it is over.
func TestTheWaitEndsWithAVerdict(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		change func(t *testing.T, cloud *sim.Cloud, r *Runloop, sandbox provider.Sandbox)
		want   provider.PingStatus
		says   string
	}{
		"TheServerDiesLater": {"echo booting; sleep 3; echo no luck; exit 9", nil, provider.PingExited, "code 9"},
		"TheServerIsKilled":  {"sleep 3; kill -KILL $$", nil, provider.PingExited, "code 137"},
		"TheSandboxIsEvicted": {"sleep 1000", func(_ *testing.T, cloud *sim.Cloud, _ *Runloop, s provider.Sandbox) {
			cloud.Force(s.ID, "suspended", "")
		}, provider.PingStopped, "suspended"},
		"TheSandboxIsSuspended": {"sleep 1000", func(t *testing.T, _ *sim.Cloud, r *Runloop, s provider.Sandbox) {
			if err := r.Suspend(t.Context(), ref(s)); err != nil {
				t.Error(err)
			}
		}, provider.PingStopped, "suspended"},
		"TheSandboxIsDestroyed": {"sleep 1000", func(_ *testing.T, cloud *sim.Cloud, _ *Runloop, s provider.Sandbox) {
			cloud.Force(s.ID, "shutdown", "api_shutdown")
		}, provider.PingGone, "api_shutdown"},
		"TheSandboxFails": {"sleep 1000", func(_ *testing.T, cloud *sim.Cloud, _ *Runloop, s provider.Sandbox) {
			cloud.Force(s.ID, "failure", "out_of_memory")
		}, provider.PingGone, "out_of_memory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t, sim.Options{})
			r := newRunloopWith(t, cloud, nil, standardTimes)
			made := create(t, r, "s1")
			endpoints := start(t, r, made, shell(test.script))
			began := time.Now()
			if test.change != nil {
				test.change(t, cloud, r, made)
			}
			result := pingUntil(t, r, made, endpoints, "there is a verdict", func(p provider.PingResult) bool { return p.Status != provider.PingNotYet })
			if result.Status != test.want || !strings.Contains(result.Reason, test.says) {
				t.Errorf("%+v", result)
			}
			limit := 6 * time.Second
			if test.want == provider.PingExited { // which happens after 3
				limit += 3 * time.Second
			}
			if took := time.Since(began); took > limit {
				t.Errorf("it took %s", took)
			}
			if name == "TheServerDiesLater" && !slices.Equal(result.LogTail, []string{"booting", "no luck"}) {
				t.Errorf("the log tail is %q", result.LogTail)
			}
		})
	}
}

func TestAPingLeavesTimeToAskWhyTheTunnelHangs(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	cloud.Force(made.ID, "suspended", "")
	cloud.Fail(simcloud.Fault{Operation: "tunnel", Hang: true})
	request := pingRequest(made, *attachedEndpoints(t, r, cloud, made))
	cloudtest.Eventually(t, "a ping sees that it is suspended", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		result, err := r.Ping(ctx, request)
		return err == nil && result.Status == provider.PingStopped
	})
}

// attachedEndpoints are the endpoints that a devbox's tunnel has.
func attachedEndpoints(t *testing.T, r *Runloop, cloud *sim.Cloud, sandbox provider.Sandbox) *provider.Endpoints {
	t.Helper()
	view := box(t, cloud, sandbox).Tunnel
	endpoints, err := r.boxes.Endpoints(t.Context(), devbox{Tunnel: &tunnel{Key: view.Key, AuthMode: view.AuthMode, AuthToken: *view.AuthToken}}, []int{8000})
	if err != nil {
		t.Fatal(err)
	}
	return &provider.Endpoints{Server: endpoints[8000]}
}

func TestAnotherProcessGetsTheVerdictToo(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	made := create(t, newRunloop(t, cloud, nil), "s1")
	endpoints := start(t, newRunloop(t, cloud, nil), made, shell("sleep 3; exit 4"))
	result := pingUntil(t, newRunloop(t, cloud, nil), made, endpoints, "there is a verdict", func(p provider.PingResult) bool { return p.Status != provider.PingNotYet })
	if result.Status != provider.PingExited || result.ExitCode == nil || *result.ExitCode != 4 {
		t.Errorf("%+v", result)
	}
}

func TestAnAPIKeyThatWasRevokedIsNamedInTheReason(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	endpoints := start(t, r, made, shell("sleep 2; exec berth-action-server"))
	revoked := []*simcloud.Injected{
		cloud.Fail(simcloud.Fault{Operation: "execute", Status: 401}), cloud.Fail(simcloud.Fault{Operation: "get", Status: 401}),
	}
	pingUntil(t, r, made, endpoints, "it is named", func(p provider.PingResult) bool {
		return p.Status == provider.PingNotYet && strings.Contains(p.Reason, "401")
	})
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
	if revoked[1].Fired() == 0 {
		t.Error("the devbox was not asked for")
	}
}
