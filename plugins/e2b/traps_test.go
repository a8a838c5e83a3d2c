package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/plugins/e2b/envd"
	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// The traps of E2B's API that others have walked into. Each test is named after one.

func TestTrapTheDeadlineOfTheStartStreamKillsTheServer(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := cloudtest.Create(t, p, "s1")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	endpoints, err := p.StartServer(ctx, cloudtest.StartRequest(sandbox, cloudtest.ActionServer()))
	if err != nil {
		t.Fatalf("StartServer: %v", err)
	}
	for _, call := range cloud.Traffic.Calls("envd.Start") { // pings may look at the process with a deadline
		if timeout := call.Headers["Connect-Timeout-Ms"]; timeout != nil {
			t.Errorf("the start carries Connect-Timeout-Ms: %v", timeout)
		}
	}
	cloudtest.AwaitAlive(t, p, sandbox, endpoints)
	<-ctx.Done() // the deadline of the call has passed, and its stream is long closed
	if result := cloudtest.Ping(t, p, sandbox, endpoints); result.Status != provider.PingAlive {
		t.Errorf("after the deadline of the start: %+v", result)
	}
}

func TestTrapTheSimulatorDoesKillAtThatDeadline(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := cloudtest.Create(t, p, "s1")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	startRaw(ctx, t, p, sandbox.ID, "echo $$ >/home/user/pid; exec sleep 1000")
	cloudtest.Eventually(t, "the process is killed", func() bool {
		return cloudtest.Inside(t, cloud.Box(sandbox.ID), `test -s /home/user/pid && test ! -e /proc/$(cat /home/user/pid) && echo gone`) == "gone"
	})
}

