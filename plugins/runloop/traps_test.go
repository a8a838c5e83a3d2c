package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
	"github.com/berth-dev/berth/shared/provider"
)

func labels(session string) map[string]string {
	return map[string]string{provider.LabelOwner: cloudtest.Owner, provider.LabelSession: session, provider.LabelAttempt: "seeded"}
}

func attachTo(t *testing.T, r *Runloop, session string) (provider.Sandbox, error) {
	t.Helper()
	return r.Attach(t.Context(), provider.AttachRequest{Session: session, Owner: cloudtest.Owner, Server: cloudtest.ActionServer()})
}

func TestTrapTheListingHasPagesAndDeadDevboxes(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloud.Seed(1, "running", labels("the first"))
	cloud.Seed(1250, "running", labels("another"))
	cloud.Seed(600, "shutdown", labels("the first"))
	cloud.Seed(30, "running", map[string]string{"somebody": "else's"})
	r := newRunloop(t, cloud, nil)
	if _, err := attachTo(t, r, "the first"); err != nil {
		t.Errorf("Attach: %v", err)
	}
	all, err := r.List(t.Context(), provider.ListRequest{Owner: cloudtest.Owner})
	if err != nil || len(all) != 1251 {
		t.Errorf("listed %d, %v", len(all), err)
	}
	ids := map[string]bool{}
	for _, sandbox := range all {
		ids[sandbox.ID] = true
	}
	if len(ids) != len(all) {
		t.Errorf("%d of %d are different", len(ids), len(all))
	}
	for _, call := range cloud.Calls("list") {
		if !strings.Contains(call.Path, "include_total_count=false") {
			t.Errorf("counting is slow: %s", call.Path)
		}
	}
}

func TestTrapADevboxThatDoesNotRunIsStillTheSessions(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]provider.Origin{
		"queued": provider.OriginAttached, "provisioning": provider.OriginAttached, "initializing": provider.OriginAttached,
		"resuming": provider.OriginWoken, "suspending": provider.OriginWoken, "suspended": provider.OriginWoken,
		"migrating": provider.OriginAttached, // no status of today
	} {
		t.Run(status, func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t, sim.Options{LazyStatus: 20 * time.Millisecond})
			r := newRunloop(t, cloud, nil)
			made := cloudtest.Create(t, r, "s1")
			cloud.Force(made.ID, status, "")
			next := map[string]string{"suspending": "suspended", "suspended": ""}
			var change sync.WaitGroup
			change.Go(func() {
				cloudtest.Eventually(t, "the plugin waits", func() bool { return cloud.Count("wait") > 1 })
				if to, special := next[status]; !special {
					cloud.Force(made.ID, "running", "")
				} else if to != "" {
					cloud.Force(made.ID, to, "")
				}
			})
			sandbox, err := r.Create(t.Context(), cloudtest.CreateRequest("s1")) // must not make another
			change.Wait()
			if err != nil || sandbox.ID != made.ID || sandbox.Origin != want || len(cloud.Devboxes()) != 1 {
				t.Errorf("got %+v of %d devboxes, %v", sandbox, len(cloud.Devboxes()), err)
			}
		})
	}
}

func TestTrapOfSeveralDevboxesEveryProcessTakesTheSame(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloud.Seed(5, "running", labels("s1"))
	first := cloudtest.Attach(t, newRunloop(t, cloud, nil), "s1")
	for range 3 {
		if sandbox := cloudtest.Attach(t, newRunloop(t, cloud, nil), "s1"); sandbox.ID != first.ID {
			t.Errorf("took %s, then %s", first.ID, sandbox.ID)
		}
	}
	for _, other := range cloud.Devboxes() {
		if other.CreateTimeMS < first.CreatedAt.UnixMilli() {
			t.Errorf("%s is older than %s", other.ID, first.ID)
		}
	}
}

