package main

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/modal/sim"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) {
	simcloud.Main()
	trusted, err := trustTunnels()
	if err != nil {
		panic(err)
	}
	// The SDK detaches the refreshing of its token from whoever needs it, and gives it up after a time of its own.
	refresh := goleak.IgnoreAnyFunction("golang.org/x/sync/singleflight.(*Group).doCall")
	code := cloudtest.Main(m, 24, refresh)
	os.Remove(trusted)
	os.Exit(code)
}

// trustTunnels makes this process trust the tunnels of its clouds.
func trustTunnels() (string, error) {
	text, err := sim.Certificate()
	if err != nil {
		return "", err
	}
	file, err := os.CreateTemp("", "modal-test-*.pem")
	if err != nil {
		return "", err
	}
	defer file.Close()
	_, err = file.Write(text)
	return file.Name(), errors.Join(err, os.Setenv("SSL_CERT_FILE", file.Name()))
}

const (
	// canary is the token's secret: it may be nowhere but in one header.
	canary  = "as-canary-0123456789"
	tokenID = "ak-tests"
)

// timesFor are how patient the plugin is.
func timesFor(p cloudtest.Pace) times {
	if p == cloudtest.Normal {
		return normalTimes
	}
	brisk := times{
		Times: p.Times(), throttle: 5 * time.Second,
		call: 20 * time.Second, create: 20 * time.Second, list: 20 * time.Second, ending: 20 * time.Second,
	}
	brisk.Retry = cloud.Retry{Tries: 3, First: 5 * time.Millisecond, Most: time.Second, Longest: 5 * time.Second}
	if p == cloudtest.Curt {
		brisk.throttle = time.Second
		brisk.call, brisk.create, brisk.list, brisk.ending = 2*time.Second, 2*time.Second, 2*time.Second, 2*time.Second
	}
	return brisk
}

// newCloud makes a cloud whose sandboxes have the action server, with nothing left in it at the end of the test.
func newCloud(t *testing.T, options sim.Options) *sim.Cloud {
	t.Helper()
	options.TokenID, options.TokenSecret, options.PathDirs = tokenID, canary, cloudtest.PathDirs(t)
	return cloudtest.Simulate(t, sim.New, options)
}

// newProvider opens the plugin for a cloud. change, which may be nil, changes its configuration.
func newProvider(t *testing.T, cloud *sim.Cloud, change func(*Config)) *Modal {
	t.Helper()
	return openFor(t, cloud, timesFor(cloudtest.Brisk), hclog.NewNullLogger(), change)
}

func configFor(cloud *sim.Cloud) map[string]any {
	return map[string]any{"token_id": tokenID, "token_secret": canary, "server_url": cloud.URL()}
}

