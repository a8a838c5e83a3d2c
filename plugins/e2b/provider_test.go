package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/shared/provider"
)

func TestASandboxIsCreatedFoundSuspendedWokenAndDestroyed(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)

	sandbox, endpoints := up(t, p, "s1")
	if sandbox.Origin != provider.OriginCreated || sandbox.State != provider.StateRunning || sandbox.Attempt != "attempt-of-s1" {
		t.Errorf("created: %+v", sandbox)
	}
	if diff := cmp.Diff(createRequest("s1").AllLabels(), sandbox.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if life := time.Until(sandbox.ExpiresAt); life < 50*time.Minute || life > 70*time.Minute {
		t.Errorf("it lives for %s, not for the hour that was asked for", life)
	}

	// Another process finds it, and its server.
	other := newProvider(t, cloud)
	found := attach(t, other, "s1")
	if found.ID != sandbox.ID || found.Origin != provider.OriginAttached || found.Endpoints == nil {
		t.Fatalf("attached: %+v", found)
	}
	if result := ping(t, other, found, *found.Endpoints); result.Status != provider.PingAlive {
		t.Errorf("Ping: %+v", result)
	}

	if err := p.Suspend(t.Context(), ref(sandbox)); err != nil {
		t.Fatalf("Suspend: %v", err)
	}
	if err := newProvider(t, cloud).Suspend(t.Context(), ref(sandbox)); err != nil {
		t.Errorf("a second Suspend: %v", err)
	}
	listed, err := p.List(t.Context(), provider.ListRequest{Owner: owner, Session: "s1"})
	if err != nil || len(listed) != 1 || listed[0].State != provider.StateSuspended || !listed[0].ExpiresAt.IsZero() {
		t.Errorf("List: %+v, %v", listed, err)
	}

	woken := attach(t, newProvider(t, cloud), "s1")
	if woken.ID != sandbox.ID || woken.Origin != provider.OriginWoken {
		t.Errorf("woken: %+v", woken)
	}
	// The server went to sleep and woke with the sandbox: it is not started a second time.
	again := start(t, p, woken, actionServer())
	if diff := cmp.Diff(endpoints, again); diff != "" {
		t.Errorf("the endpoints changed (-before +after):\n%s", diff)
	}
	if n := servers(t, cloud, sandbox.ID); n != 1 {
		t.Errorf("%d servers run", n)
	}
	if result := awaitPing(t, p, woken, again); result.Status != provider.PingAlive {
		t.Errorf("Ping after waking: %+v", result)
	}

	for range 2 {
		if err := p.Destroy(t.Context(), ref(sandbox)); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	}
	if left := cloud.Sandboxes(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
	e := wantCode(t, second(p.Attach(t.Context(), provider.AttachRequest{Session: "s1", Owner: owner, SandboxID: sandbox.ID})), provider.CodeNotFound)
	if e.Reason != provider.ReasonGone {
		t.Errorf("reason: %q", e.Reason)
	}
}

// servers counts the action servers in a sandbox.
func servers(t *testing.T, cloud *sim.Cloud, id string) int {
	t.Helper()
	return strings.Count(inside(t, cloud, id, "cat /proc/[0-9]*/comm"), "berth-action-s")
}

func second[T any](_ T, err error) error { return err }

func TestPortsArePrivateUnlessTheConfigurationSaysOtherwise(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	_, endpoints := up(t, p, "private")
	for what, change := range map[string]func(http.Header){
		"without the token": func(h http.Header) { h.Del("e2b-traffic-access-token") },
		"with a wrong one":  func(h http.Header) { h.Set("e2b-traffic-access-token", "x") },
	} {
		if response := get(t, endpoints.Server, "/alive", change); response.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", what, response.Status)
		}
	}
	if response := get(t, endpoints.Server, "/alive", func(http.Header) {}); response.StatusCode != http.StatusOK {
		t.Errorf("with the token: %s", response.Status)
	}

	public := newProvider(t, cloud, func(c *Config, _ *times) { c.Public = true })
	_, open := up(t, public, "public")
	if response := get(t, open.Server, "/alive", func(http.Header) {}); response.StatusCode != http.StatusOK {
		t.Errorf("public: %s", response.Status)
	}
	if _, has := open.Server.Headers["e2b-traffic-access-token"]; has {
		t.Error("a public sandbox has a token")
	}
}

