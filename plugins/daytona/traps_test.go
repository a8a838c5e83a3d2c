package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	toolbox "github.com/daytonaio/daytona/libs/toolbox-api-client-go"
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
	sandbox, endpoints := cloudtest.Up(t, d, "s1")
	endpoints.Server.Headers = map[string]string{tokenHeader: "of-before-the-restart"}
	if result := cloudtest.Ping(t, d, sandbox, endpoints); result.Status != provider.PingDenied {
		t.Errorf("%+v", result)
	}
	d.Forget(sandbox.ID)
	if result := cloudtest.Ping(t, d, sandbox, endpoints); result.Status != provider.PingDenied || !strings.Contains(result.Reason, "connect again") {
		t.Errorf("%+v", result)
	}
}

func TestTheHeadersAvoidThePageThatWarnsBrowsers(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	_, endpoints := cloudtest.Up(t, d, "s1")
	endpoints.Server.Headers["User-Agent"] = "Mozilla/5.0"
	if _, body := cloudtest.Get(t, endpoints.Server, "/alive"); strings.Contains(body, "Warning") {
		t.Errorf("got %q", body)
	}
}

func TestCreateDoesNotBelieveTheStateThatCreatingAnswers(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Create: 50 * time.Millisecond})
	if sandbox := cloudtest.Create(t, newProvider(t, cloud, nil), "s1"); sandbox.State != provider.StateRunning {
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
		_, err := d.Create(t.Context(), cloudtest.CreateRequest("s1"))
		if e := provider.AsError(err); e == nil || e.Code != provider.CodeFailed || !strings.Contains(e.Message, "no space left") || e.SandboxID != "" {
			t.Errorf("%v", err)
		}
		if left := cloud.Sandboxes(); len(left) != 0 {
			t.Errorf("left: %+v", left)
		}
	}
	cloudtest.Create(t, d, "s1")
}

func TestASandboxIsRemovedThoughDeletingIsRefusedWhileItIsCreated(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Create: 2 * time.Second, Hold: -1})
	d := newProvider(t, cloud, nil)
	_, err := d.Create(cloudtest.Within(t, 200*time.Millisecond), cloudtest.CreateRequest("s1"))
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

func TestTheListingIsBehindButASessionsOwnIsNot(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{ListLag: time.Hour})
	d := newProvider(t, cloud, nil)
	sandbox := cloudtest.Create(t, d, "s1")
	one, err := d.List(t.Context(), provider.ListRequest{Owner: cloudtest.Owner, Session: "s1"})
	if err != nil || len(one) != 1 || one[0].ID != sandbox.ID || one[0].Attempt != "attempt-of-s1" {
		t.Errorf("%+v, %v", one, err)
	}
	if all, err := d.List(t.Context(), provider.ListRequest{Owner: cloudtest.Owner}); err != nil || len(all) != 0 {
		t.Errorf("the listing is not behind: %+v, %v", all, err)
	}
	if again := cloudtest.Attach(t, d, "s1"); again.ID != sandbox.ID {
		t.Errorf("attached to %s", again.ID)
	}
}

func TestAStartReplacesTheTokenAndTheOldOneIsNotHandedOut(t *testing.T) {
	t.Parallel()
	times := timesFor(cloudtest.Brisk)
	times.token = normalTimes.token
	for _, another := range []bool{false, true} { // whether another process starts the server
		t.Run(fmt.Sprint(another), func(t *testing.T) {
			t.Parallel()
			cloud := newCloud(t, sim.Options{TokenCache: time.Second})
			opened := func() *Daytona {
				d := newDaytona(cloudtest.Configure[Config](t, configFor(cloud), nil), hclog.NewNullLogger(), times)
				t.Cleanup(func() { d.Close() })
				return d
			}
			d := opened()
			sandbox := cloudtest.Create(t, d, "s1")
			if err := d.Suspend(t.Context(), cloudtest.Ref(sandbox)); err != nil {
				t.Fatal(err)
			}
			stale, err := (&machines{d}).preview(t.Context(), sandbox.ID, 8000) // which makes the cloud remember it
			if err != nil {
				t.Fatal(err)
			}
			woken := cloudtest.Attach(t, d, "s1")
			if another {
				d = opened()
				woken = cloudtest.Attach(t, d, "s1")
			}
			endpoints := cloudtest.Start(t, d, woken, cloudtest.ActionServer())
			if endpoints.Server.Headers[tokenHeader] == stale.Token {
				t.Error("the token of before the start was handed out")
			}
			cloudtest.AwaitAlive(t, d, woken, endpoints)
		})
	}
}

