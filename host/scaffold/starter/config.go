package main

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
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
func open(_ context.Context, config Config, log hclog.Logger) (*Acme, error) {
	var refused cloud.Refusals
	refused.Credential("api_key", config.APIKey)
	config.URL = refused.URL("url", config.URL, "https://api.example.com")
	if err := refused.Err(); err != nil {
		return nil, err
	}
	return newAcme(config, log), nil
}