func openFor(t *testing.T, cloud *sim.Cloud, times times, log hclog.Logger, change func(*Config)) *Modal {
	t.Helper()
	config := cloudtest.Configure(t, configFor(cloud), change)
	if err := config.check(); err != nil {
		t.Fatal(err)
	}
	d, err := newModal(config, log, times)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func startWorld(t *testing.T, options cloudtest.Options) *cloudtest.World {
	t.Helper()
	cloud := newCloud(t, sim.Options{Create: options.Create, Build: max(options.Change, time.Millisecond)})
	return &cloudtest.World{
		Cloud: cloud, Traffic: &cloud.Traffic, Env: cloud.Environment(),
		Config: configFor(cloud),
		Inject: func(fault simcloud.Fault) *simcloud.Injected { return inject(cloud, fault) },
		Provider: func(t *testing.T, pace cloudtest.Pace, log hclog.Logger) provider.Provider {
			t.Helper()
			return openFor(t, cloud, timesFor(pace), log, func(c *Config) { c.Public = options.Variant == "public" })
		},
		Sandboxes: func() (there []cloudtest.Sandbox) {
			for _, s := range cloud.Sandboxes() {
				there = append(there, cloudtest.Sandbox{ID: s.ID})
			}
			return there
		},
		Box: cloud.Box, Label: cloud.Label,
		Plant: func(count int, labels map[string]string) error { return cloud.Plant("berth", count, labels) },
		End:   func(id string) { cloud.End(id, pb.GenericResult_GENERIC_STATUS_TERMINATED, 137) },
	}
}

// inject injects a fault that is worded in HTTP, as gRPC has it. What cannot be gRPC's goes below it.
func inject(cloud *sim.Cloud, fault simcloud.Fault) *simcloud.Injected {
	named := map[int]codes.Code{
		401: codes.Unauthenticated, 403: codes.PermissionDenied, 429: codes.ResourceExhausted, 500: codes.Internal, 503: codes.Unavailable,
	}
	switch code, known := named[fault.Status]; {
	case fault.Operation == "connect", fault.Status == 0:
		return cloud.Traffic.Fail(fault)
	case !known:
		return cloud.Wire.Fail(fault)
	default:
		fault.Code, fault.Message = code, fault.Body
	}
	if wait, err := time.ParseDuration(fault.Headers["Retry-After"] + "s"); err == nil {
		fault.Message = "slow down"
		fault.Details = []proto.Message{pb.RPCRetryPolicy_builder{RetryAfterSecs: float32(wait.Seconds())}.Build()}
	}
	fault.Status = 0
	return cloud.Traffic.Fail(fault)
}

// end is an ending of a sandbox that has a status of its own.
func end(status pb.GenericResult_GenericStatus, reason string) cloudtest.Ending {
	happen := func(w *cloudtest.World, id string) { w.Cloud.(*sim.Cloud).End(id, status, 0) }
	return cloudtest.Ending{Happen: happen, Status: provider.PingGone, Reason: reason}
}

func TestCloud(t *testing.T) {
	// Calls that a look-up makes first are those of a find, all others of a sandbox that is there.
	var scenes []cloudtest.Scene
	for _, operation := range []string{
		"AuthTokenGet", "SandboxGetFromNameV2", "SandboxGetFromName", "AppGetOrCreate", "EnvironmentGetOrCreate", "ImageGetOrCreate",
		"ImageJoinStreaming", "SandboxCreateV2", "TaskExecStart", "TaskExecStdioRead", "SandboxCreateConnectTokenV2", "connect",
	} {
		scenes = append(scenes, cloudtest.Scene{Operation: operation})
	}
	for _, operation := range []string{"SandboxWaitV2", "SandboxTagsGetV2", "SandboxGetTaskIdV2", "SandboxGetCommandRouterAccess"} {
		scenes = append(scenes, cloudtest.Scene{Operation: operation, Found: true})
	}
	failure := func(code codes.Code, message string, want provider.Error, details ...proto.Message) cloudtest.ErrorCase {
		want.Message = message
		return cloudtest.ErrorCase{
			Fault: simcloud.Fault{Operation: "SandboxGetFromNameV2", Code: code, Message: message, Details: details}, Want: want,
		}
	}
	cloudtest.Run(t, cloudtest.Cloud{
		Plugin: "modal", Start: startWorld, Secret: canary, SecretHeader: "X-Modal-Token-Secret",
		Open: cloudtest.Opener(map[string]any{"token_id": "ak-x", "token_secret": "as-x"}, open),
		Configurations: map[string]string{
			`{"server_url":"api.modal.com"}`:                        "server_url",
			`{"server_url":"https://u:p@h"}`:                        "server_url",
			`{"server_url":"http://api.modal.com"}`:                 "server_url",
			`{"server_url":"http://127.0.0.1:1/"}`:                  "",
			`{"server_url":"http://[::1]:1"}`:                       "",
			`{"token_id":"","token_secret":""}`:                     "token_id token_secret",
			`{"token_secret":"x\n"}`:                                "token_secret",
			`{"token_secret":"  "}`:                                 "token_secret",
			`{"app":"my app"}`:                                      "app",
			`{"image":"b\nRUN evil"}`:                               "image",
			`{"setup":["RUN a\nFROM b"]}`:                           "setup",
			`{"setup":["copy . /x"]}`:                               "setup",
			`{"setup":["RUN a","COPY --from=other /a /b"]}`:         "",
			`{"cpu":-1}`:                                            "cpu",
			`{"memory":-1}`:                                         "memory",
			`{"idle_after":"1500ms"}`:                               "idle_after",
			`{"port":70000}`:                                        "port",
			`{"allow_networks":["everywhere"]}`:                     "allow_networks",
			`{"allow_networks":["208.80.154.232/32"]}`:              "",
			`{"block_network":true,"allow_networks":["1.2.3.0/8"]}`: "allow_networks",
			`{"block_network":true,"public":true}`:                  "public",
		},
		LookUp: "SandboxGetFromNameV2", Create: "SandboxCreateV2", List: "SandboxListV2", Port: "connect",
		Keyless: []string{"connect", "TaskExecStart", "TaskExecStdioRead", "TaskExecWait"},
		Inside:  []string{"connect", "TaskExecStart", "TaskExecStdioRead", "TaskExecWait", "AuthTokenGet"},
		Scenes: append(scenes,
			cloudtest.Scene{Operation: "SandboxGetTunnelsV2", Variant: "public"},
			cloudtest.Scene{Operation: "SandboxTerminateV2", Found: true, Do: cloudtest.Destroy},
			cloudtest.Scene{Operation: "SandboxListV2", Found: true, Do: cloudtest.Listing},
		),
		Errors: []cloudtest.ErrorCase{
			failure(codes.Unauthenticated, "who?", provider.Error{Code: provider.CodeDenied}),
			failure(codes.PermissionDenied, "no", provider.Error{Code: provider.CodeDenied}),
			failure(codes.InvalidArgument, "bad", provider.Error{Code: provider.CodeInvalid}),
			failure(codes.Internal, "oops", provider.Error{Code: provider.CodeUnreachable, Retryable: true}),
			failure(codes.Unavailable, "oops", provider.Error{Code: provider.CodeUnreachable, Retryable: true}),
			failure(codes.Unknown, "unexpected content-type", provider.Error{Code: provider.CodeUnreachable, Retryable: true}),
			failure(codes.DeadlineExceeded, "", provider.Error{Code: provider.CodeTimeout, Retryable: true}),
			failure(codes.ResourceExhausted, "Sandbox creation rate limit (5/s) exceeded", provider.Error{
				Code: provider.CodeExhausted, Reason: provider.ReasonRateLimit, Retryable: true,
			}),
			failure(codes.ResourceExhausted, "workspace limit of 100 containers", provider.Error{Code: provider.CodeExhausted, Reason: provider.ReasonQuota}),
		},
		Endings: map[string]cloudtest.Ending{
			"ItsLifetimeIsOver":             end(pb.GenericResult_GENERIC_STATUS_TIMEOUT, "its lifetime was over"),
			"ItIsIdleWhichHasAnExitCodeOf0": end(pb.GenericResult_GENERIC_STATUS_IDLE_TIMEOUT, "idle for too long"),
			"ItIsEvicted":                   end(pb.GenericResult_GENERIC_STATUS_MEMORY_MANAGER_EVICTION, "evicted"),
			"ItEndsInAWayThatIsNew":         end(42, "the sandbox has ended: 42"),
			"ItIsForgotten": {
				Happen: func(w *cloudtest.World, id string) { w.Cloud.(*sim.Cloud).Forget(id) }, Status: provider.PingGone, Reason: "no longer exists",
			},
		},
		Silences: map[string]func(*cloudtest.World, string){
			"TheWorkerIsSilent": func(w *cloudtest.World, id string) { w.Cloud.(*sim.Cloud).Break(id) },
		},
	})
}

func TestTheDocumentationHasEveryAttribute(t *testing.T) {
	t.Parallel()
	cloudtest.CheckAttributes(t, "modal", provider.Attributes[Config]())
}
