package main

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/internal/simcloud"
	"github.com/berth-dev/berth/plugins/runloop/sim"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

func TestMain(m *testing.M) { os.Exit(cloudtest.Main(m, 24)) }

// canary is the API key: it may be nowhere but in the one header it belongs in.
const canary = "ak_canary_5f0d"

// timesFor are how patient the kit is.
func timesFor(pace cloudtest.Pace) cloud.Times {
	if pace == cloudtest.Normal {
		return standardTimes
	}
	return pace.Times()
}

// hurry makes the API's client as patient as a pace.
func hurry(boxes *devboxes, pace cloudtest.Pace) {
	if pace == cloudtest.Normal {
		return
	}
	boxes.hold, boxes.api.Retry, boxes.api.Limit = 500*time.Millisecond, pace.Times().Retry, 10*time.Second
	if pace == cloudtest.Curt {
		boxes.api.Limit = 2 * time.Second
	}
}

// newCloud starts a simulated Runloop for one test.
func newCloud(t *testing.T, options sim.Options) *sim.Cloud {
	t.Helper()
	options.APIKey, options.PathDirs = canary, cloudtest.PathDirs(t)
	return cloudtest.Simulate(t, sim.Start, options)
}

// newRunloop opens the plugin for a cloud; change, which may be nil, changes its configuration.
func newRunloop(t *testing.T, simulated *sim.Cloud, change func(*Config)) *Runloop {
	t.Helper()
	return openFor(t, simulated, cloudtest.Brisk, hclog.NewNullLogger(), change)
}

func configFor(simulated *sim.Cloud) map[string]any {
	environment := simulated.Environment()
	return map[string]any{"api_key": canary, "base_url": environment["RUNLOOP_BASE_URL"], "tunnel_url": environment["RUNLOOP_TUNNEL_URL"]}
}

func openFor(t *testing.T, simulated *sim.Cloud, pace cloudtest.Pace, log hclog.Logger, change func(*Config)) *Runloop {
	t.Helper()
	config := cloudtest.Configure(t, configFor(simulated), change)
	config, err := config.checked()
	if err != nil {
		t.Fatal(err)
	}
	r := newProvider(config, log, timesFor(pace))
	hurry(r.boxes, pace)
	t.Cleanup(func() { r.Close() })
	return r
}

func startWorld(t *testing.T, options cloudtest.Options) *cloudtest.World {
	t.Helper()
	simulated := newCloud(t, sim.Options{Provision: options.Create, Suspend: options.Change, Resume: options.Change, LazyStatus: options.Change / 2})
	force := func(status, reason string) func(string) {
		return func(id string) {
			if err := simulated.Force(id, status, reason); err != nil {
				t.Error(err)
			}
		}
	}
	return &cloudtest.World{
		Cloud: simulated, Traffic: &simulated.Traffic, Config: configFor(simulated), Env: simulated.Environment(),
		Provider: func(t *testing.T, pace cloudtest.Pace, log hclog.Logger) provider.Provider {
			t.Helper()
			return openFor(t, simulated, pace, log, nil)
		},
		Sandboxes: func() (there []cloudtest.Sandbox) {
			for _, view := range simulated.Live() {
				there = append(there, cloudtest.Sandbox{ID: view.ID, Suspended: view.Status == "suspended"})
			}
			return there
		},
		Plant: func(count int, labels map[string]string) error {
			simulated.Seed(count, "running", labels)
			return nil
		},
		Box: simulated.Box, Label: simulated.Label,
		End: force("shutdown", "api_shutdown"), Suspend: force("suspended", ""), Hibernate: force("hibernating", ""),
	}
}

// request asks the API for something that happens to a devbox.
func request(t *testing.T, simulated *sim.Cloud, id, action, body string) {
	t.Helper()
	call, err := http.NewRequestWithContext(t.Context(), http.MethodPost, simulated.Environment()["RUNLOOP_BASE_URL"]+"/v1/devboxes/"+id+action, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	call.Header.Set("Authorization", "Bearer "+canary)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(call)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%+v, %v", response, err)
	}
	response.Body.Close()
}

// reopened gives a devbox another tunnel, or none.
func reopened(tunnel string) func(*testing.T, *cloudtest.World, provider.Provider, provider.Sandbox) {
	return func(t *testing.T, w *cloudtest.World, _ provider.Provider, sandbox provider.Sandbox) {
		t.Helper()
		request(t, w.Cloud.(*sim.Cloud), sandbox.ID, "/remove_tunnel", "")
		if tunnel != "" {
			request(t, w.Cloud.(*sim.Cloud), sandbox.ID, "/enable_tunnel", tunnel)
		}
	}
}

