package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
	kit "github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

func labels(session string) map[string]string {
	return map[string]string{provider.LabelOwner: owner, provider.LabelSession: session, provider.LabelAttempt: "seeded"}
}

func attachTo(t *testing.T, r *Runloop, session string) (provider.Sandbox, error) {
	t.Helper()
	return r.Attach(t.Context(), provider.AttachRequest{Session: session, Owner: owner, Server: actionServer()})
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
	all, err := r.List(t.Context(), provider.ListRequest{Owner: owner})
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
			made := create(t, r, "s1")
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
			sandbox, err := r.Create(t.Context(), createRequest("s1")) // must not make another
			change.Wait()
			if err != nil || sandbox.ID != made.ID || sandbox.Origin != want || len(cloud.Devboxes()) != 1 {
				t.Errorf("got %+v of %d devboxes, %v", sandbox, len(cloud.Devboxes()), err)
			}
		})
	}
}

func TestTrapANameIsNoIdentity(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	strange := createRequest("s1")
	strange.Owner = "somebody else"
	theirs, err := r.Create(t.Context(), strange)
	if err != nil {
		t.Fatal(err)
	}
	name := provider.SandboxName(owner, "s1")
	if _, err := post[devbox](t.Context(), r.boxes.api, kit.Never, "renaming", theirs.ID, "", map[string]any{"name": name}); err != nil {
		t.Fatal(err)
	}
	if _, err := attachTo(t, r, "s1"); provider.CodeOf(err) != provider.CodeNotFound {
		t.Errorf("attached to another owner's: %v", err)
	}
	if made := create(t, r, "s1"); made.ID == theirs.ID {
		t.Error("took another owner's")
	}
	for call, err := range map[string]error{
		"Destroy": r.Destroy(t.Context(), provider.SandboxRef{Owner: owner, SandboxID: theirs.ID}),
		"Suspend": r.Suspend(t.Context(), provider.SandboxRef{Owner: owner, SandboxID: theirs.ID}),
	} {
		if provider.CodeOf(err) != provider.CodeConflict {
			t.Errorf("%s of another owner's: %v", call, err)
		}
	}
	if _, err := r.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, SandboxID: theirs.ID}); provider.CodeOf(err) != provider.CodeConflict {
		t.Errorf("Attach to another owner's: %v", err)
	}
}

func TestTrapOfSeveralDevboxesEveryProcessTakesTheSame(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloud.Seed(5, "running", labels("s1"))
	first := attach(t, newRunloop(t, cloud, nil))
	for range 3 {
		if sandbox := attach(t, newRunloop(t, cloud, nil)); sandbox.ID != first.ID {
			t.Errorf("took %s, then %s", first.ID, sandbox.ID)
		}
	}
	for _, other := range cloud.Devboxes() {
		if other.CreateTimeMS < first.CreatedAt.UnixMilli() {
			t.Errorf("%s is older than %s", other.ID, first.ID)
		}
	}
}

func TestTrapTwoCreatesAtOnceLeaveOneDevbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Provision: 50 * time.Millisecond})
	cloud.Fail(simcloud.Fault{Operation: "create", Delay: 300 * time.Millisecond})
	const many = 6
	ids := make([]string, many)
	var creates sync.WaitGroup
	for i := range many {
		creates.Go(func() {
			request := createRequest("s1")
			request.Attempt = fmt.Sprint("attempt ", i)
			sandbox, err := newRunloop(t, cloud, nil).Create(context.WithoutCancel(t.Context()), request)
			if err != nil {
				t.Errorf("create %d: %v", i, err)
			}
			if (sandbox.Origin == provider.OriginCreated) != (sandbox.Attempt == request.Attempt) {
				t.Errorf("attempt %q got %s of %q", request.Attempt, sandbox.Origin, sandbox.Attempt)
			}
			ids[i] = sandbox.ID
		})
	}
	creates.Wait()
	live := cloud.Live()
	if len(live) != 1 || slices.ContainsFunc(ids, func(id string) bool { return id != live[0].ID }) {
		t.Errorf("%v, left %d", ids, len(live))
	}
	if made := cloud.Count("create"); made != many {
		t.Errorf("only %d raced", made)
	}
}

