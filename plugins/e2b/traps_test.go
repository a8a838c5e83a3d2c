package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/plugins/e2b/envd"
	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/provider"
)

// The traps of E2B's API that others have walked into. Each test is named after one.

func TestTrapTheDeadlineOfTheStartStreamKillsTheServer(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	endpoints, err := p.StartServer(ctx, startRequest(sandbox, actionServer()))
	if err != nil {
		t.Fatalf("StartServer: %v", err)
	}
	awaitPing(t, p, sandbox, endpoints)
	for _, call := range cloud.Traffic.Calls("envd.Start") {
		if timeout := call.Headers["Connect-Timeout-Ms"]; timeout != nil {
			t.Errorf("the start carries Connect-Timeout-Ms: %v", timeout)
		}
	}
	<-ctx.Done() // the deadline of the call has passed, and its stream is long closed
	if result := ping(t, p, sandbox, endpoints); result.Status != provider.PingAlive {
		t.Errorf("after the deadline of the start: %+v", result)
	}
}

func TestTrapTheSimulatorDoesKillAtThatDeadline(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	opened, _, err := p.api.connect(t.Context(), sandbox.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	startRaw(ctx, t, p, opened, "berth-test", "echo $$ >/home/user/pid; exec sleep 1000")
	cloudtest.Eventually(t, "the process is killed", func() bool {
		return inside(t, cloud, sandbox.ID, `test -s /home/user/pid && test ! -e /proc/$(cat /home/user/pid) && echo gone`) == "gone"
	})
}

// startRaw starts a shell command through envd, without the plugin's care, and leaves its stream.
func startRaw(ctx context.Context, t *testing.T, p *E2B, to access, tag, command string) {
	t.Helper()
	client := connect.NewClient[envd.StartRequest, envd.StartResponse](http.DefaultClient, p.envdURL(to)+envd.ProcedureStart, connect.WithProtoJSON())
	request := connect.NewRequest(&envd.StartRequest{
		Process: &envd.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", command}}, Tag: proto.String(tag), Stdin: proto.Bool(false),
	})
	p.identify(request.Header(), to)
	stream, err := client.CallServerStream(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatalf("no start event: %v", stream.Err())
	}
	t.Cleanup(func() { stream.Close(); http.DefaultClient.CloseIdleConnections() })
}

func TestTrapAProcessIsNotFoundByItsTagOnceThereIsAnother(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	opened, _, err := p.api.connect(t.Context(), sandbox.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	startRaw(ctx, t, p, opened, "somebody-else", "exec sleep 1000")
	for range 2 {
		start(t, newProvider(t, cloud), sandbox, actionServer())
	}
	if n := servers(t, cloud, sandbox.ID); n != 1 {
		t.Errorf("%d servers run", n)
	}
}

func TestTrapTheServerIsNotListedAfterAPauseAlthoughItRuns(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox, _ := up(t, p, "s1")
	start(t, newProvider(t, cloud), sandbox, actionServer())
	if n := servers(t, cloud, sandbox.ID); n != 1 {
		t.Errorf("%d servers run", n)
	}
	if n := cloud.Traffic.Count("envd.List"); n > 0 {
		t.Errorf("envd's listing was asked %d times: it cannot be relied on", n)
	}
}

func TestTrapTheKeepaliveIntervalIsNeverZeroWhichCrashesEnvd(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox, _ := up(t, p, "s1")
	if _, err := p.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 5}); err != nil {
		t.Fatal(err)
	}
	for _, call := range cloud.Traffic.Calls("envd.Start") {
		if got := http.Header(call.Headers).Get("Keepalive-Ping-Interval"); got != "50" {
			t.Errorf("Keepalive-Ping-Interval: %q", got)
		}
	}
}

func TestTrapAnExitCodeOfZeroIsLeftOutOnTheWire(t *testing.T) {
	t.Parallel()
	_, p := setup(t)
	sandbox := create(t, p, "s1")
	e := wantCode(t, second(p.StartServer(t.Context(), startRequest(sandbox, shell("echo done")))), provider.CodeFailed)
	if e.Reason != provider.ReasonServerExited || e.ExitCode == nil || *e.ExitCode != 0 {
		t.Errorf("%+v", e)
	}
}