func TestASandboxThatTurnsOutPublicIsRefusedAndRemoved(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{NoTrafficTokens: true})
	_, err := newProvider(t, cloud).Create(t.Context(), createRequest("s1"))
	wantCode(t, err, provider.CodeFailed)
	if left := cloud.Sandboxes(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

func TestCreateAdoptsTheSandboxThatIsThere(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	first := create(t, p, "s1")
	request := createRequest("s1")
	request.Attempt = "another"
	again, err := newProvider(t, cloud).Create(t.Context(), request)
	if err != nil || again.ID != first.ID || again.Origin != provider.OriginAttached || again.Attempt != first.Attempt {
		t.Errorf("adopted: %+v, %v", again, err)
	}
	if err := cloud.Pause(first.ID); err != nil {
		t.Fatal(err)
	}
	again, err = p.Create(t.Context(), request)
	if err != nil || again.ID != first.ID || again.Origin != provider.OriginWoken {
		t.Errorf("woken: %+v, %v", again, err)
	}
	if n := cloud.Traffic.Count("create"); n != 1 {
		t.Errorf("%d sandboxes were created", n)
	}
}

func TestASandboxOfTheNameThatIsNotOursIsRefused(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	id, err := cloud.Seed(map[string]string{labelName: provider.SandboxName(owner, "s1"), provider.LabelOwner: "somebody"})
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Create":  second(p.Create(t.Context(), createRequest("s1"))),
		"Attach":  second(p.Attach(t.Context(), attachRequest("s1"))),
		"Destroy": p.Destroy(t.Context(), provider.SandboxRef{Owner: owner, SandboxID: id}),
		"Suspend": p.Suspend(t.Context(), provider.SandboxRef{Owner: owner, SandboxID: id}),
		"Logs":    second(p.Logs(t.Context(), provider.LogsRequest{SandboxRef: provider.SandboxRef{Owner: owner, SandboxID: id}, Lines: 1})),
		"Renew":   second(p.Renew(t.Context(), provider.RenewRequest{SandboxRef: provider.SandboxRef{Owner: owner, SandboxID: id}})),
		"StartServer": second(p.StartServer(t.Context(), provider.StartServerRequest{
			Session: "s1", Owner: owner, SandboxID: id, Server: actionServer(),
		})),
	} {
		if provider.CodeOf(err) != provider.CodeConflict {
			t.Errorf("%s: %v", what, err)
		}
	}
	if left := cloud.Sandboxes(); len(left) != 1 || left[0].State != "running" {
		t.Errorf("left: %+v", left)
	}
	if listed, err := p.List(t.Context(), provider.ListRequest{Owner: owner}); err != nil || len(listed) > 0 {
		t.Errorf("listed: %+v, %v", listed, err)
	}
}

func TestOfTwoSandboxesForOneSessionTheYoungerIsRemovedByItsMaker(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{CreateTime: 30 * time.Millisecond, ListLag: 50 * time.Millisecond})
	type result struct {
		sandbox provider.Sandbox
		err     error
	}
	const makers = 4
	results := make(chan result, makers)
	for i := range makers {
		p, request := newProvider(t, cloud), createRequest("s1")
		request.Attempt = fmt.Sprintf("attempt-%d", i)
		go func() {
			sandbox, err := p.Create(t.Context(), request)
			results <- result{sandbox, err}
		}()
	}
	ids := map[string]bool{}
	created := 0
	for range makers {
		r := <-results
		if r.err != nil {
			t.Errorf("Create: %v", r.err)
			continue
		}
		ids[r.sandbox.ID] = true
		if r.sandbox.Origin == provider.OriginCreated {
			created++
		}
	}
	left := cloud.Sandboxes()
	if len(left) != 1 || len(ids) != 1 || !ids[left[0].ID] || created > 1 {
		t.Errorf("left %+v; returned %v, %d of them as created; %d were made", left, ids, created, cloud.Traffic.Count("create"))
	}
}

func TestTwoStartsAtOnceMakeOneServer(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	errs := make(chan error, 3)
	for range cap(errs) {
		other := newProvider(t, cloud)
		go func() { errs <- second(other.StartServer(t.Context(), startRequest(sandbox, actionServer()))) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("StartServer: %v", err)
		}
	}
	if n := servers(t, cloud, sandbox.ID); n != 1 {
		t.Errorf("%d servers run", n)
	}
}

