package main

import (
	"os"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/e2b/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) { os.Exit(cloudtest.Main(m, 20)) }

// canary is the API key: it must be nowhere but in one header.
const canary = "e2b_ca9a47ca9a47ca9a47ca9a47ca9a47ca9a47ca9a"

// times is a name that a simulated cloud called cloud does not hide.
type times = cloud.Times

// timesFor are how patient the plugin is.
func timesFor(p cloudtest.Pace) times {
	t := p.Times()
	if p != cloudtest.Normal {
		t.Patience, t.LookServer, t.LookCloud = 50*time.Millisecond, 100*time.Millisecond, 200*time.Millisecond
	}
	return t
}

// newCloud starts a simulated E2B that finds the action server in its sandboxes.
func newCloud(t *testing.T, options sim.Options) *sim.Cloud {
	t.Helper()
	options.Key, options.PathDirs = canary, cloudtest.PathDirs(t)
	return cloudtest.Simulate(t, sim.Start, options)
}

// newProvider opens the plugin for a cloud, with changes.
func newProvider(t *testing.T, cloud *sim.Cloud, changes ...func(*Config, *times)) *E2B {
	t.Helper()
	return openFor(t, cloud, timesFor(cloudtest.Brisk), hclog.NewNullLogger(), changes...)
}

func configFor(cloud *sim.Cloud) map[string]any {
	return map[string]any{"api_key": canary, "api_url": cloud.APIURL, "sandbox_url": cloud.SandboxURL}
}

func openFor(t *testing.T, cloud *sim.Cloud, times times, log hclog.Logger, changes ...func(*Config, *times)) *E2B {
	t.Helper()
	config := cloudtest.Configure[Config](t, configFor(cloud), nil)
	for _, change := range changes {
		change(&config, &times)
	}
	p := newE2B(config, log, times)
	t.Cleanup(func() { p.Close() })
	return p
}

func setup(t *testing.T) (*sim.Cloud, *E2B) {
	t.Helper()
	cloud := newCloud(t, sim.Options{})
	return cloud, newProvider(t, cloud)
}

func startWorld(t *testing.T, options cloudtest.Options) *cloudtest.World {
	t.Helper()
	cloud := newCloud(t, sim.Options{
		CreateTime: options.Create, PauseTime: options.Change, ResumeTime: options.Change, ListLag: options.Lag, NoIdempotency: options.Variant == "no idempotency",
	})
	return &cloudtest.World{
		Cloud: cloud, Traffic: &cloud.Traffic, Config: configFor(cloud),
		Env: map[string]string{"E2B_API_KEY": canary, "E2B_API_URL": cloud.APIURL, "E2B_SANDBOX_URL": cloud.SandboxURL},
		Provider: func(t *testing.T, pace cloudtest.Pace, log hclog.Logger) provider.Provider {
			t.Helper()
			p := openFor(t, cloud, timesFor(pace), log)
			if pace == cloudtest.Curt {
				p.cluster.api.Limit, p.cluster.api.slow = 4*time.Second, 4*time.Second
			}
			return p
		},
		Sandboxes: func() (there []cloudtest.Sandbox) {
			for _, s := range cloud.Sandboxes() {
				there = append(there, cloudtest.Sandbox{ID: s.ID, Suspended: s.State == "paused"})
			}
			return there
		},
		Plant: func(count int, labels map[string]string) error {
			for range count {
				if _, err := cloud.Seed(labels); err != nil {
					return err
				}
			}
			return nil
		},
		Box: cloud.Box, Label: cloud.Label, End: cloud.Kill,
		Suspend: func(id string) {
			if err := cloud.Pause(id); err != nil {
				t.Error(err)
			}
		},
		Hibernate: func(id string) {
			cloud.SetState(id, "hibernating")
			cloud.Unroute(id, true)
		},
	}
}