// startRaw starts a shell command through envd, without the plugin's care. then, which may be left out, reads its stream.
func startRaw(ctx context.Context, t *testing.T, p *E2B, id, command string, then ...func(*connect.ServerStreamForClient[envd.StartResponse])) {
	t.Helper()
	to, _, err := p.cluster.api.connect(t.Context(), sandbox{ID: id}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	client := connect.NewClient[envd.StartRequest, envd.StartResponse](http.DefaultClient, p.cluster.envdURL(to)+envd.ProcedureStart, connect.WithProtoJSON())
	request := connect.NewRequest(&envd.StartRequest{
		Process: &envd.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", command}}, Tag: proto.String("berth-test"), Stdin: proto.Bool(false),
	})
	p.cluster.identify(request.Header(), to)
	stream, err := client.CallServerStream(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatalf("no start event: %v", stream.Err())
	}
	for _, then := range then {
		then(stream)
	}
	t.Cleanup(func() { stream.Close(); http.DefaultClient.CloseIdleConnections() })
}

// A tag finds no process once there is another, and what ran before a pause is not listed after it.
func TestTrapEnvdsListOfProcessesIsNotReliedOn(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox, _ := cloudtest.Up(t, p, "s1")
	startRaw(t.Context(), t, p, sandbox.ID, "exec sleep 1000")
	if err := p.Suspend(t.Context(), cloudtest.Ref(sandbox)); err != nil {
		t.Fatal(err)
	}
	cloudtest.Attach(t, p, "s1")
	for range 2 {
		cloudtest.Start(t, newProvider(t, cloud), sandbox, cloudtest.ActionServer())
	}
	if names := cloudtest.Inside(t, cloud.Box(sandbox.ID), "cat /proc/[0-9]*/comm"); strings.Count(names, "berth-action-s") != 1 {
		t.Errorf("there run:\n%s", names)
	}
	if n := cloud.Traffic.Count("envd.List", "envd.Connect"); n > 0 {
		t.Errorf("envd was asked %d times what runs", n)
	}
}

func TestTrapTheKeepaliveIntervalIsNeverZeroWhichCrashesEnvd(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox, _ := cloudtest.Up(t, p, "s1")
	if _, err := p.Logs(t.Context(), provider.LogsRequest{SandboxRef: cloudtest.Ref(sandbox), Lines: 5}); err != nil {
		t.Fatal(err)
	}
	for _, call := range cloud.Traffic.Calls("envd.Start") {
		if got := http.Header(call.Headers).Get("Keepalive-Ping-Interval"); got != "50" {
			t.Errorf("Keepalive-Ping-Interval: %q", got)
		}
	}
}

func TestTrapWhatStartsAServerIsLoggedByE2BSoItsEnvironmentIsNotInIt(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := cloudtest.Create(t, p, "s1")
	const secret = "session-key-canary"
	server := cloudtest.ActionServer()
	server.Env["SESSION_API_KEY"], server.Env["BIG"], server.Env["EMPTY"] = secret, strings.Repeat(secret+"\n", 4000), ""
	endpoints := cloudtest.Start(t, p, sandbox, server)
	cloudtest.AwaitAlive(t, p, sandbox, endpoints)
	cloudtest.Start(t, newProvider(t, cloud), sandbox, server)
	if _, err := p.Logs(t.Context(), provider.LogsRequest{SandboxRef: cloudtest.Ref(sandbox), Lines: 100}); err != nil {
		t.Fatal(err)
	}
	endpoints.Server.Headers["X-Session-API-Key"] = secret
	if status, _ := cloudtest.Get(t, endpoints.Server, "/server_info"); status != http.StatusOK {
		t.Errorf("the server's key does not open it: %d", status)
	}
	log := cloud.EnvdLog(sandbox.ID)
	if !strings.Contains(log, "berth-action-server") {
		t.Fatal("envd logs nothing")
	}
	if strings.Contains(log, "canary") || strings.Contains(log, base64.StdEncoding.EncodeToString([]byte(secret))[:20]) {
		t.Error("the server's environment is in E2B's log")
	}
	const everywhere = `grep -rlsa "[s]ession-key-canary" /home ~root /tmp; cat /proc/[0-9]*/cmdline | grep -ao "[s]ession-key-canary"; ps ax | grep '[ ]launch '`
	if found := cloudtest.Inside(t, cloud.Box(sandbox.ID), everywhere); found != "" {
		t.Errorf("left in the sandbox: %s", found)
	}
}

func TestAServerWhoseEnvironmentDoesNotArriveIsStartedAgainAndNothingWaitsForIt(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := cloudtest.Create(t, p, "s1")
	cloud.Traffic.Fail(simcloud.Fault{Operation: "envd.StreamInput", Count: 1, Drop: true})
	cloud.Traffic.Fail(simcloud.Fault{Operation: "envd.StreamInput", Count: 1, Drop: true, After: true})
	cloudtest.AwaitAlive(t, p, sandbox, cloudtest.Start(t, p, sandbox, cloudtest.ActionServer()))
	if n := cloud.Traffic.Count("envd.StreamInput"); n != 3 && n != 2 { // the second one may have done its work before it was killed
		t.Errorf("%d tries", n)
	}
	names := cloudtest.Inside(t, cloud.Box(sandbox.ID), "cat /proc/[0-9]*/comm")
	if strings.Count(names, "berth-action-s") != 1 || strings.Contains(names, "bash") {
		t.Errorf("there run:\n%s", names)
	}
}

func TestTrapAnEnvdThatCrashedRunsCommandsAsRoot(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox, endpoints := cloudtest.Up(t, p, "s1")
	runs := func(user string) string {
		return cloudtest.Inside(t, cloud.Box(sandbox.ID), `ps -o comm= -u `+user+` | grep -c berth-action-s`)
	}
	if runs("1000") != "1" {
		t.Skip("simulated sandboxes have no users on this machine")
	}
	cloud.CrashEnvd(sandbox.ID)
	_, err := newProvider(t, cloud).StartServer(t.Context(), cloudtest.StartRequest(sandbox, cloudtest.ActionServer()))
	if e := cloudtest.WantCode(t, err, provider.CodeState); e.Retryable || !strings.Contains(e.Message, "as the user 0, its first server as 1000") {
		t.Errorf("%+v", e)
	}
	if n := runs("0"); n != "0" {
		t.Errorf("%s servers run as root", n)
	}
	cloudtest.AwaitAlive(t, p, sandbox, endpoints) // nothing happened to it
	if err := p.Suspend(t.Context(), cloudtest.Ref(sandbox)); err != nil {
		t.Fatal(err)
	}
	cloudtest.AwaitAlive(t, p, sandbox, cloudtest.Start(t, p, cloudtest.Attach(t, p, "s1"), cloudtest.ActionServer()))
	if runs("0") != "0" || runs("1000") != "1" {
		t.Error("after waking, another server runs, or none")
	}
}

func TestACommandRunsAsTheUserThatTheConfigurationNames(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	p := newProvider(t, cloud, func(c *Config, _ *times) { c.User = "root" })
	sandbox := cloudtest.Create(t, p, "s1")
	cloudtest.Start(t, p, sandbox, cloudtest.Shell(`echo $HOME $USER $LOGNAME $(id -u) $(cat /proc/self/oom_score_adj) >/tmp/who; exec sleep 1000`))
	want := cloudtest.Inside(t, cloud.Box(sandbox.ID), "echo ~root") + " root root 0 100"
	cloudtest.Eventually(t, "the server says who it is", func() bool {
		return cloudtest.Inside(t, cloud.Box(sandbox.ID), "cat /tmp/who") == want
	})
}

func TestTrapAServerOnLoopbackAloneIsReachedAfterAWhile(t *testing.T) {
	t.Parallel()
	const while = 300 * time.Millisecond
	cloud := newCloud(t, sim.Options{ForwardTime: while})
	p := newProvider(t, cloud)
	sandbox := cloudtest.Create(t, p, "s1")
	server := cloudtest.ActionServer()
	server.Command = append(server.Command, "--host", "127.0.0.1")
	began := time.Now()
	cloudtest.AwaitAlive(t, p, sandbox, cloudtest.Start(t, p, sandbox, server))
	if took := time.Since(began); took < while {
		t.Errorf("it was reached after %s", took)
	}
}

func TestAFailureOfEnvdIsToldWithoutTheCommand(t *testing.T) {
	t.Parallel()
	_, p := setup(t)
	opened, _, err := p.cluster.api.connect(t.Context(), sandbox{ID: cloudtest.Create(t, p, "s1").ID}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	start := newClient[envd.StartRequest, envd.StartResponse](p.cluster, opened, envd.ProcedureStart)
	for complaint, process := range map[string]*envd.ProcessConfig{
		"argument list too long":        {Cmd: "/bin/echo", Args: []string{strings.Repeat("x", 200_000)}},
		"cwd '/nowhere' does not exist": {Cmd: "/bin/echo", Cwd: proto.String("/nowhere")},
	} {
		request := connect.NewRequest(&envd.StartRequest{Process: process})
		p.cluster.identify(request.Header(), opened)
		events, err := start.CallServerStream(t.Context(), request)
		if err != nil || events.Receive() {
			t.Fatalf("%s: %v", complaint, err)
		}
		e := cloudtest.WantCode(t, p.cluster.envdFailure(t.Context(), opened, events.Err()), provider.CodeInvalid)
		if e.Retryable || !strings.HasSuffix(e.Message, complaint) || len(e.Message) > 600 {
			t.Errorf("%d bytes: %.700s", len(e.Message), e.Message)
		}
	}
}

func TestTrapAnAPIWithoutTheSecondGenerationIsUsedThroughTheFirstAndSecured(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{OnlyV1: true})
	p := newProvider(t, cloud)
	sandbox, _ := cloudtest.Up(t, p, "s1")
	if all := cloud.Sandboxes(); len(all) != 1 || !all[0].Secure || !all[0].Private {
		t.Errorf("not secured: %+v", all)
	}
	if found := cloudtest.Attach(t, newProvider(t, cloud), "s1"); found.ID != sandbox.ID {
		t.Errorf("%+v", found)
	}
	cloudtest.WantCode(t, cloudtest.Err(newProvider(t, cloud, func(c *Config, _ *times) { c.Template = "missing" }).Create(t.Context(), cloudtest.CreateRequest("s2"))), provider.CodeInvalid)
	cloudtest.Create(t, p, "s3")
	attempts := 0
	for _, call := range cloud.Traffic.Calls("create") {
		if strings.HasPrefix(call.Path, "/v2/") {
			attempts++
		}
	}
	if attempts != 2 { // one by each of the providers: the answer is remembered
		t.Errorf("the second generation was tried %d times", attempts)
	}
	for _, call := range cloud.Traffic.Calls("connect") { // the sandbox tells which generation made it
		if strings.HasPrefix(call.Path, "/v2/") {
			t.Errorf("a call was lost on %s", call.Path)
		}
	}
	cloud.Traffic.ClearCalls()
	cloudtest.Create(t, newProvider(t, cloud, func(c *Config, _ *times) { c.FirstGeneration = true }), "s4")
	if n := cloud.Traffic.Count("create"); n != 1 {
		t.Errorf("%d creates although the configuration says it", n)
	}
}

func TestTrapTheEndOfAProcessIsToldOnceAllHaveClosedItsOutput(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := cloudtest.Create(t, p, "s1")
	began := time.Now()
	startRaw(t.Context(), t, p, sandbox.ID, "sleep 0.4 & echo said", func(stream *connect.ServerStreamForClient[envd.StartResponse]) {
		for stream.Receive() {
			if stream.Msg().GetEvent().GetEnd() != nil && time.Since(began) < 400*time.Millisecond {
				t.Errorf("the end was told after %s", time.Since(began))
			}
		}
	})
	// A server leaves children that hold what it was given: StartServer waits for none of them.
	began = time.Now()
	cloudtest.Start(t, p, sandbox, cloudtest.Shell("sleep 1000 & exec sleep 1000"))
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("starting took %s", took)
	}
	if n := cloud.Traffic.Count("envd.Connect"); n > 0 {
		t.Errorf("%d connects", n)
	}
}