func TestASandboxThatSomebodyIsStartingIsNotStartedAgain(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	for _, state := range []string{"archived", "archiving", "paused", "stopped"} {
		sandbox := cloudtest.Create(t, d, state)
		cloud.Force(sandbox.ID, state, "", false)
		cloud.Desire(sandbox.ID, "started")
		if _, err := d.Attach(cloudtest.Within(t, 200*time.Millisecond), cloudtest.AttachRequest(state)); provider.CodeOf(err) != provider.CodeTimeout {
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
		sandbox := cloudtest.Create(t, d, state)
		cloud.Force(sandbox.ID, state, "", false)
		if woken := cloudtest.Attach(t, d, state); woken.Origin != provider.OriginWoken || woken.State != provider.StateRunning {
			t.Errorf("%s: %+v", state, woken)
		}
	}
}

func TestARecoverableFailureIsMendedThoughItShowsForAWhile(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Start: 150 * time.Millisecond, Hold: -1})
	d := newProvider(t, cloud, nil)
	sandbox := cloudtest.Create(t, d, "s1")
	cloud.Force(sandbox.ID, "error", "no space left on device", true)
	if woken := cloudtest.Attach(t, d, "s1"); woken.Origin != provider.OriginWoken || woken.ID != sandbox.ID {
		t.Errorf("%+v", woken)
	}
	cloud.Force(sandbox.ID, "error", "the disk is gone", false)
	_, err := d.Attach(t.Context(), cloudtest.AttachRequest("s1"))
	if e := provider.AsError(err); e.Code != provider.CodeFailed || e.SandboxID != sandbox.ID || !strings.Contains(e.Message, "the disk is gone") {
		t.Errorf("%v", err)
	}
	_, err = d.Create(t.Context(), cloudtest.CreateRequest("s1"))
	if e := provider.AsError(err); e.Code != provider.CodeFailed || e.SandboxID != "" || len(cloud.Sandboxes()) != 1 {
		t.Errorf("a Create that made nothing: %v", err)
	}
}