func TestTrapAnAPIWithoutTheSecondGenerationIsUsedThroughTheFirstAndSecured(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{OnlyV1: true})
	p := newProvider(t, cloud)
	sandbox, _ := up(t, p, "s1")
	if all := cloud.Sandboxes(); len(all) != 1 || !all[0].Secure || !all[0].Private {
		t.Errorf("not secured: %+v", all)
	}
	if found := attach(t, newProvider(t, cloud), "s1"); found.ID != sandbox.ID {
		t.Errorf("%+v", found)
	}
	wantCode(t, second(newProvider(t, cloud, func(c *Config, _ *times) { c.Template = "missing" }).Create(t.Context(), createRequest("s2"))), provider.CodeInvalid)
	create(t, p, "s3")
	attempts := 0
	for _, call := range cloud.Traffic.Calls("create") {
		if strings.HasPrefix(call.Path, "/v2/") {
			attempts++
		}
	}
	if attempts != 2 { // one by each of the providers: the answer is remembered
		t.Errorf("the second generation was tried %d times", attempts)
	}
}

func TestTrapTheSecondGenerationIsUsedWhereItIs(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	create(t, p, "s1")
	attach(t, p, "s1")
	for _, call := range cloud.Traffic.Calls("create", "connect") {
		if !strings.HasPrefix(call.Path, "/v2/") {
			t.Errorf("%s %s is deprecated", call.Method, call.Path)
		}
	}
}

func TestTrapTheTrafficTokenComesOnlyFromConnect(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox, endpoints := up(t, p, "s1")
	token := endpoints.Server.Headers["e2b-traffic-access-token"]
	if found := attach(t, newProvider(t, cloud), "s1"); found.Endpoints.Server.Headers["e2b-traffic-access-token"] != token || token == "" {
		t.Errorf("attached without the token: %+v", found.Endpoints)
	}
	// A process that neither created nor attached has to ask for it too, and does not change the lifetime.
	before := cloud.Sandboxes()[0].EndAt
	if again := start(t, newProvider(t, cloud), sandbox, actionServer()); again.Server.Headers["e2b-traffic-access-token"] != token {
		t.Errorf("started without the token: %+v", again)
	}
	if after := cloud.Sandboxes()[0].EndAt; !after.Equal(before) {
		t.Errorf("the end of its life moved from %s to %s", before, after)
	}
}

func TestTrapConnectSetsTheLifetimeBackToFiveMinutesUnlessToldOtherwise(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	if err := cloud.Pause(sandbox.ID); err != nil {
		t.Fatal(err)
	}
	request := attachRequest("s1")
	request.Lifetime = 2 * time.Hour
	found, err := p.Attach(t.Context(), request)
	if err != nil || time.Until(found.ExpiresAt) < 110*time.Minute {
		t.Errorf("ends at %s, %v", found.ExpiresAt, err)
	}
	if end := time.Until(cloud.Sandboxes()[0].EndAt); end < 110*time.Minute {
		t.Errorf("it ends in %s", end)
	}
}

func TestTrapALifetimeOfZeroSecondsIsNeverSent(t *testing.T) {
	t.Parallel()
	for asked, want := range map[time.Duration]int{0: 1, time.Millisecond: 1, time.Second: 1, 1001 * time.Millisecond: 2, time.Hour: 3600} {
		if got := seconds(asked); got != want {
			t.Errorf("%s is sent as %d, want %d", asked, got, want)
		}
	}
	if lifetimeOf(0) != defaultLifetime {
		t.Error("without a lifetime there is no end")
	}
}

func TestTrapMetadataFiltersAreEncodedThreeTimes(t *testing.T) {
	t.Parallel()
	_, p := setup(t)
	const strange = "a&b=c 1+1 100% ü"
	request := createRequest("s1")
	request.Owner = strange
	made, err := p.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	for _, session := range []string{"", "s1"} {
		listed, err := p.List(t.Context(), provider.ListRequest{Owner: strange, Session: session})
		if err != nil || len(listed) != 1 || listed[0].ID != made.ID || listed[0].Owner != strange {
			t.Errorf("listed for session %q: %+v, %v", session, listed, err)
		}
	}
}