func TestWhatPassesAtTheWayToASandboxIsWaitedFor(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := cloudtest.Create(t, p, "s1")
	for _, fault := range []simcloud.Fault{ // too many connections, and an envd that was just exchanged for a newer one
		{Status: 429, Body: `{"sandboxId":"` + sandbox.ID + `","message":"Too many connections to the sandbox","connectionLimit":100,"code":429}`},
		{Status: 401, Body: `{"code":401,"message":"envd not initialized"}`},
		{Status: 409, Body: `{"sandboxId":"` + sandbox.ID + `","message":"The sandbox is still transitioning. Try again in a moment.","code":409}`},
	} {
		fault.Operation, fault.Count = "envd.Start", 2
		cloud.Traffic.Fail(fault)
	}
	endpoints := cloudtest.Start(t, p, sandbox, cloudtest.ActionServer())
	busy := cloud.Traffic.Fail(simcloud.Fault{Operation: "port", Status: 429, Body: `{"message":"Too many connections to the sandbox","connectionLimit":100}`})
	if result := cloudtest.Ping(t, p, sandbox, endpoints); result.Status != provider.PingNotYet {
		t.Errorf("%+v", result)
	}
	busy.Remove()
	cloudtest.AwaitAlive(t, p, sandbox, endpoints)
}