func TestAWrongAPIURLIsNotTakenForAnEmptyCloud(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	for _, path := range []string{"", "/api/v7"} { // the dashboard, which answers everything, and a path that does not exist
		d := newProvider(t, cloud, func(c *Config) { c.APIURL = strings.TrimSuffix(cloud.URL(), "/api") + path })
		_, err := d.Attach(t.Context(), cloudtest.AttachRequest("s1"))
		if provider.CodeOf(err) != provider.CodeUnreachable || !strings.Contains(err.Error(), "api_url") {
			t.Errorf("%q: %v", path, err)
		}
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	d := newProvider(t, cloud, func(c *Config) { c.APIURL = plain.URL })
	if _, err := d.Attach(t.Context(), cloudtest.AttachRequest("s1")); provider.CodeOf(err) != provider.CodeUnreachable {
		t.Errorf("%v", err)
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
		request := cloudtest.CreateRequest(fmt.Sprint("s", i))
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

func TestTheAddressOfTheDaemonMustBeAsSafeAsTheAPIs(t *testing.T) {
	t.Parallel()
	d := newDaytona(Config{APIKey: canary, APIURL: "https://app.daytona.io/api"}, hclog.NewNullLogger(), normalTimes)
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
	sandbox := cloudtest.Create(t, d, "s1")
	endpoints := cloudtest.Start(t, d, sandbox, cloudtest.ActionServer())
	if len(endpoints.Server.Headers) != 0 {
		t.Errorf("%v", endpoints.Server.Headers)
	}
	cloudtest.AwaitAlive(t, d, sandbox, endpoints)
}

func TestADaemonThatIsNotUpYetIsWaitedFor(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := cloudtest.Create(t, d, "s1")
	for _, fault := range []simcloud.Fault{
		{Status: 502}, {Status: 400, Body: `{"statusCode":400,"message":"bad request: no IP address found. Is the Sandbox started?"}`},
		{Status: 404, Body: `{"statusCode":404,"message":"sandbox container not found"}`},
	} {
		fault.Operation, fault.Count = "executeCommand", 2
		cloud.Traffic.Fail(fault)
	}
	cloudtest.AwaitAlive(t, d, sandbox, cloudtest.Start(t, d, sandbox, cloudtest.ActionServer()))
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
		sandbox := cloudtest.Create(t, d, "s"+organization)
		cloudtest.Start(t, d, sandbox, cloudtest.Shell("sleep 1000"))
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

func TestMinutesRoundUpAndAreNeverNone(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]int32{
		time.Nanosecond: 1, time.Second: 1, time.Minute: 1, 61 * time.Second: 2, time.Hour: 60, 1<<63 - 1: 153722868,
	} {
		if got := minutes(d); got != want {
			t.Errorf("%s: %d minutes, want %d", d, got, want)
		}
	}
}

func TestWhatTheConfigurationAsksForIsSent(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Snapshots: []string{"big"}})
	for config, want := range map[string]string{
		`{"snapshot":"big","target":"eu","archive_after":"1h","delete_after":"59m","block_network":true}`: `"autoArchiveInterval":60`,
		`{"image":"debian:12","cpu":2,"memory":4,"disk":8}`:                                               `"dockerfileContent":"FROM debian:12\n"`,
		`{"allow_networks":["10.0.0.0/8","192.168.0.0/16"]}`:                                              `"networkAllowList":"10.0.0.0/8,192.168.0.0/16"`,
	} {
		d := newProvider(t, cloud, func(c *Config) {
			var err error
			if *c, err = cloudtest.Decode[Config](configFor(cloud), config); err != nil {
				t.Fatal(err)
			}
		})
		cloud.Traffic.ClearCalls()
		cloudtest.Create(t, d, config[:6])
		if body := cloud.Traffic.Calls("createSandbox")[0].Body; !strings.Contains(body, want) {
			t.Errorf("%s: sent %s", config, body)
		}
	}
	d := newProvider(t, cloud, func(c *Config) { c.Snapshot = "ghcr.io/an/image:1" })
	_, err := d.Create(t.Context(), cloudtest.CreateRequest("s9"))
	if provider.CodeOf(err) != provider.CodeInvalid || !strings.Contains(err.Error(), "Snapshot ghcr.io/an/image:1 not found") {
		t.Errorf("%v", err)
	}
}

func TestAForgottenSandboxStopsAndIsDeletedThoughItIsPinged(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, func(c *Config) { c.DeleteAfter = time.Minute })
	request := cloudtest.CreateRequest("s1")
	request.Lifetime = time.Minute
	sandbox, err := d.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	endpoints := cloudtest.Start(t, d, sandbox, cloudtest.ActionServer())
	cloudtest.AwaitAlive(t, d, sandbox, endpoints)
	cloud.Set(func(o *sim.Options) { o.Minute = 300 * time.Millisecond })
	cloudtest.Eventually(t, "it stops", func() bool {
		result := cloudtest.Ping(t, d, sandbox, endpoints)
		return result.Status != provider.PingAlive
	})
	cloudtest.Eventually(t, "it is deleted", func() bool { return len(cloud.Sandboxes()) == 0 })
}

func TestTimesThatTheCloudWouldNotKeepAreRefused(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	for config, refused := range map[string]string{
		`{}`:                       "",
		`{"archive_after":"169h"}`: "",
		`{"archive_after":"168h"}`: "archive_after",
		`{"archive_after":"1h"}`:   "archive_after",
		`{"archive_after":"721h"}`: "archive_after",
		`{"delete_after":"719h"}`:  "",
		`{"delete_after":"720h"}`:  "delete_after",
		`{"delete_after":"719h30s","archive_after":"719h1m"}`: "archive_after", // both are 43141 minutes
		`{"delete_after":"0s","archive_after":"1h"}`:          "",
	} {
		c, err := cloudtest.Decode[Config](configFor(cloud), config)
		if err != nil {
			t.Fatal(err)
		}
		var fields []string
		if e := provider.AsError(c.check()); e != nil {
			for _, f := range e.Fields {
				fields = append(fields, f.Field)
			}
		}
		if got := strings.Join(fields, ","); got != refused {
			t.Errorf("%s: refused %q, want %q", config, got, refused)
		}
	}
}

// Daytona archives after 7 days unless it is told otherwise, and deletes nothing that it has archived.
func TestTrapAForgottenSandboxIsDeletedBeforeItCouldBeArchived(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Minute: 300 * time.Microsecond}) // 7 days are 3 seconds
	d := newProvider(t, cloud, nil)
	request := cloudtest.CreateRequest("s1")
	request.Lifetime = 20 * time.Hour
	if _, err := d.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	cloudtest.Eventually(t, "it is deleted", func() bool {
		left := cloud.Sandboxes()
		if len(left) > 0 && strings.HasPrefix(left[0].State, "archiv") {
			t.Fatal("it is archived, and stays for ever")
		}
		return len(left) == 0
	})
}

