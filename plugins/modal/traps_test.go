package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/modal/sim"
	cloudkit "github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestACancelledCreateLeavesNothingThoughTheCloudGoesOn(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Create: 400 * time.Millisecond}) // and the call is held as long
	d := newProvider(t, cloud, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		cloudkit.Pause(ctx, 150*time.Millisecond)
		cancel()
	}()
	if _, err := d.Create(ctx, createRequest("s1")); provider.CodeOf(err) != provider.CodeCanceled {
		t.Errorf("%v", err)
	}
	if left := cloud.Sandboxes(); len(left) != 0 {
		t.Errorf("left: %+v", left)
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
	_, err := d.Create(ctx, createRequest("s1"))
	waiting.Wait()
	if provider.CodeOf(err) != provider.CodeCanceled {
		t.Errorf("%v", err)
	}
	if n := cloud.Traffic.Count("SandboxGetFromNameV2", "SandboxListV2", "SandboxCreateV2"); n != 0 {
		t.Errorf("%d calls about a sandbox that was never asked for", n)
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
	want := "/root/deep/er\n" + odd + "\n" + secret + "\n8000\non 8000\n/usr/bin:/bin:/nowhere\n"
	rest, found := strings.CutPrefix(log, want)
	if !found {
		t.Errorf("got %q, want it to begin with %q", log, want)
	}
	if strings.Contains(rest, "s3cr3t") {
		t.Error("the secret is in a command line")
	}
	for _, call := range cloud.Traffic.Calls("TaskExecStart") {
		var sent struct{ CommandArgs []string }
		if err := json.Unmarshal([]byte(call.Body), &sent); err != nil || len(sent.CommandArgs) == 0 || strings.Contains(strings.Join(sent.CommandArgs, " "), "s3cr3t") {
			t.Errorf("the command that was sent: %q, %v", sent.CommandArgs, err)
		}
	}
	for _, bad := range []map[string]string{{"A B": "x"}, {"1A": "x"}, {"A;id": "x"}, {"A": "\x00"}} {
		server.Env = bad
		if _, err := d.StartServer(t.Context(), startRequest(sandbox, server)); provider.CodeOf(err) != provider.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAnEmptyMapOfTunnelsIsNotBelieved(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, func(c *Config) { c.Public = true })
	sandbox := create(t, d, "s1")
	cloud.HideTunnels(2)
	endpoints := start(t, d, sandbox, pythonServer())
	if !strings.HasPrefix(endpoints.Server.URL, "https://") || len(endpoints.Server.Headers) != 0 {
		t.Errorf("%+v", endpoints)
	}
	awaitAlive(t, d, sandbox, endpoints) // over TLS
	cloud.HideTunnels(100)
	_, err := d.StartServer(t.Context(), startRequest(sandbox, pythonServer()))
	if e := provider.AsError(err); e == nil || e.Reason != "NO_TUNNEL" || e.SandboxID != sandbox.ID {
		t.Errorf("%+v", e)
	}
}

func TestAPortThatHasNoTunnelGetsNoneLater(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, func(c *Config) { c.Public = true })
	sandbox := create(t, d, "s1")
	if there := cloud.Sandboxes(); !slices.Equal(there[0].Ports, []int{8000}) {
		t.Errorf("%+v", there)
	}
	server := pythonServer()
	server.Port = 8001
	if _, err := d.StartServer(t.Context(), startRequest(sandbox, server)); provider.CodeOf(err) != provider.CodeState {
		t.Errorf("%v", err)
	}
}

func TestPortsArePrivateUnlessTheConfigurationSaysOtherwise(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	server := pythonServer()
	server.Port, server.ExtraPorts = 0, map[string]int{"vnc": 9100}
	server.Command[4] = "{port.vnc}"
	endpoints := start(t, d, sandbox, server)
	if there := cloud.Sandboxes(); len(there[0].Ports) != 0 {
		t.Errorf("tunnels to %v", there[0].Ports)
	}
	vnc := provider.Endpoints{Server: endpoints.Extra["vnc"]}
	awaitAlive(t, d, sandbox, vnc)
	if vnc.Server.Headers["Authorization"] == endpoints.Server.Headers["Authorization"] {
		t.Error("one token opens both ports")
	}
	vnc.Server.Headers = nil
	if result := ping(t, d, sandbox, vnc); result.Status != provider.PingDenied {
		t.Errorf("without a token: %+v", result)
	}
}

func TestASandboxNeverLooksLikeOneOfTheOldKind(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	start(t, d, sandbox, pythonServer())
	if _, err := d.List(t.Context(), provider.ListRequest{Owner: owner}); err != nil {
		t.Fatal(err)
	}
	old := []string{"SandboxCreate", "SandboxWait", "SandboxTerminate", "SandboxTagsGet", "SandboxGetTaskId", "SandboxList"}
	if n := cloud.Traffic.Count(old...); n != 0 || len(sandbox.ID) == len("sb-")+22 {
		t.Errorf("%d calls of the old kind, id %s", n, sandbox.ID)
	}
	// An id of the old kind is unknown, and so gone.
	if err := d.Destroy(t.Context(), provider.SandboxRef{Owner: owner, SandboxID: "sb-nGEijt9WbBMlGrsPH9FOaC"}); err != nil {
		t.Error(err)
	}
}

func TestTheImageIsNotSharedBetweenCreates(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{Build: 20 * time.Millisecond})
	d := newProvider(t, cloud, nil)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() { create(t, d, fmt.Sprint("s", i)) }) // the race detector says the rest
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
	_, err := d.Create(t.Context(), createRequest("s1"))
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeFailed || !strings.Contains(e.Message, "pull access denied") {
		t.Errorf("%+v", e)
	}
	if there := cloud.Sandboxes(); len(there) != 0 {
		t.Errorf("%+v", there)
	}
}