func TestTrapTheSecondGenerationIsUsedWhereItIs(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	cloudtest.Create(t, p, "s1")
	cloudtest.Attach(t, p, "s1")
	for _, call := range cloud.Traffic.Calls("create", "connect") {
		if !strings.HasPrefix(call.Path, "/v2/") {
			t.Errorf("%s %s is deprecated", call.Method, call.Path)
		}
	}
}

func TestTrapTheTrafficTokenComesOnlyFromConnect(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox, endpoints := cloudtest.Up(t, p, "s1")
	token := endpoints.Server.Headers["e2b-traffic-access-token"]
	if found := cloudtest.Attach(t, newProvider(t, cloud), "s1"); found.Endpoints.Server.Headers["e2b-traffic-access-token"] != token || token == "" {
		t.Errorf("attached without the token: %+v", found.Endpoints)
	}
	// A process that neither created nor attached has to ask for it too, and does not change the lifetime.
	before := cloud.Sandboxes()[0].EndAt
	if again := cloudtest.Start(t, newProvider(t, cloud), sandbox, cloudtest.ActionServer()); again.Server.Headers["e2b-traffic-access-token"] != token {
		t.Errorf("started without the token: %+v", again)
	}
	if after := cloud.Sandboxes()[0].EndAt; !after.Equal(before) {
		t.Errorf("the end of its life moved from %s to %s", before, after)
	}
}

func TestTrapConnectSetsTheLifetimeBackToFiveMinutesUnlessToldOtherwise(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	sandbox := cloudtest.Create(t, p, "s1")
	if err := cloud.Pause(sandbox.ID); err != nil {
		t.Fatal(err)
	}
	request := cloudtest.AttachRequest("s1")
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
}