func TestTrapTheProxyAnswers502ForAClosedPortAPausedAndAKilledSandbox(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	endpoints := *sandbox.Endpoints
	if result := ping(t, p, sandbox, endpoints); result.Status != provider.PingNotYet || !strings.Contains(result.Reason, "port is not open") {
		t.Errorf("closed port: %+v", result)
	}
	if err := cloud.Pause(sandbox.ID); err != nil {
		t.Fatal(err)
	}
	if result := ping(t, newProvider(t, cloud), sandbox, endpoints); result.Status != provider.PingStopped {
		t.Errorf("paused: %+v", result)
	}
	cloud.Kill(sandbox.ID)
	if result := ping(t, newProvider(t, cloud), sandbox, endpoints); result.Status != provider.PingGone {
		t.Errorf("killed: %+v", result)
	}
}

func TestTrapAStartInASandboxThatIsPausedOrGoneIsNotTakenForAnUnreachableOne(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := create(t, p, "s1")
	if err := cloud.Pause(sandbox.ID); err != nil {
		t.Fatal(err)
	}
	for _, one := range []*E2B{p, newProvider(t, cloud)} { // one remembers it running
		wantCode(t, second(one.StartServer(t.Context(), startRequest(sandbox, actionServer()))), provider.CodeState)
	}
	if state := cloud.Sandboxes()[0].State; state != "paused" {
		t.Errorf("a start woke the sandbox: it is %s", state)
	}
	attach(t, p, "s1")
	cloud.Kill(sandbox.ID)
	for _, one := range []*E2B{p, newProvider(t, cloud)} {
		wantCode(t, second(one.StartServer(t.Context(), startRequest(sandbox, actionServer()))), provider.CodeNotFound)
	}
}

func TestTrapASandboxInTransitionIsWaitedFor(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	p := newProvider(t, cloud)
	sandbox := create(t, p, "s1")
	fault := cloud.Traffic.Fail(simcloud.Fault{
		Operation: "connect", Count: 2, Status: http.StatusConflict, Body: `{"code":409,"message":"Sandbox is in transition"}`,
		Headers: map[string]string{"Content-Type": "application/json"},
	})
	if found := attach(t, p, "s1"); found.ID != sandbox.ID || fault.Fired() != 2 {
		t.Errorf("%+v after %d refusals", found, fault.Fired())
	}
}

func TestTrapARedirectDoesNotCarryTheAPIKeyAway(t *testing.T) {
	t.Parallel()
	var stolen atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stolen.Add(1) }))
	defer elsewhere.Close()
	edge := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer edge.Close()
	config := Config{APIKey: canary, Domain: "e2b.app", APIURL: edge.URL, Template: "base"}
	p := newE2B(config, discard, quick)
	defer p.Close()
	wantCode(t, second(p.Attach(t.Context(), attachRequest("s1"))), provider.CodeUnreachable)
	wantCode(t, second(p.Create(t.Context(), createRequest("s1"))), provider.CodeUnreachable)
	if n := stolen.Load(); n > 0 {
		t.Errorf("%d requests were redirected", n)
	}
}

func TestTrapTokensOfASandboxStayInsideItsDomain(t *testing.T) {
	t.Parallel()
	request := func(url string) *http.Request { return httptest.NewRequest(http.MethodPost, url, nil) }
	first := []*http.Request{request("https://49983-iabc.e2b.app/process.Process/Start")}
	if err := stayInside(request("https://49983-iabc.us.e2b.app/x"), first); err != nil {
		t.Errorf("inside: %v", err)
	}
	for _, url := range []string{"https://evil.example/x", "http://49983-iabc.e2b.app/x", "https://evil-e2b.app/x"} {
		if err := stayInside(request(url), first); err == nil {
			t.Errorf("%s is followed", url)
		}
	}
}

func TestTrapADomainInTheAnswerWinsOverTheConfiguration(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Domain: "eu.example.dev"})
	p := newProvider(t, cloud, func(c *Config, _ *times) { c.SandboxURL = "" })
	sandbox := create(t, p, "s1")
	if want := "https://8000-" + sandbox.ID + ".eu.example.dev"; sandbox.Endpoints.Server.URL != want {
		t.Errorf("URL %s, want %s", sandbox.Endpoints.Server.URL, want)
	}
	if _, has := sandbox.Endpoints.Server.Headers["E2b-Sandbox-Id"]; has {
		t.Error("the host name says which sandbox is meant, and so does a header")
	}
}