func TestAServerGetsItsEnvironmentPortsAndWorkingDirectory(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	server := shell(`env >/home/user/env; pwd >/home/user/pwd; printf '%s|' "$@" >/home/user/args; exec berth-action-server --port {port}`)
	server.Command = append(server.Command, "sh", "{port}", "{port.code}", "two words", `"quoted" $HOME '`, "")
	server.Workdir = "/tmp"
	server.ExtraPorts = map[string]int{"code": 8001}
	server.Env["PATH"], server.Env["LINES_OF_TEXT"], server.Env["CODE"] = "/opt/mine:"+boxPath(t, cloud, sandbox.ID), "one\ntwo 'three'", "{port.code}"
	server.Env["dir"], server.Env["asked"], server.Env["IFS"] = "/nowhere", "x", "0"
	endpoints := start(t, p, sandbox, server)
	if result := awaitPing(t, p, sandbox, endpoints); result.Status != provider.PingAlive {
		t.Fatalf("Ping: %+v", result)
	}
	env := inside(t, cloud, sandbox.ID, "cat /home/user/env")
	for _, want := range []string{"PORT=8000", "CODE=8001", "PATH=/opt/mine:", "LINES_OF_TEXT=one\ntwo 'three'", "SESSION_API_KEY=session-secret", "E2B_SANDBOX=true", "dir=/nowhere"} {
		if !strings.Contains(env+"\n", want) {
			t.Errorf("no %q in the environment:\n%s", want, env)
		}
	}
	if strings.Contains(env, "BERTH_ENV_") {
		t.Errorf("the server sees by what names its environment travelled:\n%s", env)
	}
	if dir := inside(t, cloud, sandbox.ID, "cat /home/user/pwd"); dir != "/tmp" {
		t.Errorf("working directory: %q", dir)
	}
	if args := inside(t, cloud, sandbox.ID, "cat /home/user/args"); args != `8000|8001|two words|"quoted" $HOME '||` {
		t.Errorf("arguments: %s", args)
	}
	if everyone := inside(t, cloud, sandbox.ID, "cat /proc/[0-9]*/cmdline"); strings.Contains(everyone, "session-secret") {
		t.Error("a secret is in the arguments of a process")
	}
	if exit := inside(t, cloud, sandbox.ID, "ls /tmp/.berth"); exit != "lock\nlog\npid" {
		t.Errorf("files beside the server: %q", exit)
	}
	if extra := endpoints.Extra["code"]; extra.Headers["E2b-Sandbox-Port"] != "8001" || extra.Headers["e2b-traffic-access-token"] == "" {
		t.Errorf("the extra port: %+v", extra)
	}
}

// boxPath is the PATH of a sandbox's processes.
func boxPath(t *testing.T, cloud *sim.Cloud, id string) string {
	t.Helper()
	return inside(t, cloud, id, "echo $PATH")
}

func TestAWorkingDirectoryThatIsNotThereIsAnInvalidRequest(t *testing.T) {
	t.Parallel()
	_, p := setup(t)
	sandbox := create(t, p, "s1")
	server := actionServer()
	server.Workdir = "/nowhere"
	e := wantCode(t, second(p.StartServer(t.Context(), startRequest(sandbox, server))), provider.CodeInvalid)
	if !strings.Contains(e.Message, "/nowhere") {
		t.Errorf("the message does not name it: %v", e)
	}
}

func TestLogsAreTheLastLinesOfTheServer(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	logs := func() []string {
		t.Helper()
		lines, err := newProvider(t, cloud).Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 2})
		if err != nil {
			t.Fatal(err)
		}
		return lines
	}
	if lines := logs(); len(lines) > 0 {
		t.Errorf("before any server: %q", lines)
	}
	start(t, p, sandbox, shell("seq 1 1000; exec berth-action-server --port {port}"))
	cloudtest.Eventually(t, "the log has something", func() bool { return len(logs()) == 2 })
	if err := p.Suspend(t.Context(), ref(sandbox)); err != nil {
		t.Fatal(err)
	}
	_, err := newProvider(t, cloud).Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 2})
	wantCode(t, err, provider.CodeState)
	_, err = p.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 2}) // which knew it running
	wantCode(t, err, provider.CodeState)
}

func TestRenewMovesTheEndAndSaysWhatE2BMadeOfIt(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{MaxLifetime: 2 * time.Hour})
	p := newProvider(t, cloud)
	sandbox := create(t, p, "s1")
	for asked, want := range map[time.Duration]time.Duration{10 * time.Minute: 10 * time.Minute, 5 * time.Hour: 2 * time.Hour} {
		end, err := p.Renew(t.Context(), provider.RenewRequest{SandboxRef: ref(sandbox), Lifetime: asked})
		if err != nil || time.Until(end) > want || time.Until(end) < want-time.Minute {
			t.Errorf("Renew by %s: ends in %s, %v", asked, time.Until(end), err)
		}
	}
	if err := p.Suspend(t.Context(), ref(sandbox)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, second(p.Renew(t.Context(), provider.RenewRequest{SandboxRef: ref(sandbox), Lifetime: time.Hour})), provider.CodeState)
}