func TestTrapTheDefaultLifeIsAnHour(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	life := func(lifetime time.Duration, change func(*Config)) map[string]any {
		request := cloudtest.CreateRequest(fmt.Sprint("s", cloud.Count("create")))
		request.Lifetime = lifetime
		sandbox, err := newRunloop(t, cloud, change).Create(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		return box(t, cloud, sandbox).LaunchParameters
	}
	for lifetime, want := range map[time.Duration]float64{90 * time.Minute: 5400, 100 * time.Hour: 172800, 0: 3600, 1500 * time.Millisecond: 2} {
		if got := life(lifetime, nil)["keep_alive_time_seconds"]; got != want {
			t.Errorf("lifetime %s was armed as %v", lifetime, got)
		}
	}
	got, _ := json.Marshal(life(time.Hour, func(c *Config) { c.IdleTimeout = 10 * time.Minute }))
	if string(got) != `{"lifecycle":{"after_idle":{"idle_time_seconds":600,"on_idle":"suspend"}}}` {
		t.Errorf("with idle_timeout: %s", got)
	}
}

func TestTrapWaitingForRunningAloneWouldHang(t *testing.T) {
	t.Parallel()
	for status, reason := range map[string]string{"failure": "out_of_memory", "shutdown": "entrypoint_exit"} {
		t.Run(status, func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t, sim.Options{Provision: time.Hour})
			r := newRunloop(t, cloud, nil)
			var change sync.WaitGroup
			change.Go(func() {
				cloudtest.Eventually(t, "the plugin waits", func() bool { return cloud.Count("wait") > 0 })
				cloud.Force(cloud.Devboxes()[0].ID, status, reason)
			})
			began := time.Now()
			_, err := r.Create(t.Context(), cloudtest.CreateRequest("s1"))
			change.Wait()
			if provider.CodeOf(err) != provider.CodeFailed || !strings.Contains(err.Error(), status) || !strings.Contains(err.Error(), reason) {
				t.Errorf("%v", err)
			}
			if time.Since(began) > 20*time.Second || len(cloud.Live()) != 0 {
				t.Errorf("after %s: %+v is left", time.Since(began), cloud.Live())
			}
		})
	}
}

func TestTrapAnAnswerWithAnotherStatusIsNotBelieved(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Provision: 50 * time.Millisecond})
	cloud.Fail(simcloud.Fault{
		Operation: "wait", Count: 1, Status: 200, Headers: map[string]string{"Content-Type": "application/json"},
		Body: `{"id":"dbx_other","status":"resuming"}`,
	})
	sandbox := cloudtest.Create(t, newRunloop(t, cloud, nil), "s1")
	if box(t, cloud, sandbox).Status != "running" {
		t.Errorf("%+v", sandbox)
	}
}

func TestTrapResumeIsRefusedForADevboxThatResumes(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Resume: 300 * time.Millisecond, LazyStatus: 200 * time.Millisecond})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	if err := r.Suspend(t.Context(), cloudtest.Ref(made)); err != nil {
		t.Fatal(err)
	}
	var attaches sync.WaitGroup
	for range 4 {
		attaches.Go(func() {
			sandbox, err := attachTo(t, newRunloop(t, cloud, nil), "s1")
			if err != nil || sandbox.ID != made.ID || sandbox.Origin != provider.OriginWoken {
				t.Errorf("%+v, %v", sandbox, err)
			}
		})
	}
	attaches.Wait()
}

func TestTrapADevboxFallsBackWhenItsResumeFails(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Resume: time.Hour})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	if err := r.Suspend(t.Context(), cloudtest.Ref(made)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var change sync.WaitGroup
	change.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
				if box(t, cloud, made).Status == "resuming" {
					cloud.Force(made.ID, "suspended", "execution_failed")
				}
			}
		}
	})
	_, err := attachTo(t, r, "s1")
	close(done)
	change.Wait()
	if provider.CodeOf(err) != provider.CodeFailed || !strings.Contains(err.Error(), "does not wake") || !strings.Contains(err.Error(), "execution_failed") {
		t.Errorf("%v", err)
	}
	if resumes := cloud.Count("resume"); resumes != 3 {
		t.Errorf("%d resumes", resumes)
	}
}

func TestTrapEnablingATunnelIsNotIdempotent(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	request(t, cloud, made.ID, "/remove_tunnel", "")
	seen, err := r.boxes.api.get(t.Context(), made.ID)
	if err != nil {
		t.Fatal(err)
	}
	cloud.Fail(simcloud.Fault{Operation: "enable_tunnel", Status: 503, After: true, Count: 1}) // its second try is refused
	tunnel, err := r.boxes.tunnelOf(t.Context(), seen)
	if err != nil || tunnel == nil || tunnel.AuthToken == "" {
		t.Errorf("%+v, %v", tunnel, err)
	}
	if tries := cloud.Count("enable_tunnel"); tries != 2 {
		t.Errorf("%d tries", tries)
	}
}