// ending is a status that a devbox takes.
func ending(status, reason string, want provider.PingStatus) cloudtest.Ending {
	happen := func(w *cloudtest.World, id string) { _ = w.Cloud.(*sim.Cloud).Force(id, status, reason) }
	return cloudtest.Ending{Happen: happen, Status: want, Reason: reason}
}

// failing has the look at a server's process fail.
func failing(status int) func(*cloudtest.World, string) {
	return func(w *cloudtest.World, _ string) {
		w.Traffic.Fail(simcloud.Fault{Operation: "execute", Status: status, Headers: map[string]string{"Retry-After": "1"}})
	}
}

func TestCloud(t *testing.T) {
	created := func(status int, body string, want provider.Error, headers ...string) cloudtest.ErrorCase {
		fault := cloudtest.Answer(status, "", headers...)
		fault.Operation, fault.Body = "create", body
		return cloudtest.ErrorCase{Fault: fault, Want: want}
	}
	quota := provider.Error{Code: provider.CodeExhausted, Reason: provider.ReasonQuota}
	page := created(504, "<html>"+canary, provider.Error{Code: provider.CodeUnreachable, Retryable: true, Message: "req_7"}, "X-Runloop-Request-Id", "req_7")
	cloudtest.Run(t, cloudtest.Cloud{
		Plugin: "runloop", Start: startWorld, Secret: canary, SecretHeader: "Authorization", Nameless: true,
		Open: cloudtest.Opener(map[string]any{"api_key": "ak_x"}, open),
		Configurations: map[string]string{
			`{}`:                                   "",
			`{"api_key":" "}`:                      "api_key",
			`{"base_url":"http://api.runloop.ai"}`: "base_url",
			`{"tunnel_url":"https://{port}.example.org"}`: "tunnel_url",
			`{"user":"../root"}`:                          "user",
			`{"blueprint":"a","snapshot_id":"b"}`:         "blueprint",
			`{"idle_timeout":"1s"}`:                       "idle_timeout",
		},
		LookUp: "list", Create: "create", List: "list", Port: "tunnel", Keyless: []string{"tunnel"},
		Inside: []string{"tunnel", "execute"}, // a command goes through the API, and is the look at the server inside
		Scenes: []cloudtest.Scene{
			{Operation: "list"},
			{Operation: "create"},
			{Operation: "wait"},
			{Operation: "get", Found: true, Do: cloudtest.Destroy},
			{Operation: "execute"},
			{Operation: "write_file"},
			{Operation: "keep_alive", Found: true},
			{Operation: "resume", Found: true, Then: cloudtest.Suspended},
			{Operation: "enable_tunnel", Found: true, Then: reopened("")},
			{Operation: "remove_tunnel", Found: true, Then: reopened(`{"auth_mode":"open"}`)},
			{Operation: "suspend", Found: true, Do: cloudtest.Suspend},
			{Operation: "update", Found: true, Do: cloudtest.Renew},
			{Operation: "shutdown", Found: true, Do: cloudtest.Destroy},
		},
		Errors: []cloudtest.ErrorCase{
			created(400, `{"code":"400","message":"blueprint is bad"}`, provider.Error{Code: provider.CodeFailed, Message: "blueprint is bad"}),
			created(401, "", provider.Error{Code: provider.CodeDenied, Message: "401"}),
			created(403, `{"error":"plan_too_small","message":"not on this plan"}`, provider.Error{Code: provider.CodeDenied, Message: "not on this plan"}),
			created(402, "", quota),
			created(404, `{"message":"Blueprint not found"}`, provider.Error{Code: provider.CodeFailed, Message: "Blueprint not found"}),
			created(422, "", provider.Error{Code: provider.CodeFailed, Message: "422"}),
			created(429, "", provider.Error{
				Code: provider.CodeExhausted, Reason: provider.ReasonRateLimit, Retryable: true, RetryAfter: 77 * time.Second, Message: "429",
			}, "Retry-After", "77"),
			created(429, `{"message":"Quota exceeded"}`, quota),
			created(429, "", quota, "X-Runloop-Error-Code", "quota_exceeded"),
			page,
			created(200, `{}`, provider.Error{Code: provider.CodeUnreachable, Retryable: true, Message: "base_url"}),
			created(200, `{"id":`, provider.Error{Code: provider.CodeUnreachable, Retryable: true, Message: "base_url"}),
		},
		Endings: map[string]cloudtest.Ending{
			"TheSandboxFails":     ending("failure", "out_of_memory", provider.PingGone),
			"ItsLifetimeIsOver":   ending("shutdown", "keep_alive_timeout", provider.PingGone),
			"TheSandboxIsEvicted": ending("suspended", "", provider.PingStopped),
		},
		Silences: map[string]func(*cloudtest.World, string){"TheAPIFails": failing(503), "TheAPIHasLimits": failing(429)},
	})
}
