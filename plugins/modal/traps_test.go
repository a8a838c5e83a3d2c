package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/modal/sim"
	"github.com/berth-dev/berth/shared/provider"
)

func TestAnEmptyMapOfTunnelsIsNotBelieved(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, func(c *Config) { c.Public = true })
	sandbox := cloudtest.Create(t, d, "s1")
	cloud.HideTunnels(2)
	endpoints := cloudtest.Start(t, d, sandbox, cloudtest.ActionServer())
	if !strings.HasPrefix(endpoints.Server.URL, "https://") || len(endpoints.Server.Headers) != 0 {
		t.Errorf("%+v", endpoints)
	}
	cloudtest.AwaitAlive(t, d, sandbox, endpoints) // over TLS
	cloud.HideTunnels(100)
	_, err := d.StartServer(t.Context(), cloudtest.StartRequest(sandbox, cloudtest.ActionServer()))
	if e := provider.AsError(err); e == nil || e.Reason != "NO_TUNNEL" || e.SandboxID != sandbox.ID {
		t.Errorf("%+v", e)
	}
}

func TestAPortThatHasNoTunnelGetsNoneLater(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, func(c *Config) { c.Public = true })
	sandbox := cloudtest.Create(t, d, "s1")
	if there := cloud.Sandboxes(); !slices.Equal(there[0].Ports, []int{8000}) {
		t.Errorf("%+v", there)
	}
	server := cloudtest.ActionServer()
	server.Port = 8001
	if _, err := d.StartServer(t.Context(), cloudtest.StartRequest(sandbox, server)); provider.CodeOf(err) != provider.CodeState {
		t.Errorf("%v", err)
	}
}

func TestASandboxNeverLooksLikeOneOfTheOldKind(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := cloudtest.Create(t, d, "s1")
	cloudtest.Start(t, d, sandbox, cloudtest.ActionServer())
	if _, err := d.List(t.Context(), provider.ListRequest{Owner: cloudtest.Owner}); err != nil {
		t.Fatal(err)
	}
	old := []string{"SandboxCreate", "SandboxWait", "SandboxTerminate", "SandboxTagsGet", "SandboxGetTaskId", "SandboxList"}
	if n := cloud.Traffic.Count(old...); n != 0 || len(sandbox.ID) == len("sb-")+22 {
		t.Errorf("%d calls of the old kind, id %s", n, sandbox.ID)
	}
	// An id of the old kind is unknown, and so gone.
	if err := d.Destroy(t.Context(), provider.SandboxRef{Owner: cloudtest.Owner, SandboxID: "sb-nGEijt9WbBMlGrsPH9FOaC"}); err != nil {
		t.Error(err)
	}
}

func TestTheImageIsNotSharedBetweenCreates(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Build: 20 * time.Millisecond})
	d := newProvider(t, cloud, nil)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() { cloudtest.Create(t, d, fmt.Sprint("s", i)) }) // the race detector says the rest
	}
	group.Wait()
	if there := cloud.Sandboxes(); len(there) != 4 {
		t.Errorf("%d sandboxes", len(there))
	}
}

func TestAnImageThatCannotBeBuiltSaysWhyAndCreatesNothing(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Build: 20 * time.Millisecond})
	d := newProvider(t, cloud, nil)
	cloud.FailBuild("pull access denied for no/such")
	_, err := d.Create(t.Context(), cloudtest.CreateRequest("s1"))
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeFailed || !strings.Contains(e.Message, "pull access denied") {
		t.Errorf("%+v", e)
	}
	if there := cloud.Sandboxes(); len(there) != 0 {
		t.Errorf("%+v", there)
	}
}

func TestNothingIsLookedForAfterABuildThatWasCancelled(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Build: time.Hour})
	d := newProvider(t, cloud, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	waiting.Go(func() {
		cloudtest.Eventually(t, "the image is being built", func() bool { return cloud.Traffic.Count("ImageGetOrCreate") > 0 })
		cancel()
	})
	_, err := d.Create(ctx, cloudtest.CreateRequest("s1"))
	waiting.Wait()
	if provider.CodeOf(err) != provider.CodeCanceled {
		t.Errorf("%v", err)
	}
	if n := cloud.Traffic.Count("SandboxGetFromNameV2", "SandboxListV2", "SandboxCreateV2"); n != 0 {
		t.Errorf("%d calls about a sandbox that was never asked for", n)
	}
}

