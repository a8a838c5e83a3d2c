package main

import (
	"context"
	"net"
	"net/url"
	"regexp"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// Config is what the provider's config block may hold.
type Config struct {
	APIKey     string `berth:"api_key,required,sensitive" env:"E2B_API_KEY" doc:"The key of the E2B team, from the dashboard. It begins with e2b_."`
	Domain     string `berth:"domain" default:"e2b.app" env:"E2B_DOMAIN" doc:"The domain of the E2B cluster. Sandboxes are reached at PORT-ID.DOMAIN."`
	APIURL     string `berth:"api_url" env:"E2B_API_URL" doc:"The control API. Default: https://api.DOMAIN."`
	SandboxURL string `berth:"sandbox_url" env:"E2B_SANDBOX_URL" doc:"One URL for all ports of all sandboxes, for clusters without a wildcard domain: headers say which sandbox and port is meant."`
	Template   string `berth:"template" default:"base" doc:"The template sandboxes are made from: an id or a name, with a tag if wanted (my-template:v2). It must contain bash and the server."`
	User       string `berth:"user" doc:"The Unix user the server runs as. Default: the template's own."`
	OnTimeout  string `berth:"on_timeout" default:"kill" oneof:"kill,pause" doc:"What happens when a sandbox's lifetime is over. kill ends it for good. pause keeps it until somebody destroys it, and the next connect wakes it."`
	Public     bool   `berth:"public" default:"false" doc:"true lets anybody who knows a sandbox's URL reach its ports. Otherwise every request needs the sandbox's own traffic token, which berth returns among the headers."`
	Internet   bool   `berth:"internet" default:"true" doc:"Whether what runs in a sandbox may reach the internet."`
}

// open checks the configuration. It asks E2B nothing.
func open(_ context.Context, config Config, log hclog.Logger) (*E2B, error) {
	if strings.TrimSpace(config.APIKey) == "" || strings.ContainsFunc(config.APIKey, notPrintable) {
		return nil, provider.InvalidField("api_key", "must be a key, without spaces or line breaks (is it empty, or read from a file with a line break at its end?)")
	}
	if !hostForm.MatchString(config.Domain) {
		return nil, provider.InvalidField("domain", "must be the name of a host, such as e2b.app, without https:// and without a path")
	}
	if config.APIURL == "" {
		config.APIURL = "https://api." + config.Domain
	}
	var err error
	if config.APIURL, err = baseURL("api_url", config.APIURL); err != nil {
		return nil, err
	}
	if config.SandboxURL != "" {
		if config.SandboxURL, err = baseURL("sandbox_url", config.SandboxURL); err != nil {
			return nil, err
		}
	}
	if inTheClear(config.APIURL) {
		log.Warn("the API key travels unencrypted: api_url is http", "api_url", config.APIURL)
	}
	return newE2B(config, log, realTimes), nil
}

func notPrintable(r rune) bool { return r <= ' ' || r > '~' }

var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?$`)

// baseURL checks a URL that paths are appended to.
func baseURL(field, text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", provider.InvalidField(field, "must be a URL such as https://api.example.com, without query and credentials")
	}
	return strings.TrimRight(u.String(), "/"), nil
}

func inTheClear(base string) bool {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.Hostname() == "localhost" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return ip == nil || !ip.IsLoopback()
}
