package main

import (
	"os"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) { os.Exit(cloudtest.Main(m, 20)) }

// canary is the API key: it may be nowhere but in one header.
const canary = "dtn_canary_0123456789"

// timesFor are how patient the plugin is.
func timesFor(p cloudtest.Pace) times {
	if p == cloudtest.Normal {
		return normalTimes
	}
	t := times{Times: p.Times(), call: 20 * time.Second, slowCall: 20 * time.Second, token: 60 * time.Millisecond, stale: 500 * time.Millisecond, moved: time.Minute}
	if p == cloudtest.Curt {
		t.call, t.slowCall = 4*time.Second, 4*time.Second
	}
	return t
}

// newCloud makes a cloud whose sandboxes have the action server, with nothing left in it at the end of the test.
func newCloud(t *testing.T, options sim.Options) *sim.Cloud {
	t.Helper()
	options.APIKey, options.PathDirs = canary, cloudtest.PathDirs(t)
	if options.TokenCache == 0 {
		options.TokenCache = 50 * time.Millisecond
	}
	return cloudtest.Simulate(t, sim.New, options)
}

// newProvider opens the plugin for a cloud. change, which may be nil, changes its configuration.
func newProvider(t *testing.T, cloud *sim.Cloud, change func(*Config)) *Daytona {
	t.Helper()
	return openFor(t, cloud, cloudtest.Brisk, hclog.NewNullLogger(), change)
}

func configFor(cloud *sim.Cloud) map[string]any {
	return map[string]any{"api_key": canary, "api_url": cloud.URL()}
}

func openFor(t *testing.T, cloud *sim.Cloud, pace cloudtest.Pace, log hclog.Logger, change func(*Config)) *Daytona {
	t.Helper()
	config := cloudtest.Configure(t, configFor(cloud), change)
	if err := config.check(); err != nil {
		t.Fatal(err)
	}
	d := newDaytona(config, log, timesFor(pace))
	t.Cleanup(func() { d.Close() })
	return d
}

func startWorld(t *testing.T, options cloudtest.Options) *cloudtest.World {
	t.Helper()
	cloud := newCloud(t, sim.Options{
		Create: options.Create, Start: options.Change, Stop: options.Change, Delete: options.Change, Minute: options.Minute, ListLag: options.Lag,
	})
	force := func(state string) func(string) {
		return func(id string) { cloud.Force(id, state, "", false) }
	}
	return &cloudtest.World{
		Cloud: cloud, Traffic: &cloud.Traffic, Config: configFor(cloud), Env: cloud.Environment(),
		Provider: func(t *testing.T, pace cloudtest.Pace, log hclog.Logger) provider.Provider {
			t.Helper()
			return openFor(t, cloud, pace, log, nil)
		},
		Sandboxes: func() (there []cloudtest.Sandbox) {
			for _, s := range cloud.Sandboxes() {
				there = append(there, cloudtest.Sandbox{ID: s.ID, Suspended: s.State == "stopped"})
			}
			return there
		},
		Box: cloud.Box, Plant: cloud.Plant, Label: cloud.Label,
		End: force("destroyed"), Suspend: force("stopped"), Hibernate: force("hibernating"),
	}
}

// force is what happens to a sandbox that takes a state.
func force(state, reason string, recoverable bool) func(*cloudtest.World, string) {
	return func(w *cloudtest.World, id string) {
		w.Cloud.(*sim.Cloud).Force(id, state, reason, recoverable)
	}
}