func TestANameHeldByASandboxThatHasEndedIsWaitedFor(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{NameHeld: time.Hour})
	d := newProvider(t, cloud, nil)
	first := create(t, d, "s1")
	if err := d.Destroy(t.Context(), ref(first)); err != nil {
		t.Fatal(err)
	}
	var release sync.WaitGroup
	release.Go(func() {
		cloudtest.Eventually(t, "a create was refused and made again", func() bool { return cloud.Traffic.Count("SandboxCreateV2") >= 3 })
		cloud.Set(func(o *sim.Options) { o.NameHeld = 0 })
	})
	second := create(t, d, "s1")
	release.Wait()
	if second.ID == first.ID || second.Origin != provider.OriginCreated || cloud.Traffic.Count("SandboxCreateV2") < 3 {
		t.Errorf("%s, then %s (%s)", first.ID, second.ID, second.Origin)
	}
	cloud.Set(func(o *sim.Options) { o.NameHeld = time.Hour })
	if err := d.Destroy(t.Context(), ref(second)); err != nil {
		t.Fatal(err)
	}
	times := testTimes
	times.Taken = 100 * time.Millisecond
	if _, err := newTimedProvider(t, cloud, times, nil).Create(t.Context(), createRequest("s1")); provider.CodeOf(err) != provider.CodeState {
		t.Errorf("%v", err)
	}
}

func TestANameHeldByAStrangerIsAConflictAndNotAdopted(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	if err := d.api.handle(t.Context(), sandbox.ID).SetTags(t.Context(), map[string]string{provider.LabelOwner: "somebody else"}, nil); err != nil {
		t.Fatal(err)
	}
	d = newProvider(t, cloud, nil) // the one that made it has no reason to doubt it
	calls := map[string]func() error{
		"Create":  func() error { _, err := d.Create(t.Context(), createRequest("s1")); return err },
		"Attach":  func() error { _, err := d.Attach(t.Context(), attachRequest("s1")); return err },
		"Start":   func() error { _, err := d.StartServer(t.Context(), startRequest(sandbox, pythonServer())); return err },
		"Destroy": func() error { return d.Destroy(t.Context(), ref(sandbox)) },
		"Logs": func() error {
			_, err := d.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 1})
			return err
		},
	}
	for name, call := range calls {
		if err := call(); provider.CodeOf(err) != provider.CodeConflict {
			t.Errorf("%s: %v", name, err)
		}
	}
	if there := cloud.Sandboxes(); len(there) != 1 {
		t.Errorf("%+v", there)
	}
}

func TestTheSDKsOwnRepetitionOfACreateIsRecognizedAsOurs(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	cloud.Traffic.Fail(simcloud.Fault{Operation: "SandboxCreateV2", Count: 1, Drop: true, After: true})
	if sandbox := create(t, d, "s1"); sandbox.Origin != provider.OriginCreated {
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
	times := testTimes
	times.throttle = 500 * time.Millisecond
	d := newTimedProvider(t, cloud, times, nil)
	cloud.Traffic.Fail(simcloud.Fault{
		Operation: "SandboxCreateV2", Code: codes.ResourceExhausted, Message: "slow down",
		Details: []proto.Message{pb.RPCRetryPolicy_builder{RetryAfterSecs: 60}.Build()},
	})
	began := time.Now()
	_, err := d.Create(t.Context(), createRequest("s1"))
	e := provider.AsError(err)
	if e == nil || e.Reason != provider.ReasonRateLimit || e.RetryAfter != time.Minute || time.Since(began) > 20*time.Second {
		t.Errorf("after %s: %+v", time.Since(began), e)
	}
}

func TestAnIDIsNotTakenForASandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	unknown := provider.Sandbox{ID: "sb-01ARZ3NDEKTSV4RRFFQ69G5FAV", Owner: owner, Session: "s1"} // the SDK makes a handle of any id
	if _, err := d.StartServer(t.Context(), startRequest(unknown, pythonServer())); provider.AsError(err) == nil || provider.AsError(err).Reason != provider.ReasonGone {
		t.Errorf("%v", err)
	}
	if err := d.Destroy(t.Context(), ref(unknown)); err != nil {
		t.Error(err)
	}
}