func TestTrapAnOpenTunnelIsReplaced(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	open := cloudtest.Create(t, newRunloop(t, cloud, func(c *Config) { c.Tunnel = "open" }), "s1")
	key := box(t, cloud, open).Tunnel.Key
	r := newRunloop(t, cloud, nil)
	if attached := cloudtest.Attach(t, r, "s1"); attached.Endpoints == nil || strings.Contains(attached.Endpoints.Server.URL, key) {
		t.Errorf("the open tunnel was handed out: %+v", attached.Endpoints)
	}
	endpoints := cloudtest.Start(t, r, open, cloudtest.ActionServer())
	tunnel := box(t, cloud, open).Tunnel
	if tunnel.AuthMode != "authenticated" || strings.Contains(endpoints.Server.URL, key) {
		t.Errorf("%+v, %s", tunnel, endpoints.Server.URL)
	}
}

func TestTrapTheTunnelsTokenHasAHeaderOfItsOwn(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	cloudtest.Up(t, r, "s1")
	for _, call := range cloud.Calls("tunnel") {
		if len(call.Headers["Authorization"]) != 0 || len(call.Headers[tokenHeader]) != 1 {
			t.Fatalf("headers %v", call.Headers)
		}
	}
}

func TestTrapTheTunnelsDomainFollowsTheAPIs(t *testing.T) {
	t.Parallel()
	for base, want := range map[string]string{
		"https://api.runloop.ai/":       "https://4444-KEY.tunnel.runloop.ai",
		"https://api.runloop.pro":       "https://4444-KEY.tunnel.runloop.pro",
		"https://runloop.example.org:8": "https://4444-KEY.tunnel.runloop.example.org",
	} {
		r, err := open(t.Context(), Config{APIKey: "k", BaseURL: base, Tunnel: "authenticated"}, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		endpoints, err := r.boxes.Endpoints(t.Context(), devbox{Tunnel: &tunnel{Key: "KEY", AuthMode: "authenticated", AuthToken: "t"}}, []int{4444})
		if err != nil || endpoints[4444].URL != want {
			t.Errorf("%s: %s, %v", base, endpoints[4444].URL, err)
		}
		_, err = r.boxes.Endpoints(t.Context(), devbox{Tunnel: &tunnel{Key: "evil.example.org/", AuthMode: "authenticated", AuthToken: "t"}}, []int{4444})
		if err == nil {
			t.Error("a key became another host")
		}
		r.Close()
	}
}

func TestTrapAServerOnLoopbackIsNotReached(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	endpoints := cloudtest.Start(t, r, made, cloudtest.ActionServer()) // without a key it listens on loopback, unless it is told otherwise
	cloudtest.AwaitAlive(t, r, made, endpoints)
	told := cloudtest.Create(t, r, "s2")
	server := cloudtest.ActionServer()
	server.Env = map[string]string{"HOST": "127.0.0.1"}
	endpoints = cloudtest.Start(t, r, told, server)
	if result := cloudtest.Ping(t, r, told, endpoints); result.Status != provider.PingNotYet {
		t.Errorf("on loopback: %+v", result)
	}
}

func TestTrapAnEnvironmentInACommandLineIsSeenByAll(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	server := cloudtest.ActionServer()
	server.Env = map[string]string{"SESSION_API_KEY": "hush-hush"}
	endpoints := cloudtest.Start(t, r, made, server)
	cloudtest.AwaitAlive(t, r, made, endpoints)
	for _, call := range cloud.Calls() {
		if strings.Contains(call.Body, "hush-hush") && call.Operation != "write_file" {
			t.Errorf("it is in the body of %s", call.Operation)
		}
	}
	found := cloudtest.Inside(t, cloud.Box(made.ID), `cat /proc/[0-9]*/cmdline | tr '\0' '\n' | grep -c hush[-]hush; ls -A ~/.berth; stat -c %a ~/.berth`)
	if !strings.HasPrefix(found, "0\n") || strings.Contains(found, "env-") || !strings.HasSuffix(found, "700") {
		t.Errorf("in command lines, left in files: %q", found)
	}
}

func TestTrapACommandThatIsRefusedReadsNoFile(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	server := cloudtest.ActionServer()
	server.Env = map[string]string{"SESSION_API_KEY": "hush-hush"}
	cloud.Fail(simcloud.Fault{Operation: "execute", Skip: 1, Count: 1, Status: 400}) // after the directory is made
	if _, err := r.StartServer(t.Context(), cloudtest.StartRequest(made, server)); err == nil {
		t.Error("no error")
	}
	if left := cloudtest.Inside(t, cloud.Box(made.ID), `ls -A ~/.berth`); strings.Contains(left, "env-") {
		t.Errorf("left: %s", left)
	}
}

func TestTrapNothingIsSentThatTheAPIHasRemoved(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, func(c *Config) {
		c.Blueprint, c.Size, c.Architecture, c.User = "agents", "LARGE", "arm64", "root:0"
		c.LaunchCommands, c.Secrets, c.NetworkPolicy = []string{"true"}, map[string]string{"TOKEN": "my-token"}, "np_1"
	})
	cloudtest.Up(t, r, "s1")
	body := cloud.Calls("create")[0].Body
	for _, gone := range []string{"prebuilt", "available_ports", "environment_variables", `entrypoint`, "hush"} {
		if strings.Contains(body, gone) {
			t.Errorf("%s is in %s", gone, body)
		}
	}
	for _, want := range []string{
		`"blueprint_name":"agents"`, `"resource_size_request":"LARGE"`, `"architecture":"arm64"`, `"user_parameters":{"username":"root","uid":0}`,
		`"secrets":{"TOKEN":"my-token"}`, `"network_policy_id":"np_1"`, `"wake_on_http":false`, `"http_keep_alive":true`,
		`"auth_mode":"authenticated"`, `"launch_commands":["true"]`, `"keep_alive_time_seconds":3600`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is not in %s", want, body)
		}
	}
	if cloud.Count("unknown") != 0 {
		t.Errorf("unknown operations: %+v", cloud.Calls("unknown"))
	}
	for _, call := range cloud.Calls("execute") {
		if strings.Contains(call.Body, "shell_name") {
			t.Error("the server would block a named shell")
		}
	}
}