func TestCloud(t *testing.T) {
	created := func(status int, message string, want provider.Error) cloudtest.ErrorCase {
		return cloudtest.Answered("createSandbox", status, message, want)
	}
	looked := func(status int, message string, want provider.Error) cloudtest.ErrorCase {
		return cloudtest.Answered("getSandbox", status, message, want)
	}
	throttled := looked(429, "ThrottlerException: Too Many Requests", provider.Error{
		Code: provider.CodeExhausted, Reason: provider.ReasonRateLimit, Retryable: true, RetryAfter: 70 * time.Second,
	})
	throttled.Fault.Headers["Retry-After-sandbox-create"] = "70"
	cloudtest.Run(t, cloudtest.Cloud{
		Plugin: "daytona", Start: startWorld, Secret: canary, SecretHeader: "Authorization",
		Open: cloudtest.Opener(map[string]any{}, open),
		Configurations: map[string]string{
			`{}`:                                  "api_key",
			`{"jwt_token":"x"}`:                   "organization_id",
			`{"api_key":"x","jwt_token":"y"}`:     "jwt_token",
			`{"api_key":"x\n"}`:                   "api_key",
			`{"api_key":"x","api_url":"daytona"}`: "api_url",
			`{"api_key":"x","api_url":"https://u:p@h/api"}`:                       "api_url",
			`{"api_key":"x","snapshot":"a","image":"b"}`:                          "image",
			`{"api_key":"x","cpu":2}`:                                             "cpu",
			`{"api_key":"x","image":"b","memory":-1}`:                             "memory",
			`{"api_key":"x","image":"b\nRUN evil"}`:                               "image",
			`{"api_key":"x","port":70000}`:                                        "port",
			`{"api_key":"x","allow_networks":["everywhere"]}`:                     "allow_networks",
			`{"api_key":"x","block_network":true,"allow_networks":["1.2.3.0/8"]}`: "allow_networks",
			`{"api_key":"x","image":"b","cpu":2,"memory":4,"disk":8}`:             "",
			`{"jwt_token":"x","organization_id":"y"}`:                             "",
			`{"api_key":"x","allow_networks":["208.80.154.232/32"]}`:              "",
		},
		LookUp: "getSandbox", Create: "createSandbox", List: "listSandboxes", Port: "preview",
		Keyless: []string{"preview"}, Inside: []string{"preview", "executeCommand"},
		Scenes: []cloudtest.Scene{
			{Operation: "getSandbox"},
			{Operation: "createSandbox"},
			{Operation: "executeCommand"},
			{Operation: "getPortPreviewUrl"},
			{Operation: "preview"},
			{Operation: "startSandbox", Found: true, Then: cloudtest.Suspended},
			{Operation: "recoverSandbox", Found: true, Then: func(_ *testing.T, w *cloudtest.World, _ provider.Provider, s provider.Sandbox) {
				force("error", "no space left on device", true)(w, s.ID)
			}},
			{Operation: "stopSandbox", Found: true, Do: cloudtest.Suspend},
			{Operation: "setAutostopInterval", Found: true, Do: cloudtest.Renew},
			{Operation: "updateLastActivity", Found: true, Do: cloudtest.Renew},
			{Operation: "deleteSandbox", Found: true, Do: cloudtest.Destroy},
			{Operation: "listSandboxes", Found: true, Do: cloudtest.Listing},
		},
		Errors: []cloudtest.ErrorCase{
			throttled,
			looked(401, "Invalid credentials", provider.Error{Code: provider.CodeDenied}),
			looked(403, "Organization is suspended", provider.Error{Code: provider.CodeDenied}),
			looked(500, "An unexpected error occurred.", provider.Error{Code: provider.CodeUnreachable, Retryable: true}),
			created(422, "not supported", provider.Error{Code: provider.CodeUnsupported}),
			created(400, "Total CPU limit exceeded. Maximum allowed: 10.", provider.Error{Code: provider.CodeExhausted, Reason: provider.ReasonQuota}),
			created(400, "Total disk limit exceeded. Maximum allowed: 30.", provider.Error{Code: provider.CodeExhausted, Reason: provider.ReasonQuota}),
			created(400, "No available runners", provider.Error{Code: provider.CodeExhausted, Reason: "NO_CAPACITY", Retryable: true}),
			created(400, "Sandbox failed to start: out of memory", provider.Error{Code: provider.CodeFailed}),
			created(400, "Sandbox is not in valid state", provider.Error{Code: provider.CodeState}),
			created(400, "Snapshot x not found. Did you add it through the Daytona Dashboard?", provider.Error{Code: provider.CodeInvalid}),
		},
		Endings: map[string]cloudtest.Ending{
			"TheSandboxIsArchived": {Happen: force("archived", "", false), Status: provider.PingStopped, Reason: "archived"},
			"TheSandboxIsEvicted":  {Happen: force("error", "runner lost", false), Status: provider.PingGone, Reason: "runner lost"},
		},
	})
}

func TestTheDocumentationHasEveryAttribute(t *testing.T) {
	t.Parallel()
	cloudtest.CheckAttributes(t, "daytona", provider.Attributes[Config]())
}