func TestAServerInASandboxThatHasEndedIsGoneAndNotUnreachable(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	start(t, d, sandbox, pythonServer())
	cloud.End(sandbox.ID, pb.GenericResult_GENERIC_STATUS_TIMEOUT, 0)
	for name, call := range map[string]func() error{
		"Start": func() error { _, err := d.StartServer(t.Context(), startRequest(sandbox, pythonServer())); return err },
		"Logs": func() error {
			_, err := d.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 1})
			return err
		},
		"Attach": func() error {
			request := attachRequest("s1")
			request.SandboxID = sandbox.ID
			_, err := d.Attach(t.Context(), request)
			return err
		},
	} {
		if e := provider.AsError(call()); e == nil || e.Code != provider.CodeNotFound || e.Reason != provider.ReasonGone {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestAFailedLookUpIsNotAMissingSandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	for code, want := range map[codes.Code]provider.Code{
		codes.Unavailable: provider.CodeUnreachable, codes.Unauthenticated: provider.CodeDenied, codes.PermissionDenied: provider.CodeDenied,
	} {
		fault := cloud.Traffic.Fail(simcloud.Fault{Operation: "SandboxGetFromNameV2", Code: code})
		if _, err := d.Attach(t.Context(), attachRequest("s1")); provider.CodeOf(err) != want {
			t.Errorf("%s: %v", code, err)
		}
		fault.Remove()
	}
	if cloud.Traffic.Count("SandboxCreateV2", "AppGetOrCreate") != 0 {
		t.Error("Attach creates")
	}
}

func TestAMissingEnvironmentIsNotAMissingSandboxToCreate(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, func(c *Config) { c.Environment = "nowhere" })
	_, err := d.Create(t.Context(), createRequest("s1"))
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeInvalid {
		t.Errorf("%+v", e)
	}
}

func TestAllPagesOfAListingAreRead(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	for owner, count := range map[string]int{owner: 250, "somebody else": 30} {
		if err := cloud.Plant("berth", count, map[string]string{provider.LabelOwner: owner, provider.LabelSession: "x"}); err != nil {
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
	// The SDK reads on until a page is empty, and gives ids alone: no call for each sandbox may come of that.
	if pages := cloud.Traffic.Count("SandboxListV2"); len(different) != 250 || pages != 4 || cloud.Traffic.Count("SandboxTagsGetV2") != 0 {
		t.Errorf("%d sandboxes in %d pages", len(different), pages)
	}
	if none, err := newProvider(t, cloud, func(c *Config) { c.App = "other" }).List(t.Context(), provider.ListRequest{Owner: owner}); err != nil || len(none) != 0 {
		t.Errorf("an app that does not exist: %d, %v", len(none), err)
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
	create(t, d, "s1")
	if cloud.Traffic.Count("SandboxCreateV2") != 1 {
		t.Error("a sandbox of the old kind was made")
	}
	checkCanary(t, cloud)
}

func TestATimedOutSandboxEndsByItself(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	request := createRequest("s1")
	request.Lifetime = time.Second
	sandbox, err := d.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(sandbox.ExpiresAt); left > time.Second || left < -2*time.Second {
		t.Errorf("it ends at %s", sandbox.ExpiresAt)
	}
	cloudtest.Eventually(t, "it has ended", func() bool { return len(cloud.Sandboxes()) == 0 })
	if _, err := d.Attach(t.Context(), attachRequest("s1")); provider.CodeOf(err) != provider.CodeNotFound {
		t.Errorf("%v", err)
	}
}

func TestAServerThatCrashedIsStartedAgainInItsSandbox(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	d := newProvider(t, cloud, nil)
	sandbox := create(t, d, "s1")
	dies(t, d, sandbox, shellServer("echo one; exit 3"))
	awaitAlive(t, d, sandbox, start(t, d, sandbox, pythonServer()))
	lines, err := d.Logs(t.Context(), provider.LogsRequest{SandboxRef: ref(sandbox), Lines: 100})
	if err != nil || !slices.Equal(lines, []string{"one", "listening"}) {
		t.Errorf("the log %q, %v", lines, err)
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

func TestAListingOfAllOwnersShowsThoseOfOthers(t *testing.T) {
	t.Parallel()
	cloud := newCloud(t, sim.Options{})
	cloudtest.CheckOwners(t, newProvider(t, cloud, nil), owner, func(labels map[string]string) error {
		return cloud.Plant("berth", 1, labels)
	})
}