func TestTrapAShutdownIsNotForcedOnASnapshot(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	cloud.Snapshot(made.ID, true)
	err := r.Destroy(t.Context(), cloudtest.Ref(made))
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeState || !e.Retryable || cloud.Count("shutdown") != 1 {
		t.Errorf("%+v after %d calls", e, cloud.Count("shutdown"))
	}
	cloud.Snapshot(made.ID, false)
	if err := r.Destroy(t.Context(), cloudtest.Ref(made)); err != nil || len(cloud.Live()) != 0 {
		t.Errorf("%v, left %d", err, len(cloud.Live()))
	}
}

func TestTrapTheSameRequestIDMarksRetriesAndNothingElse(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloud.Fail(simcloud.Fault{Operation: "create", Count: 1, Status: 503, After: true})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	if len(cloud.Devboxes()) != 1 || made.Origin != provider.OriginCreated {
		t.Errorf("%d devboxes, %+v", len(cloud.Devboxes()), made)
	}
	before := cloud.Count("keep_alive")
	cloud.Fail(simcloud.Fault{Operation: "keep_alive", Count: 2, Status: 503})
	for range 2 {
		if _, err := r.Renew(t.Context(), provider.RenewRequest{SandboxRef: cloudtest.Ref(made), Lifetime: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for _, call := range cloud.Calls("keep_alive")[before:] {
		ids = append(ids, call.Headers["X-Request-Id"]...)
	}
	if len(ids) != 4 || ids[0] != ids[1] || ids[1] != ids[2] || ids[2] == ids[3] {
		t.Errorf("request ids %q", ids)
	}
}

func TestTheAPIsWordOnRetriesCounts(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	tries := func(fault simcloud.Fault) int {
		before := cloud.Count("get")
		fault.Operation = "get"
		injected := cloud.Fail(fault)
		defer injected.Remove()
		_, _ = r.boxes.api.get(t.Context(), made.ID)
		return cloud.Count("get") - before
	}
	for want, fault := range map[int]simcloud.Fault{
		1: {Status: 500, Headers: map[string]string{"X-Should-Retry": "false"}},
		2: {Status: 400, Headers: map[string]string{"X-Should-Retry": "true", "Retry-After-Ms": "5"}, Count: 1},
		4: {Status: 502, Headers: map[string]string{"Retry-After": "0.01"}},
	} {
		if got := tries(fault); got != want {
			t.Errorf("%+v: %d tries", fault, got)
		}
	}
	if got := tries(simcloud.Fault{Status: 429, Headers: map[string]string{"Retry-After": "600"}}); got != 1 {
		t.Errorf("it waited ten minutes, %d times", got)
	}
}

func TestTrapAnIDIsNoPath(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	for _, id := range []string{"../secrets", "dbx_1/shutdown", "https://example.org"} {
		_, err := r.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: cloudtest.Owner, SandboxID: id})
		if provider.CodeOf(err) != provider.CodeInvalid {
			t.Errorf("%q: %v", id, err)
		}
	}
	if cloud.Count() != 0 {
		t.Errorf("it called %+v", cloud.Calls())
	}
}

func TestAFailedCreateNamesWhatItCouldNotRemove(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloud.Fail(simcloud.Fault{Operation: "wait", Status: 403})
	cloud.Fail(simcloud.Fault{Operation: "shutdown", Status: 403})
	r := newRunloop(t, cloud, nil)
	_, err := r.Create(t.Context(), cloudtest.CreateRequest("s1"))
	live := cloud.Live()
	if e := provider.AsError(err); e == nil || len(live) != 1 || e.SandboxID != live[0].ID {
		t.Errorf("%+v, left %+v", e, live)
	}
}

func TestAQuotaIsNamedAndNotWaitedFor(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Quota: 1})
	r := newRunloop(t, cloud, nil)
	cloudtest.Create(t, r, "s1")
	_, err := r.Create(t.Context(), cloudtest.CreateRequest("s2"))
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeExhausted || e.Reason != provider.ReasonQuota || len(cloud.Live()) != 1 {
		t.Errorf("%+v", e)
	}
}