func TestTrapAnOldEnvdNeedsToBeToldTheUser(t *testing.T) {
	t.Parallel()
	p := newE2B(Config{Domain: "e2b.app"}, discard, quick)
	defer p.Close()
	for version, want := range map[string]string{"0.3.9": "Basic dXNlcjo=", "v0.4.0": "", "0.6.13": "", "": ""} {
		header := http.Header{}
		p.identify(header, access{SandboxID: "i1", EnvdVersion: version})
		if got := header.Get("Authorization"); got != want {
			t.Errorf("envd %q: Authorization %q, want %q", version, got, want)
		}
	}
}

func TestTrapAUserThatIsNotThereIsADenial(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	p := newProvider(t, cloud, func(c *Config, _ *times) { c.User = "nobody-here" })
	sandbox := create(t, p, "s1")
	wantCode(t, second(p.StartServer(t.Context(), startRequest(sandbox, actionServer()))), provider.CodeDenied)
}

func TestTrapOnlyTheNewestSandboxesAreOnTheFirstPage(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	first := create(t, p, "s1")
	labels := createRequest("other").AllLabels()
	for range 120 { // of the same owner, so that the owner's filter does not help
		if _, err := cloud.Seed(labels); err != nil {
			t.Fatal(err)
		}
	}
	listed, err := p.List(t.Context(), provider.ListRequest{Owner: owner})
	if err != nil || len(listed) != 121 {
		t.Errorf("%d listed, %v", len(listed), err)
	}
	if found := attach(t, newProvider(t, cloud), "s1"); found.ID != first.ID {
		t.Errorf("%+v", found)
	}
}

func TestTrapACreateWhoseAnswerIsLostAndIsListedLateDoesNotMakeASecondSandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{ListLag: 400 * time.Millisecond}) // longer than the plugin looks
	cloud.Traffic.Fail(simcloud.Fault{Operation: "create", Count: 1, Drop: true, After: true})
	sandbox := create(t, newProvider(t, cloud), "s1")
	if left := cloud.Sandboxes(); len(left) != 1 || left[0].ID != sandbox.ID || cloud.Traffic.Count("create") != 2 {
		t.Errorf("left %+v after %d creates", left, cloud.Traffic.Count("create"))
	}
}

func TestTrapTheWireNamesOfACreateAreE2Bs(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	p := newProvider(t, cloud, func(c *Config, _ *times) { c.Internet = false })
	create(t, p, "s1")
	var body map[string]any
	if err := json.Unmarshal([]byte(cloud.Traffic.Calls("create")[0].Body), &body); err != nil {
		t.Fatal(err)
	}
	network, _ := body["network"].(map[string]any)
	if body["allow_internet_access"] != false || network["allowPublicTraffic"] != false || body["timeout"] != 3600.0 || body["autoPause"] != false {
		t.Errorf("%v", body)
	}
	if _, has := body["secure"]; has {
		t.Error("secure is not known to the second generation")
	}
}

func TestAListingOfAllOwnersShowsThoseOfOthers(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	cloudtest.CheckOwners(t, p, owner, func(labels map[string]string) error {
		_, err := cloud.Seed(labels)
		return err
	})
}

func TestASandboxKnownByItsIDIsAttachedBeforeTheListingShowsIt(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{ListLag: time.Hour})
	sandbox := create(t, newProvider(t, cloud), "s1")
	p := newProvider(t, cloud)
	_, err := p.Attach(t.Context(), attachRequest("s1"))
	wantCode(t, err, provider.CodeNotFound)
	request := attachRequest("s1")
	request.SandboxID = sandbox.ID
	found, err := p.Attach(t.Context(), request)
	if err != nil || found.ID != sandbox.ID || found.Origin != provider.OriginAttached {
		t.Errorf("%+v, %v", found, err)
	}
	request.Session = "s2"
	_, err = p.Attach(t.Context(), request)
	wantCode(t, err, provider.CodeConflict)
	request.Session, request.Owner = "s1", "somebody else"
	_, err = p.Attach(t.Context(), request)
	wantCode(t, err, provider.CodeConflict)
	request = attachRequest("s1")
	request.SandboxID = "nosuch"
	_, err = p.Attach(t.Context(), request)
	wantCode(t, err, provider.CodeNotFound)
}