func TestTrapTheDefaultLifeIsAnHour(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	life := func(lifetime time.Duration, change func(*Config)) map[string]any {
		request := createRequest(fmt.Sprint("s", cloud.Count("create")))
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

func TestALifeEndsAndIsRenewed(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	request := createRequest("s1")
	request.Lifetime = 3 * time.Second
	sandbox, err := r.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	first := sandbox.ExpiresAt
	end, err := r.Renew(t.Context(), provider.RenewRequest{SandboxRef: ref(sandbox), Lifetime: time.Hour})
	if err != nil || !end.After(first) || time.Until(end) > 3*time.Second {
		t.Errorf("renewed until %s instead of %s, %v", end, first, err)
	}
	listed, err := r.List(t.Context(), provider.ListRequest{Owner: owner, Session: "s1"})
	if err != nil || len(listed) != 1 || listed[0].ExpiresAt.Sub(end).Abs() > time.Second {
		t.Errorf("renewed until %s, listed %+v, %v", end, listed, err)
	}
	if got := box(t, cloud, sandbox).Metadata; got["team"] != "blue" || got[provider.LabelAttempt] != sandbox.Attempt {
		t.Errorf("renewing lost metadata: %v", got)
	}
	cloudtest.Eventually(t, "it ends by itself", func() bool { return len(cloud.Live()) == 0 })
	if time.Now().Before(end.Add(-100 * time.Millisecond)) {
		t.Error("it ended before its time")
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
			_, err := r.Create(t.Context(), createRequest("s1"))
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
	sandbox := create(t, newRunloop(t, cloud, nil), "s1")
	if box(t, cloud, sandbox).Status != "running" {
		t.Errorf("%+v", sandbox)
	}
}

func TestAStatusNobodyKnowsIsWaitedOutAndNamed(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	endpoints := start(t, r, made, actionServer())
	cloud.Force(made.ID, "migrating", "")
	result := pingUntil(t, r, made, endpoints, "the ping names it", func(p provider.PingResult) bool { return strings.Contains(p.Reason, "migrating") })
	if result.Status != provider.PingNotYet {
		t.Errorf("ping: %+v", result)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := r.Attach(ctx, provider.AttachRequest{Session: "s1", Owner: owner})
	if provider.CodeOf(err) != provider.CodeTimeout || !strings.Contains(err.Error(), "migrating") {
		t.Errorf("Attach: %v", err)
	}
}

func TestTrapResumeIsRefusedForADevboxThatResumes(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Resume: 300 * time.Millisecond, LazyStatus: 200 * time.Millisecond})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	if err := r.Suspend(t.Context(), ref(made)); err != nil {
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
	made := create(t, r, "s1")
	if err := r.Suspend(t.Context(), ref(made)); err != nil {
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
	made := create(t, r, "s1")
	before, err := r.boxes.api.get(t.Context(), made.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.boxes.api.removeTunnel(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	cloud.Fail(simcloud.Fault{Operation: "enable_tunnel", Status: 503, After: true, Count: 1}) // its second try is refused
	before.Tunnel = nil
	after, err := r.boxes.tunnelOf(t.Context(), before)
	if err != nil || after == nil || after.AuthToken == "" {
		t.Errorf("%+v, %v", after, err)
	}
	if tries := cloud.Count("enable_tunnel"); tries != 2 {
		t.Errorf("%d tries", tries)
	}
}

func TestTrapAnOpenTunnelIsReplaced(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	open := create(t, newRunloop(t, cloud, func(c *Config) { c.Tunnel = "open" }), "s1")
	key := box(t, cloud, open).Tunnel.Key
	r := newRunloop(t, cloud, nil)
	if attached := attach(t, r); attached.Endpoints == nil || strings.Contains(attached.Endpoints.Server.URL, key) {
		t.Errorf("the open tunnel was handed out: %+v", attached.Endpoints)
	}
	endpoints := start(t, r, open, actionServer())
	tunnel := box(t, cloud, open).Tunnel
	if tunnel.AuthMode != "authenticated" || strings.Contains(endpoints.Server.URL, key) {
		t.Errorf("%+v, %s", tunnel, endpoints.Server.URL)
	}
}

func TestTheTunnelIsPrivate(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	server := actionServer()
	server.ExtraPorts = map[string]int{"code": 8001}
	made := create(t, r, "s1")
	endpoints := start(t, r, made, server)
	if extra := endpoints.Extra["code"]; !strings.Contains(extra.URL, "8001-") || len(extra.Headers) == 0 {
		t.Errorf("the extra port: %+v", extra)
	}
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
	endpoints.Server.Headers = nil
	if result := ping(t, r, made, endpoints); result.Status != provider.PingDenied {
		t.Errorf("without the token: %+v", result)
	}
}

func TestTrapTheTunnelsTokenHasAHeaderOfItsOwn(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	endpoints := start(t, r, made, actionServer())
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
	for _, call := range cloud.Calls("tunnel") {
		if len(call.Headers["Authorization"]) != 0 || len(call.Headers["X-Runloop-Tunnel-Authorization"]) != 1 {
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
	made := create(t, r, "s1")
	endpoints := start(t, r, made, actionServer()) // without a key it listens on loopback, unless it is told otherwise
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
	told := create(t, r, "s2")
	server := actionServer()
	server.Env = map[string]string{"HOST": "127.0.0.1"}
	endpoints = start(t, r, told, server)
	if result := ping(t, r, told, endpoints); result.Status != provider.PingNotYet {
		t.Errorf("on loopback: %+v", result)
	}
}

func TestTrapAShellReadsWhatTheServerIsGiven(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	nasty := "it's \"quoted\" $HOME `id` \\ \n end;"
	server := actionServer()
	server.Command = []string{"sh", "-c", `printf %s "$1" >arg; printf %s "$SECRET" >env; pwd >pwd; exec berth-action-server`, "sh", nasty}
	server.Env = map[string]string{"SECRET": nasty, "OTHER": "{port}"}
	server.Workdir = "/home/user/a 'b' $c"
	endpoints := start(t, r, made, server)
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
	for file, want := range map[string]string{"arg": nasty, "env": nasty, "pwd": server.Workdir + "\n"} {
		if got := run(t, r, made, "cat "+kit.Quote(server.Workdir+"/"+file)+"; echo ."); got != want+"." {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
	}
}

func TestTrapAnEnvironmentInACommandLineIsSeenByAll(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	server := actionServer()
	server.Env = map[string]string{"SESSION_API_KEY": "hush-hush"}
	endpoints := start(t, r, made, server)
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
	for _, call := range cloud.Calls() {
		if strings.Contains(call.Body, "hush-hush") && call.Operation != "write_file" {
			t.Errorf("it is in the body of %s", call.Operation)
		}
	}
	found := run(t, r, made, `cat /proc/[0-9]*/cmdline | tr '\0' '\n' | grep -c hush[-]hush; ls -A ~/.berth; stat -c %a ~/.berth`)
	if !strings.HasPrefix(found, "0\n") || strings.Contains(found, "env-") || !strings.HasSuffix(found, "700") {
		t.Errorf("in command lines, left in files: %q", found)
	}
}

func TestTrapNothingIsSentThatTheAPIHasRemoved(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, func(c *Config) {
		c.Blueprint, c.Size, c.Architecture, c.User = "agents", "LARGE", "arm64", "root:0"
		c.LaunchCommands, c.Secrets, c.NetworkPolicy = []string{"true"}, map[string]string{"TOKEN": "my-token"}, "np_1"
	})
	made := create(t, r, "s1")
	endpoints := start(t, r, made, actionServer())
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
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
	made := create(t, r, "s1")
	cloud.Snapshot(made.ID, true)
	err := r.Destroy(t.Context(), ref(made))
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeState || !e.Retryable || cloud.Count("shutdown") != 1 {
		t.Errorf("%+v after %d calls", e, cloud.Count("shutdown"))
	}
	cloud.Snapshot(made.ID, false)
	if err := r.Destroy(t.Context(), ref(made)); err != nil || len(cloud.Live()) != 0 {
		t.Errorf("%v, left %d", err, len(cloud.Live()))
	}
}

func TestTrapTheSameRequestIDMarksRetriesAndNothingElse(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloud.Fail(simcloud.Fault{Operation: "create", Count: 1, Status: 503, After: true})
	cloud.Fail(simcloud.Fault{Operation: "keep_alive", Count: 2, Status: 503})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	if len(cloud.Devboxes()) != 1 || made.Origin != provider.OriginCreated {
		t.Errorf("%d devboxes, %+v", len(cloud.Devboxes()), made)
	}
	for range 2 {
		if _, err := r.Renew(t.Context(), provider.RenewRequest{SandboxRef: ref(made), Lifetime: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for _, call := range cloud.Calls("keep_alive") {
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
	made := create(t, r, "s1")
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
		3: {Status: 502, Headers: map[string]string{"Retry-After": "0.01"}},
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
		_, err := r.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, SandboxID: id})
		if provider.CodeOf(err) != provider.CodeInvalid {
			t.Errorf("%q: %v", id, err)
		}
	}
	if cloud.Count() != 0 {
		t.Errorf("it called %+v", cloud.Calls())
	}
}

func TestTrapRedirectsWouldCarryTheKeyAway(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("followed to %s with %v", r.URL, r.Header)
	}))
	defer elsewhere.Close()
	cloud := newCloud(t, sim.Options{})
	cloud.Fail(simcloud.Fault{Status: 307, Headers: map[string]string{"Location": elsewhere.URL}})
	r := newRunloop(t, cloud, nil)
	if _, err := attachTo(t, r, "s1"); provider.CodeOf(err) != provider.CodeUnreachable || !strings.Contains(err.Error(), "base_url") {
		t.Errorf("%v", err)
	}
	endpoints := provider.Endpoints{Server: provider.Endpoint{URL: cloud.TunnelsURL() + "/8000-x", Headers: map[string]string{"X-Runloop-Tunnel-Authorization": "t"}}}
	if result := ping(t, r, provider.Sandbox{ID: "/"}, endpoints); result.Status != provider.PingDenied {
		t.Errorf("ping: %+v", result)
	}
}

func TestTwoStartsAtOnceStartOneServer(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	made := create(t, newRunloop(t, cloud, nil), "s1")
	server := shell(`echo $$ >>started; sleep 0.5; exec berth-action-server`)
	var starts sync.WaitGroup
	for range 4 {
		starts.Go(func() {
			if _, err := newRunloop(t, cloud, nil).StartServer(t.Context(), startRequest(made, server)); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	r := newRunloop(t, cloud, nil)
	if count := run(t, r, made, "cat started | wc -l"); strings.TrimSpace(count) != "1" {
		t.Errorf("started %q", count)
	}
}

// startThatFails starts a server that ends at once, and returns what the start or a ping says of it.
func startThatFails(t *testing.T, r *Runloop, sandbox provider.Sandbox, server provider.Server) provider.PingResult {
	t.Helper()
	endpoints, err := r.StartServer(t.Context(), startRequest(sandbox, server))
	if e := provider.AsError(err); e != nil {
		if e.Reason != provider.ReasonServerExited {
			t.Fatalf("%+v", e)
		}
		return provider.PingResult{ExitCode: e.ExitCode, LogTail: e.LogTail}
	}
	return pingUntil(t, r, sandbox, endpoints, "the ping sees its end", func(p provider.PingResult) bool { return p.Status == provider.PingExited })
}

func TestAServerThatCrashedIsStartedAgainInItsDevbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	end := startThatFails(t, r, made, shell("echo last words; touch kept; exit 3"))
	if end.ExitCode == nil || *end.ExitCode != 3 || !slices.Contains(end.LogTail, "last words") {
		t.Fatalf("%+v", end)
	}
	endpoints := start(t, r, made, shell("test -e kept && exec berth-action-server"))
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
}

func TestACommandThatIsNotThereSaysSo(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	server := actionServer()
	server.Command = []string{"no-such-program"}
	end := startThatFails(t, r, create(t, r, "s1"), server)
	if end.ExitCode == nil || *end.ExitCode != 127 || !strings.Contains(strings.Join(end.LogTail, " "), "no-such-program") {
		t.Errorf("%+v", end)
	}
}

func TestAFailedCreateNamesWhatItCouldNotRemove(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloud.Fail(simcloud.Fault{Operation: "wait", Status: 403})
	cloud.Fail(simcloud.Fault{Operation: "shutdown", Status: 403})
	r := newRunloop(t, cloud, nil)
	_, err := r.Create(t.Context(), createRequest("s1"))
	live := cloud.Live()
	if e := provider.AsError(err); e == nil || len(live) != 1 || e.SandboxID != live[0].ID {
		t.Errorf("%+v, left %+v", e, live)
	}
}

func TestACreateThatIsCancelledLeavesNothing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Provision: time.Hour})
	r := newRunloop(t, cloud, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	waiting.Go(func() {
		cloudtest.Eventually(t, "the plugin waits", func() bool { return cloud.Count("wait") > 0 })
		cancel()
	})
	_, err := r.Create(ctx, createRequest("s1"))
	waiting.Wait()
	if e := provider.AsError(err); e.Code != provider.CodeCanceled || e.SandboxID != "" || len(cloud.Live()) != 0 {
		t.Errorf("%+v, left %+v", e, cloud.Live())
	}
}

func TestErrorsHaveTheirClass(t *testing.T) {
	t.Parallel()
	header := func(pairs ...string) map[string]string {
		headers := map[string]string{"Content-Type": "application/json"}
		for i := 0; i < len(pairs); i += 2 {
			headers[pairs[i]] = pairs[i+1]
		}
		return headers
	}
	for _, test := range []struct {
		fault  simcloud.Fault
		code   provider.Code
		reason string
		says   string
	}{
		{simcloud.Fault{Status: 400, Body: `{"code":"400","message":"blueprint is bad"}`}, provider.CodeFailed, "", "blueprint is bad"},
		{simcloud.Fault{Status: 401}, provider.CodeDenied, "", "401"},
		{simcloud.Fault{Status: 403, Body: `{"error":"plan_too_small","message":"not on this plan"}`}, provider.CodeDenied, "", "not on this plan"},
		{simcloud.Fault{Status: 402}, provider.CodeExhausted, provider.ReasonQuota, "402"},
		{simcloud.Fault{Status: 404, Body: `{"message":"Blueprint not found"}`}, provider.CodeFailed, "", "Blueprint not found"},
		{simcloud.Fault{Status: 422}, provider.CodeFailed, "", "422"},
		{simcloud.Fault{Status: 429, Headers: header("Retry-After", "77")}, provider.CodeExhausted, provider.ReasonRateLimit, "429"},
		{simcloud.Fault{Status: 429, Body: `{"message":"Quota exceeded"}`}, provider.CodeExhausted, provider.ReasonQuota, "Quota exceeded"},
		{simcloud.Fault{Status: 429, Headers: header("X-Runloop-Error-Code", "quota_exceeded")}, provider.CodeExhausted, provider.ReasonQuota, "429"},
		{simcloud.Fault{Status: 504, Headers: header("X-Runloop-Request-Id", "req_7"), Body: "<html>" + canary}, provider.CodeUnreachable, "", "req_7"},
		{simcloud.Fault{Status: 200, Headers: header(), Body: `{}`}, provider.CodeUnreachable, "", "base_url"},
		{simcloud.Fault{Status: 200, Headers: header(), Body: `{"id":`}, provider.CodeUnreachable, "", "base_url"},
	} {
		t.Run(fmt.Sprint(test.fault.Status, test.says), func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t, sim.Options{})
			test.fault.Operation = "create"
			cloud.Fail(test.fault)
			_, err := newRunloop(t, cloud, nil).Create(t.Context(), createRequest("s1"))
			e := provider.AsError(err)
			if e == nil || e.Code != test.code || e.Reason != test.reason || !strings.Contains(e.Message, test.says) || strings.Contains(e.Message, canary) {
				t.Errorf("got %+v", e)
			}
			if e != nil && test.fault.Headers["Retry-After"] != "" && e.RetryAfter != 77*time.Second {
				t.Errorf("to be retried after %s", e.RetryAfter)
			}
		})
	}
}

func TestAQuotaIsNamedAndNotWaitedFor(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Quota: 1})
	r := newRunloop(t, cloud, nil)
	create(t, r, "s1")
	_, err := r.Create(t.Context(), createRequest("s2"))
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeExhausted || e.Reason != provider.ReasonQuota || len(cloud.Live()) != 1 {
		t.Errorf("%+v", e)
	}
}

func TestAFailedLookUpIsNotAMissingSandbox(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]provider.Code{401: provider.CodeDenied, 500: provider.CodeUnreachable} {
		cloud := newCloud(t, sim.Options{})
		cloud.Fail(simcloud.Fault{Operation: "list", Skip: 4, Status: status})
		if _, err := attachTo(t, newRunloop(t, cloud, nil), "s1"); provider.CodeOf(err) != want {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestAGoneSandboxIsGone(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	endpoints := start(t, r, made, actionServer())
	cloud.Force(made.ID, "shutdown", "keep_alive_timeout")
	for _, id := range []string{made.ID, "dbx_never_was"} {
		_, err := r.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, SandboxID: id})
		if e := provider.AsError(err); e == nil || e.Code != provider.CodeNotFound || e.Reason != provider.ReasonGone {
			t.Errorf("%s: %+v", id, e)
		}
	}
	if _, err := r.StartServer(t.Context(), startRequest(made, actionServer())); provider.CodeOf(err) != provider.CodeNotFound {
		t.Errorf("StartServer: %v", err)
	}
	result := pingUntil(t, r, made, endpoints, "the ping sees it", func(p provider.PingResult) bool { return p.Status != provider.PingNotYet })
	if result.Status != provider.PingGone || !strings.Contains(result.Reason, "keep_alive_timeout") {
		t.Errorf("ping: %+v", result)
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(*Config){
		"api_key":      func(c *Config) { c.APIKey = " " },
		"base_url":     func(c *Config) { c.BaseURL = "http://api.runloop.ai" },
		"tunnel_url":   func(c *Config) { c.TunnelURL = "https://{port}.example.org" },
		"user":         func(c *Config) { c.User = "../root" },
		"blueprint":    func(c *Config) { c.Blueprint, c.SnapshotID = "a", "b" },
		"idle_timeout": func(c *Config) { c.IdleTimeout = time.Second },
	} {
		config := Config{APIKey: canary, BaseURL: "https://api.runloop.ai", Tunnel: "authenticated"}
		change(&config)
		_, err := open(t.Context(), config, hclog.NewNullLogger())
		e := provider.AsError(err)
		if e == nil || e.Code != provider.CodeInvalid || len(e.Fields) != 1 || e.Fields[0].Field != field || strings.Contains(e.Error(), canary) {
			t.Errorf("%s: %+v", field, e)
		}
	}
}

// TestTheKeyIsInItsHeaderOnly looks at everything that left the plugin.
func TestTheKeyIsInItsHeaderOnly(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	r := newRunloop(t, cloud, nil)
	made := create(t, r, "s1")
	endpoints := start(t, r, made, actionServer())
	pingUntil(t, r, made, endpoints, "the server is alive", alive)
	if err := r.Suspend(t.Context(), ref(made)); err != nil {
		t.Fatal(err)
	}
	start(t, r, attach(t, r), actionServer())
	if err := r.Destroy(t.Context(), ref(made)); err != nil {
		t.Fatal(err)
	}
	for _, call := range cloud.Calls() {
		for name, values := range call.Headers {
			right := name == "Authorization" && call.Operation != "tunnel" && slices.Equal(values, []string{"Bearer " + canary})
			if strings.Contains(strings.Join(values, " "), canary) && !right {
				t.Errorf("%s: header %s has the key", call.Operation, name)
			}
		}
		path, _ := url.QueryUnescape(call.Path)
		if strings.Contains(call.Body+path, canary) {
			t.Errorf("%s has the key in its path or body", call.Operation)
		}
	}
}

// TestTheKeyIsInNoProcess gives the key in a file, so that it has no reason to be in any environment.
func TestTheKeyIsInNoProcess(t *testing.T) {
	t.Parallel()
	const key = "ak_other_canary_77"
	cloud := newCloud(t, sim.Options{APIKey: key})
	environment := cloud.Environment()
	config := fmt.Sprintf(`
		host {
			secret = "a secret of these tests"
		}
		provider "runloop" {
			config {
				api_key    = file("key")
				base_url   = %q
				tunnel_url = %q
			}
		}
	`, environment["RUNLOOP_BASE_URL"], environment["RUNLOOP_TUNNEL_URL"])
	m := cloudtest.NewMachine(t, "runloop", key, config, "BERTH_LOG=trace")
	if err := os.WriteFile(filepath.Join(m.Dir, "key"), []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	cloud.Fail(simcloud.Fault{Operation: "wait", Delay: time.Second})
	var watching sync.WaitGroup
	done := make(chan struct{})
	plugins := 0
	watching.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
			}
			for _, file := range []string{"environ", "cmdline"} {
				paths, _ := filepath.Glob("/proc/[0-9]*/" + file)
				for _, path := range paths {
					content, _ := os.ReadFile(path)
					if strings.Contains(string(content), key) {
						t.Errorf("%s has the key", path)
					}
					if strings.Contains(string(content), "berth-provider-runloop") {
						plugins++
					}
				}
			}
		}
	})
	o := m.Run("connect", "s1", "-o", "json")
	close(done)
	watching.Wait()
	if o.Code != 0 || plugins == 0 {
		t.Errorf("exit code %d, the plugin was seen %d times\n%s\n%s", o.Code, plugins, o.Stdout, o.Stderr)
	}
}

