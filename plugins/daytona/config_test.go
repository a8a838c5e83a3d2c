package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/daytona/sim"
	"github.com/berth-dev/berth/plugins/internal/cloudtest"
	"github.com/berth-dev/berth/shared/provider"
)

func TestTheDocumentationHasEveryAttribute(t *testing.T) {
	t.Parallel()
	cloudtest.CheckAttributes(t, "daytona", provider.Attributes[Config]())
}

func TestAConfigurationThatCannotWorkIsRefusedAtItsAttribute(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
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
	} {
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
		`{"snapshot":"big","target":"eu","archive_after":"1h","block_network":true}`: `"autoArchiveInterval":60`,
		`{"image":"debian:12","cpu":2,"memory":4,"disk":8}`:                          `"dockerfileContent":"FROM debian:12\n"`,
		`{"allow_networks":["10.0.0.0/8","192.168.0.0/16"]}`:                         `"networkAllowList":"10.0.0.0/8,192.168.0.0/16"`,
	} {
		d := newProvider(t, cloud, func(c *Config) {
			if err := overlay(c, config); err != nil {
				t.Fatal(err)
			}
		})
		cloud.Traffic.ClearCalls()
		create(t, d, config[:6])
		if body := cloud.Traffic.Calls("createSandbox")[0].Body; !strings.Contains(body, want) {
			t.Errorf("%s: sent %s", config, body)
		}
	}
	d := newProvider(t, cloud, func(c *Config) { c.Snapshot = "ghcr.io/an/image:1" })
	_, err := d.Create(t.Context(), createRequest("s9"))
	if provider.CodeOf(err) != provider.CodeInvalid || !strings.Contains(err.Error(), "Snapshot ghcr.io/an/image:1 not found") {
		t.Errorf("%v", err)
	}
}

// overlay sets the attributes given, as JSON, over a configuration.
func overlay(c *Config, given string) error {
	var values map[string]json.RawMessage
	if err := json.Unmarshal([]byte(given), &values); err != nil {
		return err
	}
	key, _ := json.Marshal(c.APIKey)
	address, _ := json.Marshal(c.APIURL)
	values["api_key"], values["api_url"] = key, address
	all, err := json.Marshal(values)
	if err == nil {
		*c, err = provider.DecodeConfig[Config](all)
	}
	return err
}
