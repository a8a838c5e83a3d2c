package main

import (
	"context"
	"net/url"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// Config is what users may write into the config block. Schema, defaults, environment fallbacks and documentation all
// come from it.
type Config struct {
	APIKey string `berth:"api_key,required,sensitive" env:"ACME_API_KEY" doc:"The key of the account."`
	URL    string `berth:"url,required" env:"ACME_URL" doc:"Where the cloud's API is."`
	Size   string `berth:"size" default:"small" oneof:"small,large" doc:"How large a sandbox is."`
}

// open makes the provider from its configuration. It asks the cloud nothing: a plugin should start at once, and
// `berth doctor` finds out whether the cloud accepts the key.
func open(_ context.Context, config Config, log hclog.Logger) (*Cloud, error) {
	u, err := url.Parse(config.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, provider.InvalidField("url", "must be an http or https URL")
	}
	return &Cloud{
		log: log, size: config.Size, api: newAPI(strings.TrimSuffix(config.URL, "/"), config.APIKey),
		probe: provider.NewProbeClient(), asked: newThrottle(),
	}, nil
}
