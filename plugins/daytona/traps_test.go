package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestALoginPageBehindARedirectIsNotAlive(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	endpoints := start(t, d, sandbox, pythonServer())
	awaitAlive(t, d, sandbox, endpoints)
	endpoints.Server.Headers = map[string]string{tokenHeader: "of-before-the-restart"}
	if result := ping(t, d, sandbox, endpoints); result.Status != provider.PingDenied {
		t.Errorf("%+v", result)
	}
	d.Forget(sandbox.ID)
	if result := ping(t, d, sandbox, endpoints); result.Status != provider.PingDenied || !strings.Contains(result.Reason, "connect again") {
		t.Errorf("%+v", result)
	}
}

func TestTheHeadersAvoidThePageThatWarnsBrowsers(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	endpoints := start(t, d, sandbox, pythonServer())
	awaitAlive(t, d, sandbox, endpoints)
	endpoints.Server.Headers["User-Agent"] = "Mozilla/5.0"
	if _, body := get(t, endpoints.Server.URL, endpoints.Server.Headers); strings.Contains(body, "Warning") {
		t.Errorf("got %q", body)
	}
}

func TestCreateDoesNotBelieveTheStateThatCreatingAnswers(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Create: 50 * time.Millisecond})
	if sandbox := create(t, newProvider(t, cloud, nil), "s1"); sandbox.State != provider.StateRunning {
		t.Errorf("%+v", sandbox)
	}
	if n := cloud.Traffic.Count("getSandbox"); n != 1 {
		t.Errorf("%d looks: the first one shows that it runs, and comes at once", n)
	}
}

func TestASandboxThatFailedToStartIsRemovedAndItsNameFree(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	for _, hold := range []time.Duration{30 * time.Second, -1} { // within the create, and after it
		cloud.Set(func(o *sim.Options) { o.Hold, o.Create = hold, 30*time.Millisecond })
		cloud.FailStart("no space left", false)
		_, err := d.Create(t.Context(), createRequest("s1"))
		if e := provider.AsError(err); e == nil || e.Code != provider.CodeFailed || !strings.Contains(e.Message, "no space left") || e.SandboxID != "" {
			t.Errorf("%v", err)
		}
		if left := cloud.Sandboxes(); len(left) != 0 {
			t.Errorf("left: %+v", left)
		}
	}
	create(t, d, "s1")
}

func TestASandboxIsRemovedThoughDeletingIsRefusedWhileItIsCreated(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Create: 2 * time.Second, Hold: -1})
	d := newProvider(t, cloud, nil)
	_, err := d.Create(short(t, 200*time.Millisecond), createRequest("s1"))
	if provider.CodeOf(err) != provider.CodeTimeout {
		t.Errorf("%v", err)
	}
	if left := cloud.Sandboxes(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
	conflicts := 0
	for _, call := range cloud.Traffic.Calls("deleteSandbox") {
		if call.Status == http.StatusConflict {
			conflicts++
		}
	}
	if conflicts == 0 {
		t.Error("deleting was never refused")
	}
}

func TestACancelledCreateLeavesNothingThoughTheCloudGoesOn(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Create: 400 * time.Millisecond}) // and the call is held as long
	d := newProvider(t, cloud, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-time.After(150 * time.Millisecond)
		cancel()
	}()
	if _, err := d.Create(ctx, createRequest("s1")); provider.CodeOf(err) != provider.CodeCanceled {
		t.Errorf("%v", err)
	}
	if left := cloud.Sandboxes(); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