func TestTrapMetadataFiltersAreEncodedThreeTimes(t *testing.T) {
	t.Parallel()
	_, p := setup(t)
	const strange = "a&b=c 1+1 100% ü"
	request := cloudtest.CreateRequest("s1")
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

func TestTrapASandboxInTransitionIsWaitedFor(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	p := newProvider(t, cloud)
	sandbox := cloudtest.Create(t, p, "s1")
	fault := cloud.Traffic.Fail(simcloud.Fault{
		Operation: "connect", Count: 2, Status: http.StatusConflict, Body: `{"code":409,"message":"Sandbox is in transition"}`,
		Headers: map[string]string{"Content-Type": "application/json"},
	})
	if found := cloudtest.Attach(t, p, "s1"); found.ID != sandbox.ID || fault.Fired() != 2 {
		t.Errorf("%+v after %d refusals", found, fault.Fired())
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
	sandbox := cloudtest.Create(t, p, "s1")
	endpoint := cloudtest.Attach(t, p, "s1").Endpoints.Server
	if want := "https://8000-" + sandbox.ID + ".eu.example.dev"; endpoint.URL != want {
		t.Errorf("URL %s, want %s", endpoint.URL, want)
	}
	if _, has := endpoint.Headers["E2b-Sandbox-Id"]; has {
		t.Error("the host name says which sandbox is meant, and so does a header")
	}
}

func TestTrapAnOldEnvdNeedsToBeToldTheUser(t *testing.T) {
	t.Parallel()
	p := reaching(t, Config{})
	for version, want := range map[string]string{"0.3.9": "Basic dXNlcjo=", "v0.4.0": "", "0.6.13": "", "": ""} {
		header := http.Header{}
		p.cluster.identify(header, sandbox{ID: "i1", access: access{EnvdVersion: version}})
		if got := header.Get("Authorization"); got != want {
			t.Errorf("envd %q: Authorization %q, want %q", version, got, want)
		}
	}
}

func TestTrapAUserThatIsNotThereIsAMistakeInTheConfiguration(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	p := newProvider(t, cloud, func(c *Config, _ *times) { c.User = "nobody-here" })
	sandbox := cloudtest.Create(t, p, "s1")
	cloudtest.WantCode(t, cloudtest.Err(p.StartServer(t.Context(), cloudtest.StartRequest(sandbox, cloudtest.ActionServer()))), provider.CodeInvalid)
}

func TestTrapOnlyTheNewestSandboxesAreOnTheFirstPage(t *testing.T) {
	t.Parallel()
	cloud, p := setup(t)
	first := cloudtest.Create(t, p, "s1")
	for range 120 { // of the same owner, so that the owner's filter does not help
		if _, err := cloud.Seed(cloudtest.CreateRequest("other").AllLabels()); err != nil {
			t.Fatal(err)
		}
	}
	if listed, err := p.List(t.Context(), provider.ListRequest{Owner: cloudtest.Owner}); err != nil || len(listed) != 121 {
		t.Errorf("%d listed, %v", len(listed), err)
	}
	if found := cloudtest.Attach(t, newProvider(t, cloud), "s1"); found.ID != first.ID {
		t.Errorf("%+v", found)
	}
}

func TestTrapASandboxIsListedLateAndAttachedByItsIDBefore(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{ListLag: time.Hour})
	sandbox := cloudtest.Create(t, newProvider(t, cloud), "s1")
	p, request := newProvider(t, cloud), cloudtest.AttachRequest("s1")
	cloudtest.WantCode(t, cloudtest.Err(p.Attach(t.Context(), request)), provider.CodeNotFound)
	request.SandboxID = sandbox.ID
	found, err := p.Attach(t.Context(), request)
	if err != nil || found.ID != sandbox.ID || found.Origin != provider.OriginAttached {
		t.Errorf("%+v, %v", found, err)
	}
}

func TestTrapACreateWhoseAnswerIsLostAndIsListedLateDoesNotMakeASecondSandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{ListLag: 400 * time.Millisecond}) // longer than the plugin looks
	cloud.Traffic.Fail(simcloud.Fault{Operation: "create", Count: 1, Drop: true, After: true})
	sandbox := cloudtest.Create(t, newProvider(t, cloud), "s1")
	if left := cloud.Sandboxes(); len(left) != 1 || left[0].ID != sandbox.ID || cloud.Traffic.Count("create") != 2 {
		t.Errorf("left %+v after %d creates", left, cloud.Traffic.Count("create"))
	}
}