func TestTheEndThatIsToldIsTheClouds(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := cloudtest.Create(t, d, "s1")
	for state, after := range map[string]time.Duration{"stopped": 168 * time.Hour, "archived": 0, "error": 0} {
		cloud.Force(sandbox.ID, state, "", false)
		listed, err := d.List(t.Context(), provider.ListRequest{Owner: cloudtest.Owner, Session: "s1"})
		if err != nil || len(listed) != 1 {
			t.Fatalf("%+v, %v", listed, err)
		}
		if end := listed[0].ExpiresAt; end.IsZero() != (after == 0) || after > 0 && time.Until(end).Round(time.Hour) != after {
			t.Errorf("%s: it ends at %s", state, end)
		}
	}
}

func TestTrapAProxyThatCannotAskTheAPIRefusesWhatIsRight(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := cloudtest.Create(t, d, "s1")
	cloud.Cut(true)
	over := make(chan struct{})
	time.AfterFunc(300*time.Millisecond, func() { close(over); cloud.Cut(false) })
	endpoints := cloudtest.Start(t, d, sandbox, cloudtest.ActionServer())
	select {
	case <-over:
	default:
		t.Error("the outage was not met")
	}

	cloud.Cut(true) // before anybody has asked for the port
	began := time.Now()
	for time.Since(began) < 700*time.Millisecond {
		if result := cloudtest.Ping(t, d, sandbox, endpoints); result.Status != provider.PingNotYet {
			t.Fatalf("while the proxy cannot ask: %+v", result)
		}
		time.Sleep(20 * time.Millisecond)
	}
	cloud.Cut(false)
	cloudtest.AwaitAlive(t, d, sandbox, endpoints)

	cloud.Cut(true) // and the API is out itself
	other := newProvider(t, cloud, nil)
	down := cloud.Traffic.Fail(simcloud.Fault{Operation: "getSandbox", Status: 503})
	endpoints.Server.Headers[tokenHeader] = "not remembered"
	if result := cloudtest.Ping(t, other, sandbox, endpoints); result.Status != provider.PingNotYet {
		t.Errorf("while the API is out: %+v", result)
	}
	down.Remove()
	cloud.Cut(false)
	if result := cloudtest.AwaitPing(t, newProvider(t, cloud, nil), sandbox, endpoints); result.Status != provider.PingDenied {
		t.Errorf("a wrong token: %+v", result)
	}
}

func TestAServerThatRefusesUsItselfIsDenied(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox, endpoints := cloudtest.Up(t, d, "s1")
	cloud.Traffic.Fail(simcloud.Fault{Operation: "preview", Status: 401, Body: `{"detail":"the session key is wrong"}`})
	for range 3 {
		if result := cloudtest.Ping(t, d, sandbox, endpoints); result.Status != provider.PingDenied {
			t.Errorf("%+v", result)
		}
	}
}

func TestTrapAFullAccountIsToldBeforeTheClashOfNames(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{MaxCPU: 1})
	d := newProvider(t, cloud, nil)
	sandbox := cloudtest.Create(t, d, "s1")
	again, err := newProvider(t, cloud, nil).Create(t.Context(), cloudtest.CreateRequest("s1"))
	if err != nil || again.ID != sandbox.ID || again.Origin != provider.OriginAttached {
		t.Errorf("%+v, %v", again, err)
	}
	if e := cloudtest.WantCode(t, cloudtest.Err(d.Create(t.Context(), cloudtest.CreateRequest("s2"))), provider.CodeExhausted); e.Reason != provider.ReasonQuota {
		t.Errorf("%+v", e)
	}
}

func TestTrapALookUpShowsASandboxAsItWas(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{LookLag: 300 * time.Millisecond})
	d := newProvider(t, cloud, nil)
	sandbox := cloudtest.Create(t, d, "s1")
	cloudtest.Attach(t, d, "s1") // which the cloud remembers
	for range 2 {
		if err := newProvider(t, cloud, nil).Suspend(t.Context(), cloudtest.Ref(sandbox)); err != nil {
			t.Fatal(err)
		}
	}
	cloudtest.Eventually(t, "it is woken, once it is not taken for running any more", func() bool {
		return cloudtest.Attach(t, newProvider(t, cloud, nil), "s1").Origin == provider.OriginWoken
	})
	cloudtest.AwaitAlive(t, d, sandbox, cloudtest.Start(t, d, sandbox, cloudtest.ActionServer()))
}