func TestANameHeldByAStrangerIsAConflictAndNotAdopted(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	body := strings.NewReader(`{"labels":{"berth-owner":"somebody else"}}`)
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, cloud.URL()+"/sandbox/"+sandbox.ID+"/labels", body)
	request.Header.Set("Authorization", "Bearer "+canary)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	calls := map[string]func() error{
		"Create":  func() error { _, err := d.Create(t.Context(), createRequest("s1")); return err },
		"Attach":  func() error { _, err := d.Attach(t.Context(), attachRequest("s1")); return err },
		"Start":   func() error { _, err := d.StartServer(t.Context(), startRequest(sandbox, pythonServer())); return err },
		"Suspend": func() error { return d.Suspend(t.Context(), ref(sandbox)) },
		"Destroy": func() error { return d.Destroy(t.Context(), ref(sandbox)) },
	}
	for name, call := range calls {
		if err := call(); provider.CodeOf(err) != provider.CodeConflict {
			t.Errorf("%s: %v", name, err)
		}
	}
	if there := cloud.Sandboxes(); len(there) != 1 || there[0].State != "started" {
		t.Errorf("%+v", there)
	}
}

func TestManyCreatesAtOnceMakeOneSandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Create: 30 * time.Millisecond})
	var group sync.WaitGroup
	var mutex sync.Mutex
	created := 0
	for i := range 10 {
		group.Go(func() {
			request := createRequest("s1")
			request.Attempt = fmt.Sprint(i)
			sandbox, err := newProvider(t, cloud, nil).Create(t.Context(), request)
			mutex.Lock()
			defer mutex.Unlock()
			if err != nil {
				t.Error(err)
			}
			if sandbox.Origin == provider.OriginCreated {
				created++
			}
		})
	}
	group.Wait()
	if there := cloud.Sandboxes(); created != 1 || len(there) != 1 {
		t.Errorf("%d created, %d there", created, len(there))
	}
}

func TestTheListingIsBehindButASessionsOwnIsNot(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{ListLag: time.Hour})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	one, err := d.List(t.Context(), provider.ListRequest{Owner: owner, Session: "s1"})
	if err != nil || len(one) != 1 || one[0].ID != sandbox.ID || one[0].Attempt != "attempt-of-s1" {
		t.Errorf("%+v, %v", one, err)
	}
	if all, err := d.List(t.Context(), provider.ListRequest{Owner: owner}); err != nil || len(all) != 0 {
		t.Errorf("the listing is not behind: %+v, %v", all, err)
	}
	if again := attach(t, d, "s1"); again.ID != sandbox.ID {
		t.Errorf("attached to %s", again.ID)
	}
}