func TestAListingOfAllOwnersShowsThoseOfOthers(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloudtest.CheckOwners(t, newRunloop(t, cloud, nil), owner, func(labels map[string]string) error {
		cloud.Seed(1, "running", labels)
		return nil
	})
}

func TestADevboxKnownByItsIDIsAttachedWithoutAListing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	sandbox := create(t, newRunloop(t, cloud, nil), "s1")
	r := newRunloop(t, cloud, nil)
	listings := len(cloud.Calls("list"))
	request := provider.AttachRequest{Session: "s1", Owner: owner, SandboxID: sandbox.ID, Server: actionServer()}
	found, err := r.Attach(t.Context(), request)
	if err != nil || found.ID != sandbox.ID || found.Origin != provider.OriginAttached {
		t.Errorf("%+v, %v", found, err)
	}
	for name, other := range map[string]provider.AttachRequest{
		"another session": {Session: "s2", Owner: owner, SandboxID: sandbox.ID, Server: actionServer()},
		"another owner":   {Session: "s1", Owner: "somebody else", SandboxID: sandbox.ID, Server: actionServer()},
	} {
		if _, err := r.Attach(t.Context(), other); provider.CodeOf(err) != provider.CodeConflict {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now := len(cloud.Calls("list")); now != listings {
		t.Errorf("%d listings, which may lag", now-listings)
	}
}