func TestTrapTheWireNamesOfACreateAreE2Bs(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	p := newProvider(t, cloud, func(c *Config, _ *times) { c.Internet = false })
	cloudtest.Create(t, p, "s1")
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

func TestAPublicSandboxHasNoToken(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	_, open := cloudtest.Up(t, newProvider(t, cloud, func(c *Config, _ *times) { c.Public = true }), "public")
	if status, _ := cloudtest.Get(t, open.Server, "/alive"); status != http.StatusOK {
		t.Errorf("it answers %d", status)
	}
	if _, has := open.Server.Headers["e2b-traffic-access-token"]; has {
		t.Error("it has a token")
	}
}

func TestASandboxThatTurnsOutPublicIsRefusedAndRemoved(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{NoTrafficTokens: true})
	_, err := newProvider(t, cloud).Create(t.Context(), cloudtest.CreateRequest("s1"))
	cloudtest.WantCode(t, err, provider.CodeFailed)
	if left := cloud.Sandboxes(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

func TestRenewMovesTheEndAndSaysWhatE2BMadeOfIt(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{MaxLifetime: 2 * time.Hour})
	p := newProvider(t, cloud)
	sandbox := cloudtest.Create(t, p, "s1")
	for asked, want := range map[time.Duration]time.Duration{10 * time.Minute: 10 * time.Minute, 5 * time.Hour: 2 * time.Hour} {
		end, err := p.Renew(t.Context(), provider.RenewRequest{SandboxRef: cloudtest.Ref(sandbox), Lifetime: asked})
		if err != nil || time.Until(end) > want || time.Until(end) < want-time.Minute {
			t.Errorf("Renew by %s: ends in %s, %v", asked, time.Until(end), err)
		}
	}
	if err := p.Suspend(t.Context(), cloudtest.Ref(sandbox)); err != nil {
		t.Fatal(err)
	}
	cloudtest.WantCode(t, cloudtest.Err(p.Renew(t.Context(), provider.RenewRequest{SandboxRef: cloudtest.Ref(sandbox), Lifetime: time.Hour})), provider.CodeState)
}

func TestALifetimeEndsTheSandboxOrPausesIt(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	kill, pause := newProvider(t, cloud), newProvider(t, cloud, func(c *Config, _ *times) { c.OnTimeout = "pause" })
	for session, p := range map[string]*E2B{"ends": kill, "pauses": pause} {
		request := cloudtest.CreateRequest(session)
		request.Lifetime = time.Second
		if _, err := p.Create(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	cloudtest.Eventually(t, "one is gone and the other paused", func() bool {
		left := cloud.Sandboxes()
		return len(left) == 1 && left[0].State == "paused" && left[0].Metadata[provider.LabelSession] == "pauses"
	})
	cloudtest.WantCode(t, cloudtest.Err(kill.Attach(t.Context(), cloudtest.AttachRequest("ends"))), provider.CodeNotFound)
	if sandbox := cloudtest.Attach(t, pause, "pauses"); sandbox.Origin != provider.OriginWoken {
		t.Errorf("%+v", sandbox)
	}
}

func TestAQuotaAndAMissingTemplateAreToldApartAndLeaveNothing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{MaxRunning: 1})
	p := newProvider(t, cloud)
	sandbox := cloudtest.Create(t, p, "s1")
	if e := cloudtest.WantCode(t, cloudtest.Err(p.Create(t.Context(), cloudtest.CreateRequest("s2"))), provider.CodeExhausted); e.Reason != provider.ReasonQuota {
		t.Errorf("reason %q", e.Reason)
	}
	missing := newProvider(t, cloud, func(c *Config, _ *times) { c.Template = "missing-template" })
	e := cloudtest.WantCode(t, cloudtest.Err(missing.Create(t.Context(), cloudtest.CreateRequest("s3"))), provider.CodeInvalid)
	if !strings.Contains(e.Message, "missing-template") {
		t.Errorf("message: %v", e)
	}
	if left := cloud.Sandboxes(); len(left) != 1 || left[0].ID != sandbox.ID {
		t.Errorf("left: %+v", left)
	}
}

func TestAnEnvdThatIsTooOldIsRefusedAndItsSandboxRemoved(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{EnvdVersion: "v0.0.9"})
	cloudtest.WantCode(t, cloudtest.Err(newProvider(t, cloud).Create(t.Context(), cloudtest.CreateRequest("s1"))), provider.CodeFailed)
	if left := cloud.Sandboxes(); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}