func TestAllPagesOfAListingAreRead(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	for owner, count := range map[string]int{owner: 250, "somebody else": 30} {
		if err := cloud.Plant(count, map[string]string{provider.LabelOwner: owner, provider.LabelSession: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	listed, err := d.List(t.Context(), provider.ListRequest{Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	different := map[string]bool{}
	for _, sandbox := range listed {
		different[sandbox.ID] = true
		if sandbox.Owner != owner || sandbox.State != provider.StateRunning || sandbox.CreatedAt.IsZero() || sandbox.ExpiresAt.IsZero() {
			t.Fatalf("%+v", sandbox)
		}
	}
	if len(different) != 250 || cloud.Traffic.Count("listSandboxes") != 2 {
		t.Errorf("%d sandboxes in %d pages", len(different), cloud.Traffic.Count("listSandboxes"))
	}
	end, err := d.Renew(t.Context(), provider.RenewRequest{SandboxRef: ref(listed[249]), Lifetime: 90 * time.Minute})
	if left := time.Until(end); err != nil || left < 89*time.Minute || left > 91*time.Minute {
		t.Errorf("renewed until %s, %v", end, err)
	}
}

func TestAStartReplacesTheTokenAndTheOldOneIsNotHandedOut(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{TokenCache: time.Second})
	patient := testTimes
	patient.token = normalTimes.token
	d := newProviderWith(t, cloud, patient, nil)
	sandbox := create(t, d, "s1")
	if err := d.Suspend(t.Context(), ref(sandbox)); err != nil {
		t.Fatal(err)
	}
	stale, err := (&machines{d}).preview(t.Context(), sandbox.ID, 8000) // which makes the cloud remember it
	if err != nil {
		t.Fatal(err)
	}
	woken := attach(t, d, "s1")
	endpoints := start(t, d, woken, pythonServer())
	if endpoints.Server.Headers[tokenHeader] == stale.Token {
		t.Error("the token of before the start was handed out")
	}
	awaitAlive(t, d, woken, endpoints)
}

func TestASandboxThatSomebodyIsStartingIsNotStartedAgain(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	for _, state := range []string{"archived", "archiving", "paused", "stopped"} {
		sandbox := create(t, d, state)
		cloud.Force(sandbox.ID, state, "", false)
		cloud.Desire(sandbox.ID, "started")
		if _, err := d.Attach(short(t, 200*time.Millisecond), attachRequest(state)); provider.CodeOf(err) != provider.CodeTimeout {
			t.Errorf("%s: %v", state, err)
		}
	}
	if n := cloud.Traffic.Count("startSandbox"); n != 0 {
		t.Errorf("%d starts", n)
	}
}

func TestEveryRestingStateIsWoken(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Start: 20 * time.Millisecond, Restore: 20 * time.Millisecond})
	d := newProvider(t, cloud, nil)
	for _, state := range []string{"stopped", "archived"} {
		sandbox := create(t, d, state)
		cloud.Force(sandbox.ID, state, "", false)
		if woken := attach(t, d, state); woken.Origin != provider.OriginWoken || woken.State != provider.StateRunning {
			t.Errorf("%s: %+v", state, woken)
		}
	}
}

func TestARecoverableFailureIsMendedThoughItShowsForAWhile(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Start: 150 * time.Millisecond, Hold: -1})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	cloud.Force(sandbox.ID, "error", "no space left on device", true)
	if woken := attach(t, d, "s1"); woken.Origin != provider.OriginWoken || woken.ID != sandbox.ID {
		t.Errorf("%+v", woken)
	}
	cloud.Force(sandbox.ID, "error", "the disk is gone", false)
	_, err := d.Attach(t.Context(), attachRequest("s1"))
	if e := provider.AsError(err); e.Code != provider.CodeFailed || e.SandboxID != sandbox.ID || !strings.Contains(e.Message, "the disk is gone") {
		t.Errorf("%v", err)
	}
	_, err = d.Create(t.Context(), createRequest("s1"))
	if e := provider.AsError(err); e.Code != provider.CodeFailed || e.SandboxID != "" || len(cloud.Sandboxes()) != 1 {
		t.Errorf("a Create that made nothing: %v", err)
	}
}