// box reads the one devbox of a sandbox.
func box(t *testing.T, cloud *sim.Cloud, sandbox provider.Sandbox) sim.View {
	t.Helper()
	for _, view := range cloud.Devboxes() {
		if view.ID == sandbox.ID {
			return view
		}
	}
	t.Fatalf("there is no devbox %s", sandbox.ID)
	return sim.View{}
}

func TestAPingLeavesTimeToAskWhyTheTunnelHangs(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	endpoints := cloudtest.Attach(t, r, "s1").Endpoints
	cloud.Force(made.ID, "suspended", "")
	cloud.Fail(simcloud.Fault{Operation: "tunnel", Hang: true})
	cloudtest.Eventually(t, "a ping sees that it is suspended", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		result, err := r.Ping(ctx, cloudtest.PingRequest(made, endpoints.Server))
		return err == nil && result.Status == provider.PingStopped
	})
}

func TestAnAPIKeyThatWasRevokedIsNamedInTheReason(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := cloudtest.Create(t, r, "s1")
	endpoints := cloudtest.Start(t, r, made, cloudtest.Shell("sleep 2; exec berth-action-server"))
	revoked := []*simcloud.Injected{
		cloud.Fail(simcloud.Fault{Operation: "execute", Status: 401}), cloud.Fail(simcloud.Fault{Operation: "get", Status: 401}),
	}
	cloudtest.Eventually(t, "it is named", func() bool {
		result := cloudtest.Ping(t, r, made, endpoints)
		return result.Status == provider.PingNotYet && strings.Contains(result.Reason, "401")
	})
	cloudtest.AwaitAlive(t, r, made, endpoints)
	if revoked[1].Fired() == 0 {
		t.Error("the devbox was not asked for")
	}
}

func TestTrapANameIsNoIdentity(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	theirs := cloudtest.Create(t, r, "s2")
	cloud.Label(theirs.ID, map[string]string{provider.LabelOwner: "somebody else"})
	request(t, cloud, theirs.ID, "", fmt.Sprintf(`{"name":%q}`, provider.SandboxName(cloudtest.Owner, "s1")))
	if _, err := attachTo(t, r, "s1"); provider.CodeOf(err) != provider.CodeNotFound {
		t.Errorf("attached to another owner's: %v", err)
	}
	if made := cloudtest.Create(t, r, "s1"); made.ID == theirs.ID {
		t.Error("took another owner's")
	}
}

func TestALifeIsRenewedByNoMoreThanItWasMadeFor(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	sandbox := cloudtest.Create(t, r, "s1")
	end, err := r.Renew(t.Context(), provider.RenewRequest{SandboxRef: cloudtest.Ref(sandbox), Lifetime: 2 * time.Hour})
	if err != nil || time.Until(end) > time.Hour {
		t.Errorf("renewed until %s, %v", end, err)
	}
}

func TestADevboxKnownByItsIDIsAttachedWithoutAListing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	request := cloudtest.AttachRequest("s1")
	request.SandboxID = cloudtest.Create(t, newRunloop(t, cloud, nil), "s1").ID
	listings := cloud.Count("list")
	if found, err := newRunloop(t, cloud, nil).Attach(t.Context(), request); err != nil || found.ID != request.SandboxID || cloud.Count("list") != listings {
		t.Errorf("%+v, %v, %d listings, which may lag", found, err, cloud.Count("list")-listings)
	}
}