// reaching returns the plugin with a configuration that names servers of a test's own.
func reaching(t *testing.T, config Config) *E2B {
	t.Helper()
	config.APIKey, config.Domain, config.Template = canary, "e2b.app", "base"
	p := newE2B(config, hclog.NewNullLogger(), timesFor(cloudtest.Brisk))
	t.Cleanup(func() { p.Close() })
	return p
}

// serve starts a server that lives as long as the test, and returns its URL.
func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

// answering returns the plugin with a control API that always answers this.
func answering(t *testing.T, handler http.HandlerFunc) *E2B {
	t.Helper()
	return reaching(t, Config{APIURL: serve(t, handler)})
}

func TestTrapARedirectDoesNotCarryTheAPIKeyAway(t *testing.T) {
	t.Parallel()
	elsewhere := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s was redirected", r.Method) })
	p := answering(t, http.RedirectHandler(elsewhere, http.StatusTemporaryRedirect).ServeHTTP)
	cloudtest.WantCode(t, cloudtest.Err(p.cluster.api.get(t.Context(), "i1")), provider.CodeUnreachable)
	cloudtest.WantCode(t, cloudtest.Err(p.cluster.api.create(t.Context(), newSandbox{}, "key")), provider.CodeUnreachable)
}

func TestACallEndsWithItsContextAndSaysWhy(t *testing.T) {
	t.Parallel()
	p := answering(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	get := func(ctx context.Context) error { return cloudtest.Err(p.cluster.api.get(ctx, "i1")) }
	cloudtest.WantCode(t, get(cloudtest.Within(t, 50*time.Millisecond)), provider.CodeTimeout)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	cloudtest.WantCode(t, get(ctx), provider.CodeCanceled)
	p.cluster.api.Limit = 20 * time.Millisecond
	if e := cloudtest.WantCode(t, get(t.Context()), provider.CodeUnreachable); !strings.Contains(e.Message, "no answer within 20ms") {
		t.Errorf("message: %v", e)
	}
}

func TestAnUnreachableAPIIsNotTakenForAMissingSandbox(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(nil)
	server.Close()
	p := reaching(t, Config{APIURL: server.URL})
	cloudtest.WantCode(t, cloudtest.Err(p.Attach(t.Context(), cloudtest.AttachRequest("s1"))), provider.CodeUnreachable)
	cloudtest.WantCode(t, p.Destroy(t.Context(), provider.SandboxRef{Owner: cloudtest.Owner, SandboxID: "i1"}), provider.CodeUnreachable)
}

func TestAListingThatDoesNotEndIsGivenUp(t *testing.T) {
	t.Parallel()
	p := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Next-Token", "again")
		fmt.Fprint(w, "[]")
	})
	_, err := p.List(t.Context(), provider.ListRequest{Owner: cloudtest.Owner})
	cloudtest.WantCode(t, err, provider.CodeUnreachable)
}

func TestWhatIsNoSandboxIDIsNotSentAnywhere(t *testing.T) {
	t.Parallel()
	p := answering(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s", r.Method, r.URL) })
	for _, id := range []string{"", "../teams", "I1", "i1.evil.example", "i1/x"} {
		bad := provider.Sandbox{Owner: cloudtest.Owner, ID: id}
		cloudtest.WantCode(t, p.Destroy(t.Context(), cloudtest.Ref(bad)), provider.CodeInvalid)
		cloudtest.WantCode(t, cloudtest.Err(p.StartServer(t.Context(), cloudtest.StartRequest(bad, cloudtest.ActionServer()))), provider.CodeInvalid)
	}
}

func TestTheAPIIsFoundInTheDomain(t *testing.T) {
	t.Parallel()
	p, err := open(t.Context(), Config{APIKey: canary, Domain: "e2b.example"}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got := p.cluster.api.Base; got != "https://api.e2b.example" {
		t.Errorf("it is at %s", got)
	}
}

// frame is a message of a stream as envd sends it.
func frame(flags byte, message string) string {
	return string(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(message)))) + message
}