func TestCloud(t *testing.T) {
	envd := []string{"port", "envd.Start", "envd.Connect", "envd.List", "envd.SendSignal", "envd.SendInput", "envd.StreamInput", "envd.health", "envd.files"}
	cloudtest.Run(t, cloudtest.Cloud{
		Plugin: "e2b", Start: startWorld, Secret: canary, SecretHeader: "X-Api-Key",
		Open: cloudtest.Opener(map[string]any{"api_key": "e2b_x"}, open),
		Configurations: map[string]string{
			`{}`:                                      "",
			`{"api_key":"e2b_x\n"}`:                   "api_key",
			`{"domain":"https://e2b.app"}`:            "domain",
			`{"api_url":"api.e2b.app"}`:               "api_url",
			`{"sandbox_url":"https://u:p@x.example"}`: "sandbox_url",
		},
		LookUp: "list", Create: "create", List: "list", Port: "port", Keyless: envd, Inside: envd,
		Scenes: []cloudtest.Scene{
			{Operation: "list"},
			{Operation: "list", Skip: 1, Variant: "before a create"},
			{Operation: "list", Skip: 2, Variant: "after a create"},
			{Operation: "create"},
			{Operation: "create", Variant: "no idempotency"},
			{Operation: "connect", Found: true},
			{Operation: "envd.Start"},
			{Operation: "port"},
			{Operation: "get", Found: true, Do: cloudtest.Destroy},
			{Operation: "kill", Found: true, Do: cloudtest.Destroy},
			{Operation: "pause", Found: true, Do: cloudtest.Suspend},
			{Operation: "timeout", Found: true, Do: cloudtest.Renew},
			{Operation: "envd.Start", Found: true, Do: cloudtest.Logs},
			{Operation: "list", Found: true, Do: cloudtest.Listing},
		},
		Errors: []cloudtest.ErrorCase{
			cloudtest.Answered("create", 400, "validation error: x", provider.Error{Code: provider.CodeInvalid}),
			cloudtest.Answered("list", 401, "authorization header is missing", provider.Error{Code: provider.CodeDenied}),
			cloudtest.Answered("list", 403, "team is blocked", provider.Error{Code: provider.CodeDenied}),
			cloudtest.Answered("list", 404, "validation error: no matching operation was found", provider.Error{Code: provider.CodeUnreachable}),
			cloudtest.Answered("list", 429, "Rate limit exceeded", provider.Error{Code: provider.CodeExhausted, Reason: provider.ReasonRateLimit, Retryable: true}),
			cloudtest.Answered("create", 429, "you have reached the maximum number of concurrent E2B sandboxes (20)", provider.Error{
				Code: provider.CodeExhausted, Reason: provider.ReasonQuota,
			}),
			cloudtest.Answered("list", 500, "internal", provider.Error{Code: provider.CodeUnreachable, Retryable: true}),
			{Fault: simcloud.Fault{Operation: "create", Status: 503, Body: `{"code":503,"message":"no","error_code":"sandbox_capacity_unavailable"}`},
				Want: provider.Error{Code: provider.CodeUnreachable, Reason: "SANDBOX_CAPACITY_UNAVAILABLE", Retryable: true}},
			{Fault: simcloud.Fault{Operation: "list", Status: 404, Body: "<html>not found</html>"}, Want: provider.Error{Code: provider.CodeUnreachable}},
			{Fault: simcloud.Fault{Operation: "list", Status: 502, Body: "<html>502</html>"}, Want: provider.Error{Code: provider.CodeUnreachable, Retryable: true}},
			{Fault: simcloud.Fault{Operation: "list", Status: 200}, Want: provider.Error{Code: provider.CodeUnreachable, Retryable: true}},
			{Fault: simcloud.Fault{Operation: "list", Status: 200, Body: `{"hello":"world"}`}, Want: provider.Error{Code: provider.CodeUnreachable, Retryable: true}},
		},
		Silences: map[string]func(*cloudtest.World, string){
			"TheWayThereIsBroken": func(w *cloudtest.World, id string) { w.Cloud.(*sim.Cloud).Unroute(id, true) },
			"TheProxyDeniesThatThereIsASandbox": func(w *cloudtest.World, id string) {
				fault := cloudtest.Answer(502, "The sandbox was not found")
				fault.Operation, fault.Body = "port", `{"sandboxId":"`+id+`","message":"The sandbox was not found","code":502}`
				w.Traffic.Fail(fault)
			},
		},
	})
}

func TestTheDocumentationHasEveryAttribute(t *testing.T) {
	t.Parallel()
	cloudtest.CheckAttributes(t, "e2b", provider.Attributes[Config]())
}
