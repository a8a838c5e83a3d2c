package main

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/plugins/modal/sim"
	"github.com/berth-dev/berth/shared/provider"
)

func TestTheDocumentationHasEveryAttribute(t *testing.T) {
	t.Parallel()
	attributes := provider.Attributes[Config]()
	cloudtest.CheckAttributes(t, "modal", attributes)
}

func TestAConfigurationThatCannotWorkIsRefusedAtItsAttribute(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		`{"server_url":"api.modal.com"}`:                        "server_url",
		`{"server_url":"https://u:p@h"}`:                        "server_url",
		`{"server_url":"http://api.modal.com"}`:                 "server_url",
		`{"server_url":"http://127.0.0.1:1/"}`:                  "",
		`{"server_url":"http://[::1]:1"}`:                       "",
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
	} {
		given = strings.Replace(given, "{", `{"token_id":"ak-x",`, 1)
		if !strings.Contains(given, "token_secret") {
			given = strings.Replace(given, "{", `{"token_secret":"as-x",`, 1)
		}
		config, err := provider.DecodeConfig[Config]([]byte(given))
		if err != nil {
			t.Fatal(err)
		}
		d, err := open(t.Context(), config, hclog.NewNullLogger())
		var fields []string
		if err != nil {
			for _, field := range provider.AsError(err).Fields {
				fields = append(fields, field.Field)
			}
		} else {
			d.Close()
		}
		if got := strings.Join(fields, " "); got != want {
			t.Errorf("%s: refused %q, want %q", given, got, want)
		}
	}
}

func TestMissingCredentialsAreNoticedBeforeTheFirstCall(t *testing.T) {
	t.Parallel()
	_, err := open(t.Context(), Config{ServerURL: "https://api.modal.com:443", App: "berth", Image: "x", Port: 1}, hclog.NewNullLogger())
	if e := provider.AsError(err); e == nil || e.Code != provider.CodeInvalid || len(e.Fields) != 2 {
		t.Errorf("%+v", e)
	}
}

func TestALifetimeIsWholeSecondsAndADayAtMost(t *testing.T) {
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
	create(t, d, "s1")
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
	if _, err := newProvider(t, cloud, nil).Attach(t.Context(), attachRequest("s1")); provider.CodeOf(err) != provider.CodeNotFound {
		t.Errorf("another app and environment: %v", err)
	}
}