// endOfStream marks the frame that ends a stream.
const endOfStream = 2

// runScript runs a script in a sandbox whose envd always answers this.
func runScript(t *testing.T, handler http.HandlerFunc) (string, error) {
	t.Helper()
	p := reaching(t, Config{SandboxURL: serve(t, handler)})
	return p.cluster.Run(t.Context(), sandbox{ID: "i1", access: access{EnvdToken: "envd-token"}}, cloud.Script{})
}

func TestTrapAnExitCodeOfZeroIsLeftOutOnTheWire(t *testing.T) {
	t.Parallel()
	for end, code := range map[string]provider.Code{
		`{"exited":true,"status":"exit status 0"}`:               provider.CodeUnreachable, // a script that succeeds prints an end
		`{"exitCode":1,"exited":true,"status":"exit status 1"}`:  "",
		`{"exitCode":-1,"exited":false,"status":"signal: kill"}`: "",
	} {
		output, err := runScript(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/connect+json")
			fmt.Fprint(w, frame(0, `{"event":{"start":{"pid":7}}}`), frame(0, `{"event":{"data":{"stdout":"ZG9uZQ=="}}}`),
				frame(0, `{"event":{"end":`+end+`}}`), frame(endOfStream, `{}`))
		})
		if provider.CodeOf(err) != code || err == nil && output != "done" {
			t.Errorf("%s: %q, %v", end, output, err)
		}
	}
}

func TestFailuresOfEnvdAreClassified(t *testing.T) {
	t.Parallel()
	const command = "exec: sh -c a command that is long "
	for name, test := range map[string]struct {
		status    int
		headers   map[string]string
		body      string
		code      provider.Code
		retryable bool
		text      string // the end of the message
	}{
		"wrong token":        {status: 401, body: `{"code":401,"message":"unauthorized access"}`, code: provider.CodeDenied, text: "unauthorized access"},
		"exchanged":          {status: 401, body: `{"code":401,"message":"not initialized"}`, code: provider.CodeUnreachable, retryable: true},
		"no such user":       {status: 401, body: `{"code":"unauthenticated","message":"invalid username: 'x'"}`, code: provider.CodeInvalid, text: "'x'"},
		"paused or gone":     {status: 502, body: `{"sandboxId":"i1","message":"The sandbox was not found","code":502}`, code: provider.CodeNotFound},
		"envd down":          {status: 502, body: `{"sandboxId":"i1","message":"The sandbox is running but port is not open"}`, code: provider.CodeUnreachable, retryable: true},
		"between two states": {status: 409, body: `{"sandboxId":"i1","message":"still transitioning"}`, code: provider.CodeState, retryable: true},
		"too many":           {status: 429, headers: map[string]string{"Retry-After": "1"}, body: `{"message":"x"}`, code: provider.CodeExhausted, retryable: true},
		"a stream's error": {
			status: 200, body: frame(endOfStream, `{"error":{"code":"invalid_argument","message":"`+strings.Repeat(command, 100)+`: argument list too long"}}`),
			code: provider.CodeInvalid, text: "argument list too long",
		},
		"an echo of our secrets": {status: 403, body: `{"message":"` + canary + ` and envd-token"}`, code: provider.CodeDenied, text: "... and ..."},
		"cut off":                {status: 200, code: provider.CodeUnreachable, retryable: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := runScript(t, func(w http.ResponseWriter, _ *http.Request) {
				for name, value := range test.headers {
					w.Header().Set(name, value)
				}
				if test.status == http.StatusOK {
					w.Header().Set("Content-Type", "application/connect+json")
				}
				w.WriteHeader(test.status)
				fmt.Fprint(w, test.body)
			})
			e := cloudtest.WantCode(t, err, test.code)
			if e.Retryable != test.retryable || !strings.HasSuffix(e.Message, test.text) || len(e.Message) > 400 {
				t.Errorf("retryable %v: %s", e.Retryable, e.Message)
			}
		})
	}
}
