package main

import (
	"context"
	"regexp"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
)

// Config is what users may write into the config block.
type Config struct {
	APIKey          string `berth:"api_key,required,sensitive" env:"E2B_API_KEY" doc:"The key of the E2B team, from the dashboard. It begins with e2b_."`
	Domain          string `berth:"domain" default:"e2b.app" env:"E2B_DOMAIN" doc:"The domain of the E2B cluster. Sandboxes are reached at PORT-ID.DOMAIN."`
	APIURL          string `berth:"api_url" env:"E2B_API_URL" doc:"The control API. Default: https://api.DOMAIN."`
	SandboxURL      string `berth:"sandbox_url" env:"E2B_SANDBOX_URL" doc:"One URL for all ports of all sandboxes, for clusters without a wildcard domain: headers say which sandbox and port is meant."`
	Template        string `berth:"template" default:"base" doc:"The template sandboxes are made from: an id or a name, with a tag if wanted (my-template:v2). It must contain bash and the server."`
	User            string `berth:"user" doc:"The Unix user the server runs as. Default: the template's own."`
	OnTimeout       string `berth:"on_timeout" default:"kill" oneof:"kill,pause" doc:"What happens when a sandbox's lifetime is over. kill ends it for good. pause keeps it until somebody destroys it, and the next connect wakes it."`
	Public          bool   `berth:"public" default:"false" doc:"true lets anybody who knows a sandbox's URL reach its ports. Otherwise every request needs the sandbox's own traffic token, which berth returns among the headers."`
	FirstGeneration bool   `berth:"first_generation" default:"false" doc:"Whether the cluster's API lacks the second generation of create (POST /v2/sandboxes), as older self-hosted ones do. It is found out anyway, by a call that every process which creates a sandbox then loses."`
	Internet        bool   `berth:"internet" default:"true" doc:"Whether what runs in a sandbox may reach the internet."`
}

// open makes the provider from its configuration. It asks E2B nothing.
func open(_ context.Context, config Config, log hclog.Logger) (*E2B, error) {
	var refused cloud.Refusals
	refused.Credential("api_key", config.APIKey)
	if !hostForm.MatchString(config.Domain) {
		refused.Add("domain", "must be the name of a host, such as e2b.app, without https:// and without a path")
	}
	if config.APIURL == "" {
		config.APIURL = "https://api." + config.Domain
	} else {
		config.APIURL = refused.URL("api_url", config.APIURL, "https://api.example.com")
	}
	if config.SandboxURL != "" {
		config.SandboxURL = refused.URL("sandbox_url", config.SandboxURL, "https://sandbox.example.com")
	}
	if err := refused.Err(); err != nil {
		return nil, err
	}
	return newE2B(config, log, cloud.DefaultTimes), nil
}

var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?$`)