func TestANameHeldByASandboxThatHasEndedIsWaitedFor(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{NameHeld: time.Hour})
	d := newProvider(t, cloud, nil)
	first := cloudtest.Create(t, d, "s1")
	if err := d.Destroy(t.Context(), cloudtest.Ref(first)); err != nil {
		t.Fatal(err)
	}
	var release sync.WaitGroup
	release.Go(func() {
		cloudtest.Eventually(t, "a create was refused and made again", func() bool { return cloud.Traffic.Count("SandboxCreateV2") >= 3 })
		cloud.Set(func(o *sim.Options) { o.NameHeld = 0 })
	})
	second := cloudtest.Create(t, d, "s1")
	release.Wait()
	if second.ID == first.ID || second.Origin != provider.OriginCreated || cloud.Traffic.Count("SandboxCreateV2") < 3 {
		t.Errorf("%s, then %s (%s)", first.ID, second.ID, second.Origin)
	}
	cloud.Set(func(o *sim.Options) { o.NameHeld = time.Hour })
	if err := d.Destroy(t.Context(), cloudtest.Ref(second)); err != nil {
		t.Fatal(err)
	}
	times := timesFor(cloudtest.Brisk)
	times.Taken = 100 * time.Millisecond
	if _, err := openFor(t, cloud, times, hclog.NewNullLogger(), nil).Create(t.Context(), cloudtest.CreateRequest("s1")); provider.CodeOf(err) != provider.CodeState {
		t.Errorf("%v", err)
	}
}

func TestTheSDKsOwnRepetitionOfACreateIsRecognizedAsOurs(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	cloud.Traffic.Fail(simcloud.Fault{Operation: "SandboxCreateV2", Count: 1, Drop: true, After: true})
	if sandbox := cloudtest.Create(t, d, "s1"); sandbox.Origin != provider.OriginCreated {
		t.Errorf("%s", sandbox.Origin)
	}
	calls := cloud.Traffic.Calls("SandboxCreateV2")
	if len(calls) != 2 || calls[0].Headers["X-Idempotency-Key"][0] != calls[1].Headers["X-Idempotency-Key"][0] {
		t.Errorf("%d calls", len(calls))
	}
	if there := cloud.Sandboxes(); len(there) != 1 {
		t.Errorf("%+v", there)
	}
}

func TestACreateThatTheCloudThrottlesForEverEndsInTime(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	times := timesFor(cloudtest.Brisk)
	times.throttle = 500 * time.Millisecond
	d := openFor(t, cloud, times, hclog.NewNullLogger(), nil)
	cloud.Traffic.Fail(simcloud.Fault{
		Operation: "SandboxCreateV2", Code: codes.ResourceExhausted, Message: "slow down",
		Details: []proto.Message{pb.RPCRetryPolicy_builder{RetryAfterSecs: 60}.Build()},
	})
	began := time.Now()
	_, err := d.Create(t.Context(), cloudtest.CreateRequest("s1"))
	e := provider.AsError(err)
	if e == nil || e.Reason != provider.ReasonRateLimit || e.RetryAfter != time.Minute || time.Since(began) > 20*time.Second {
		t.Errorf("after %s: %+v", time.Since(began), e)
	}
}

func TestAnIDIsNotTakenForASandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	unknown := provider.Sandbox{ID: "sb-01ARZ3NDEKTSV4RRFFQ69G5FAV", Owner: cloudtest.Owner, Session: "s1"} // the SDK makes a handle of any id
	if _, err := d.StartServer(t.Context(), cloudtest.StartRequest(unknown, cloudtest.ActionServer())); provider.AsError(err) == nil || provider.AsError(err).Reason != provider.ReasonGone {
		t.Errorf("%v", err)
	}
	if err := d.Destroy(t.Context(), cloudtest.Ref(unknown)); err != nil {
		t.Error(err)
	}
}

func TestAMissingEnvironmentIsNotAMissingSandboxToCreate(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, func(c *Config) { c.Environment = "nowhere" })
	_, err := d.Create(t.Context(), cloudtest.CreateRequest("s1"))
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeInvalid {
		t.Errorf("%+v", e)
	}
}

// It changes the environment of the process, so it does not run at the same time as others.
func TestAUsersProfileAndTheSDKsOtherSettingsDoNotGetIn(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "modal.toml")
	if err := os.WriteFile(profile, []byte("this is not [toml"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"MODAL_CONFIG_PATH": profile, "MODAL_PROFILE": "other", "MODAL_LOGLEVEL": "nonsense", "MODAL_SANDBOX_V2": "0",
		"MODAL_TOKEN_ID": "ak-other", "MODAL_TOKEN_SECRET": "as-other", "MODAL_OAUTH_CLIENT_ID": "oc-other", "MODAL_ENVIRONMENT": "nowhere",
	} {
		t.Setenv(name, value)
	}
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	cloudtest.Create(t, d, "s1")
	if cloud.Traffic.Count("SandboxCreateV2") != 1 {
		t.Error("a sandbox of the old kind was made")
	}
}