func TestListAndRenewWorkOver250Sandboxes(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	const many = 250
	for i := range many {
		request := createRequest(fmt.Sprintf("session-%d", i))
		labels := request.AllLabels()
		labels[labelName] = provider.SandboxName(owner, request.Session)
		if _, err := cloud.Seed(labels); err != nil {
			t.Fatal(err)
		}
	}
	listed, err := p.List(t.Context(), provider.ListRequest{Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	sessions := map[string]bool{}
	for _, sandbox := range listed {
		sessions[sandbox.Session] = true
	}
	if len(listed) != many || len(sessions) != many {
		t.Errorf("%d listed, %d sessions", len(listed), len(sessions))
	}
	if pages := cloud.Traffic.Count("list"); pages != 3 {
		t.Errorf("%d pages", pages)
	}
	oldest := listed[0]
	for _, sandbox := range listed {
		if sandbox.CreatedAt.Before(oldest.CreatedAt) {
			oldest = sandbox
		}
	}
	if end, err := p.Renew(t.Context(), provider.RenewRequest{SandboxRef: ref(oldest), Lifetime: 3 * time.Hour}); err != nil || time.Until(end) < 2*time.Hour {
		t.Errorf("Renew: %v, %v", end, err)
	}
	if sandbox := attach(t, p, oldest.Session); sandbox.ID != oldest.ID {
		t.Errorf("attached to %s instead of %s", sandbox.ID, oldest.ID)
	}
}

func TestALifetimeEndsTheSandboxOrPausesIt(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	kill, pause := newProvider(t, cloud), newProvider(t, cloud, func(c *Config, _ *times) { c.OnTimeout = "pause" })
	for session, p := range map[string]*E2B{"ends": kill, "pauses": pause} {
		request := createRequest(session)
		request.Lifetime = time.Second
		if _, err := p.Create(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	cloudtest.Eventually(t, "one is gone and the other paused", func() bool {
		left := cloud.Sandboxes()
		return len(left) == 1 && left[0].State == "paused" && left[0].Metadata[provider.LabelSession] == "pauses"
	})
	wantCode(t, second(kill.Attach(t.Context(), attachRequest("ends"))), provider.CodeNotFound)
	if sandbox := attach(t, pause, "pauses"); sandbox.Origin != provider.OriginWoken {
		t.Errorf("%+v", sandbox)
	}
}

func TestAQuotaAndAMissingTemplateAreToldApartAndLeaveNothing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{MaxRunning: 1})
	p := newProvider(t, cloud)
	sandbox := create(t, p, "s1")
	if e := wantCode(t, second(p.Create(t.Context(), createRequest("s2"))), provider.CodeExhausted); e.Reason != provider.ReasonQuota {
		t.Errorf("reason %q", e.Reason)
	}
	missing := newProvider(t, cloud, func(c *Config, _ *times) { c.Template = "missing-template" })
	e := wantCode(t, second(missing.Create(t.Context(), createRequest("s3"))), provider.CodeInvalid)
	if !strings.Contains(e.Message, "missing-template") {
		t.Errorf("message: %v", e)
	}
	if left := cloud.Sandboxes(); len(left) != 1 || left[0].ID != sandbox.ID {
		t.Errorf("left: %+v", left)
	}
}

func TestACreateThatIsCancelledLeavesNothing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{CreateTime: 300 * time.Millisecond})
	p := newProvider(t, cloud, func(_ *Config, t *times) { t.settle = 2 * time.Second })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for cloud.Traffic.Count("create") == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	wantCode(t, second(p.Create(ctx, createRequest("s1"))), provider.CodeCanceled)
	if left := cloud.Sandboxes(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

func TestAnEnvdThatIsTooOldIsRefusedAndItsSandboxRemoved(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{EnvdVersion: "v0.0.9"})
	wantCode(t, second(newProvider(t, cloud).Create(t.Context(), createRequest("s1"))), provider.CodeFailed)
	if left := cloud.Sandboxes(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

func TestTheSecondLookEndsWhenTheServerListens(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	p := newProvider(t, cloud, func(_ *Config, t *times) { t.secondLook = time.Hour })
	up(t, p, "s1")
}