func TestAWrongAPIURLIsNotTakenForAnEmptyCloud(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	for _, path := range []string{"", "/api/v7"} { // the dashboard, which answers everything, and a path that does not exist
		d := newProvider(t, cloud, func(c *Config) { c.APIURL = strings.TrimSuffix(cloud.URL(), "/api") + path })
		_, err := d.Attach(t.Context(), attachRequest("s1"))
		if provider.CodeOf(err) != provider.CodeUnreachable || !strings.Contains(err.Error(), "api_url") {
			t.Errorf("%q: %v", path, err)
		}
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	d := newProvider(t, cloud, func(c *Config) { c.APIURL = plain.URL })
	if _, err := d.Attach(t.Context(), attachRequest("s1")); provider.CodeOf(err) != provider.CodeUnreachable {
		t.Errorf("%v", err)
	}
}

func TestAFailedLookUpNeverCreates(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	for status, want := range map[int]provider.Code{500: provider.CodeUnreachable, 401: provider.CodeDenied, 403: provider.CodeDenied} {
		fault := cloud.Traffic.Fail(simcloud.Fault{Operation: "getSandbox", Status: status, Body: "{}"})
		if _, err := d.Attach(t.Context(), attachRequest("s1")); provider.CodeOf(err) != want {
			t.Errorf("%d: %v", status, err)
		}
		fault.Remove()
	}
	if len(cloud.Sandboxes()) != 0 {
		t.Error("something was created")
	}
}

func TestLifetimeAndDeletionAreAlwaysArmedAndNeverEphemeral(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	for i, c := range []struct {
		lifetime, deleteAfter time.Duration
		stop, remove          int
	}{
		{time.Hour, 168 * time.Hour, 60, 10080},
		{61 * time.Second, 30 * time.Second, 2, 1}, // 0 minutes would mean "never" for the one, "at once" for the other
		{0, 0, 60, -1},
	} {
		request := createRequest(fmt.Sprint("s", i))
		request.Lifetime = c.lifetime
		d := newProvider(t, cloud, func(config *Config) { config.DeleteAfter = c.deleteAfter })
		sandbox, err := d.Create(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		info := cloud.Sandboxes()[i]
		if info.Stop != c.stop || info.Delete != c.remove || info.Public {
			t.Errorf("%d: %+v", i, info)
		}
		if left := time.Until(sandbox.ExpiresAt); left > time.Duration(c.stop)*time.Minute || left < time.Duration(c.stop)*time.Minute-time.Minute {
			t.Errorf("%d: expires in %s", i, left)
		}
	}
}

func TestAForgottenSandboxStopsAndIsDeletedThoughItIsPinged(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, func(c *Config) { c.DeleteAfter = time.Minute })
	request := createRequest("s1")
	request.Lifetime = time.Minute
	sandbox, err := d.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	endpoints := start(t, d, sandbox, pythonServer())
	awaitAlive(t, d, sandbox, endpoints)
	cloud.Set(func(o *sim.Options) { o.Minute = 300 * time.Millisecond })
	cloudtest.Eventually(t, "it stops", func() bool {
		result := ping(t, d, sandbox, endpoints)
		return result.Status != provider.PingAlive
	})
	cloudtest.Eventually(t, "it is deleted", func() bool { return len(cloud.Sandboxes()) == 0 })
}

func TestTheAddressOfTheDaemonMustBeAsSafeAsTheAPIs(t *testing.T) {
	t.Parallel()
	d := newDaytona(Config{APIKey: canary, APIURL: "https://app.daytona.io/api"}, hclog.NewNullLogger(), testTimes)
	for address, fine := range map[string]bool{
		"https://proxy.app.daytona.io/toolbox": true, "http://proxy.app.daytona.io/toolbox": false, "": false, "file:///x": false,
	} {
		if _, err := d.toolbox(box{id: "id", daemon: address}); (err == nil) != fine {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestAPublicSandboxHasNoHeadersThatWouldLookLikeProtection(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, func(c *Config) { c.Public = true })
	sandbox := create(t, d, "s1")
	endpoints := start(t, d, sandbox, pythonServer())
	if len(endpoints.Server.Headers) != 0 {
		t.Errorf("%v", endpoints.Server.Headers)
	}
	awaitAlive(t, d, sandbox, endpoints)
}

func TestExtraPortsHaveURLsOfTheirOwn(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	server := pythonServer()
	server.Port, server.ExtraPorts = 0, map[string]int{"vnc": 9100}
	server.Command[4] = "{port.vnc}"
	endpoints := start(t, d, sandbox, server)
	if !strings.Contains(endpoints.Server.URL, "/8000-") || !strings.Contains(endpoints.Extra["vnc"].URL, "/9100-") {
		t.Fatalf("%+v", endpoints)
	}
	awaitAlive(t, d, sandbox, provider.Endpoints{Server: endpoints.Extra["vnc"]})
}

func TestAServerIsStartedOnceHoweverOftenItIsAsked(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if _, err := d.StartServer(t.Context(), startRequest(sandbox, pythonServer())); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	endpoints := start(t, d, sandbox, shellServer("exit 1"))
	awaitAlive(t, d, sandbox, endpoints)
	lines, err := d.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 100})
	if err != nil || !slices.Equal(lines, []string{"listening"}) {
		t.Errorf("the log %q, %v", lines, err)
	}
}

func TestAServersWordsReachItUnchangedAndItsSecretsNoCommandLine(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	const secret, odd = "s3cr3t-'\"$(id)`\\\n of the server", `it's "$HOME" $(id) \ * ; exit 9 #`
	server := shellServer(`pwd; printf '%s\n' "$1" "$KEY" "$PORT" "$GREETING" "$PATH"; for f in /proc/[0-9]*/cmdline; do tr '\0' ' ' <$f; done; exec sleep 1000`)
	server.Command = append(server.Command, "sh", odd)
	server.Workdir = "deep/er"
	server.Env = map[string]string{"KEY": secret, "GREETING": "on {port}", "PATH": "/usr/bin:/bin:/nowhere", "HOME": "/nowhere", "TMPDIR": "/nowhere",
		"dir": "/nowhere", "name": "PATH", "names": "PATH", "port": "1", "IFS": "0123456789", "_dir": "x"}
	start(t, d, sandbox, server)
	var log string
	cloudtest.Eventually(t, "the server has said everything", func() bool {
		lines, err := d.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 2000})
		if err != nil {
			t.Fatal(err)
		}
		log = strings.Join(lines, "\n")
		return strings.Contains(log, "berth-server")
	})
	want := "/home/daytona/deep/er\n" + odd + "\n" + secret + "\n8000\non 8000\n/usr/bin:/bin:/nowhere\n"
	rest, found := strings.CutPrefix(log, want)
	if !found {
		t.Errorf("got %q, want it to begin with %q", log, want)
	}
	if strings.Contains(rest, "s3cr3t") {
		t.Error("the secret is in a command line")
	}
	for _, call := range cloud.Traffic.Calls("executeCommand") {
		command, _, _ := strings.Cut(call.Body, `"envs"`)
		if strings.Contains(command, "s3cr3t") {
			t.Error("the secret is in the command that was sent")
		}
	}
	for _, bad := range []map[string]string{{"A B": "x"}, {"1A": "x"}, {"A;id": "x"}, {"A": "\x00"}} {
		server.Env = bad
		if _, err := d.StartServer(t.Context(), startRequest(sandbox, server)); provider.CodeOf(err) != provider.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestADaemonThatIsNotUpYetIsWaitedFor(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	for _, fault := range []simcloud.Fault{
		{Status: 502}, {Status: 400, Body: `{"statusCode":400,"message":"bad request: no IP address found. Is the Sandbox started?"}`},
		{Status: 404, Body: `{"statusCode":404,"message":"sandbox container not found"}`},
	} {
		fault.Operation, fault.Count = "executeCommand", 2
		cloud.Traffic.Fail(fault)
	}
	awaitAlive(t, d, sandbox, start(t, d, sandbox, pythonServer()))
}

func TestAUsersTokenGoesWithItsOrganizationAndAKeyWithout(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	for organization, change := range map[string]func(*Config){
		"":      nil,
		"org-1": func(c *Config) { c.APIKey, c.JWTToken, c.OrganizationID = "", canary, "org-1" },
	} {
		cloud.Traffic.ClearCalls()
		d := newProvider(t, cloud, change)
		sandbox := create(t, d, "s"+organization)
		start(t, d, sandbox, shellServer("sleep 1000"))
		for _, call := range cloud.Traffic.Calls() {
			if got := strings.Join(call.Headers["X-Daytona-Organization-Id"], ","); got != organization {
				t.Errorf("%s: organization %q, want %q", call.Operation, got, organization)
			}
			if keys := call.Headers["Authorization"]; !slices.Equal(keys, []string{"Bearer " + canary}) {
				t.Errorf("%s: %d keys", call.Operation, len(keys))
			}
		}
		for _, call := range cloud.Traffic.Calls("executeCommand") {
			if version := call.Headers["X-Daytona-Sdk-Version"]; !slices.Equal(version, []string{clientVersion}) {
				t.Errorf("the daemon was told the version %v", version)
			}
		}
	}
}

func TestAListingOfAllOwnersShowsThoseOfOthers(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloudtest.CheckOwners(t, newProvider(t, cloud, nil), owner, func(labels map[string]string) error { return cloud.Plant(1, labels) })
}