func TestTheWaysThatAreRememberedAreBounded(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	for i := range mostKnown + 50 {
		d.api.handle(t.Context(), fmt.Sprintf("sb-%026d", i))
	}
	if len(d.api.known) > mostKnown {
		t.Errorf("%d ways are remembered", len(d.api.known))
	}
}

func TestALifetimeIsWholeSecondsADayAtMost(t *testing.T) {
	t.Parallel()
	for given, want := range map[time.Duration]time.Duration{
		1: time.Second, 1500 * time.Millisecond: 2 * time.Second, 48 * time.Hour: 24 * time.Hour,
	} {
		if got := life(given); got != want {
			t.Errorf("%s: %s, want %s", given, got, want)
		}
	}
}

func TestWhatTheConfigurationAsksForIsSent(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Environments: []string{"staging"}})
	d := newProvider(t, cloud, func(c *Config) {
		c.Environment, c.App, c.Image, c.Setup = "staging", "other", "python:3.13-slim", []string{"RUN a", "RUN b"}
		c.Memory, c.CPU, c.IdleAfter, c.BlockNetwork, c.Regions = 2048, 1.5, time.Minute, true, []string{"eu-west"}
	})
	cloudtest.Create(t, d, "s1")
	there := cloud.Sandboxes()
	if len(there) != 1 || there[0].Memory != 2048 || there[0].Idle != time.Minute || there[0].Timeout != time.Hour || !there[0].Blocked || len(there[0].Ports) != 0 {
		t.Errorf("%+v", there)
	}
	text := ""
	for _, call := range cloud.Traffic.Calls("AppGetOrCreate", "ImageGetOrCreate", "SandboxCreateV2") {
		text += call.Body
	}
	for _, want := range []string{"staging", "other", "FROM python:3.13-slim", "RUN a", "RUN b", "1500", "eu-west"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s was not sent", want)
		}
	}
	if _, err := newProvider(t, cloud, nil).Attach(t.Context(), cloudtest.AttachRequest("s1")); provider.CodeOf(err) != provider.CodeNotFound {
		t.Errorf("another app and environment: %v", err)
	}
}

func TestASandboxWithoutAWorkerThatAnswersIsWaitedForAndKept(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	times := timesFor(cloudtest.Brisk)
	times.LookServer = 300 * time.Millisecond
	d := openFor(t, cloud, times, hclog.NewNullLogger(), nil)
	sandbox := cloudtest.Create(t, d, "s1")
	endpoints := cloudtest.Start(t, d, sandbox, cloudtest.Shell("sleep 1000"))
	cloud.Break(sandbox.ID)
	for range 3 {
		if result := cloudtest.Ping(t, d, sandbox, endpoints); result.Status != provider.PingNotYet {
			t.Errorf("%+v", result)
		}
	}
	if there := cloud.Sandboxes(); len(there) != 1 {
		t.Errorf("there are %d", len(there))
	}
}

func TestAConnectTokenOpensOnePort(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	server := cloudtest.ActionServer()
	server.ExtraPorts = map[string]int{"vnc": 9100}
	endpoints := cloudtest.Start(t, d, cloudtest.Create(t, d, "s1"), server)
	if token := endpoints.Server.Headers[tokenHeader]; token == "" || endpoints.Extra["vnc"].Headers[tokenHeader] == token {
		t.Error("one token opens both ports")
	}
	if there := cloud.Sandboxes(); len(there[0].Ports) != 0 {
		t.Errorf("tunnels to %v", there[0].Ports)
	}
}

func TestAuthorizationAndCookiesAreTheServersOwn(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("the server of this test is written in Python")
	}
	d := newProvider(t, newCloud(t, sim.Options{}), nil)
	sandbox := cloudtest.Create(t, d, "s1")
	answers := `import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        right = self.headers["Authorization"] == "Bearer the-servers-own-key" and "theme=dark" == self.headers["Cookie"]
        self.send_response(200 if right else 401); self.end_headers(); self.wfile.write(b"""{"status": "ok"}""")
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()`
	endpoints := cloudtest.Start(t, d, sandbox, provider.Server{Command: []string{"python3", "-c", answers}, Port: 8000})
	keyed := maps.Clone(endpoints.Server.Headers)
	keyed["Authorization"] = "Bearer the-servers-own-key"
	keyed["Cookie"] += "; theme=dark"
	cloudtest.AwaitAlive(t, d, sandbox, provider.Endpoints{Server: provider.Endpoint{URL: endpoints.Server.URL, Headers: keyed}})
}