func TestTrapTheProxyLooksForARecoveredSandboxWhereItWas(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox, _ := cloudtest.Up(t, d, "s1")
	cloud.Force(sandbox.ID, "error", "no space left on device", true)
	var watch sync.WaitGroup
	watch.Go(func() {
		cloudtest.Eventually(t, "the proxy has looked in vain", func() bool {
			calls := cloud.Traffic.Calls("getVersion")
			return len(calls) > 2 && calls[1].Status == http.StatusNotFound
		})
		cloud.Forget()
	})
	woken := cloudtest.Attach(t, d, "s1")
	watch.Wait()
	if woken.Origin != provider.OriginWoken {
		t.Errorf("%+v", woken)
	}
	cloudtest.AwaitAlive(t, d, woken, cloudtest.Start(t, d, woken, cloudtest.ActionServer()))
}

// What a command leaves in the background keeps its outputs open.
func TestTrapACommandIsAnsweredOnceItsOutputsAreClosed(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := cloudtest.Create(t, d, "s1")
	shown, err := (&machines{d}).Look(t.Context(), sandbox.ID)
	if err != nil {
		t.Fatal(err)
	}
	client, err := d.toolbox(shown)
	if err != nil {
		t.Fatal(err)
	}
	for command, least := range map[string]time.Duration{"sleep 0.4 & echo hi": 400 * time.Millisecond, "echo hi": 0} {
		began := time.Now()
		response, _, err := client.ProcessAPI.ExecuteCommand(t.Context()).Request(*toolbox.NewExecuteRequest(command)).Execute()
		if err != nil || response.Result != "hi\n" || time.Since(began) < least {
			t.Errorf("%s: %+v, %v after %s", command, response, err, time.Since(began))
		}
	}
	large := toolbox.NewExecuteRequest("echo hi") // the kernel does not start it
	large.SetEnvs(map[string]string{"LARGE": strings.Repeat("x", 200<<10)})
	if response, _, err := client.ProcessAPI.ExecuteCommand(t.Context()).Request(*large).Execute(); err != nil || response.GetExitCode() != -1 {
		t.Errorf("too large an environment: %+v, %v", response, err)
	}
	began := time.Now()
	server := cloudtest.Shell("sleep 1000 & exec sleep 1000") // StartServer waits for none of them
	cloudtest.Start(t, d, sandbox, server)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("starting took %s", took)
	}
}

func TestAReplacedTokenOpensTheURLForAWhile(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox, before := cloudtest.Up(t, d, "s1")
	if err := d.Suspend(t.Context(), cloudtest.Ref(sandbox)); err != nil {
		t.Fatal(err)
	}
	after := cloudtest.Start(t, d, cloudtest.Attach(t, d, "s1"), cloudtest.ActionServer())
	cloudtest.AwaitAlive(t, d, sandbox, after)
	if before.Server.Headers[tokenHeader] == after.Server.Headers[tokenHeader] {
		t.Error("the token of before was handed out")
	}
	for _, want := range []int{http.StatusOK, http.StatusTemporaryRedirect} {
		if status, _ := cloudtest.Get(t, before.Server, "/alive"); status != want {
			t.Errorf("the token of before: %d, want %d", status, want)
		}
		cloud.Forget()
	}
	if status, _ := cloudtest.Get(t, after.Server, "/alive"); status != http.StatusOK {
		t.Errorf("the token of now: %d", status)
	}
}

func TestRefusalsThatAre403AreToldApart(t *testing.T) {
	t.Parallel()
	for message, code := range map[string]provider.Code{
		"Sandbox storage cannot be further expanded": provider.CodeExhausted,
		"Organization is suspended":                  provider.CodeDenied,
	} {
		cloud := newCloud(t, sim.Options{})
		d := newProvider(t, cloud, nil)
		sandbox := cloudtest.Create(t, d, "s1")
		cloud.Force(sandbox.ID, "error", "no space left on device", true)
		fault := cloudtest.Answer(http.StatusForbidden, message)
		fault.Operation = "recoverSandbox"
		cloud.Traffic.Fail(fault)
		cloudtest.WantCode(t, cloudtest.Err(d.Attach(t.Context(), cloudtest.AttachRequest("s1"))), code)
	}
}
