package main

import (
	"context"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
)

// Config is what the provider's config block may hold.
type Config struct {
	TokenID       string        `berth:"token_id,required" env:"MODAL_TOKEN_ID" doc:"The id of a token of a workspace, which begins with ak-."`
	TokenSecret   string        `berth:"token_secret,required,sensitive" env:"MODAL_TOKEN_SECRET" doc:"The token's secret, which begins with as-."`
	ServerURL     string        `berth:"server_url" default:"https://api.modal.com:443" env:"MODAL_SERVER_URL" doc:"Where the control plane is. Plain http only on this machine, because the secret goes with every call."`
	Environment   string        `berth:"environment" env:"MODAL_ENVIRONMENT" doc:"The environment of the workspace. Default: the workspace's own."`
	App           string        `berth:"app" default:"berth" doc:"The app that the sandboxes are made in. It is made if it is missing. Sandboxes of another app are not found."`
	Image         string        `berth:"image" default:"debian:12-slim" doc:"The image of a public registry that sandboxes are made of. It needs a shell (sh) and the usual small tools, besides the server."`
	Setup         []string      `berth:"setup" doc:"Lines of a Dockerfile to put after the image, such as RUN pip install x. The cloud builds the outcome once and keeps it. COPY from this machine is not possible."`
	CPU           float64       `berth:"cpu" doc:"Cores, or a fraction. Default: the cloud's, an eighth."`
	Memory        int           `berth:"memory" doc:"MiB of memory. Default: the cloud's, 128."`
	Regions       []string      `berth:"regions" doc:"The regions to choose from, which may cost more. Default: all."`
	IdleAfter     time.Duration `berth:"idle_after" doc:"Give the sandbox up when nothing happens in it for so long, in whole seconds. A running server counts as something. Default: never before the end of its lifetime."`
	Port          int           `berth:"port" default:"8000" doc:"The port of a server that asks for none."`
	Public        bool          `berth:"public" default:"false" doc:"Let everybody who knows a URL reach the server's ports, through a tunnel, instead of only those with a token. It cannot be changed for a sandbox that exists."`
	BlockNetwork  bool          `berth:"block_network" default:"false" doc:"Let nothing in the sandbox reach out. Goes without public."`
	AllowNetworks []string      `berth:"allow_networks" doc:"The networks the sandbox may reach, such as 208.80.154.232/32; no others. Default: all."`
}

// open makes the provider from its configuration. It asks the cloud nothing.
func open(_ context.Context, config Config, log hclog.Logger) (*Modal, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	return newModal(config, log, normalTimes)
}

var appName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// check refuses what the cloud would refuse, and what would not mean what it says. All of it at once.
func (c *Config) check() error {
	var refused cloud.Refusals
	// The SDK notices missing credentials only at the first call.
	for name, value := range map[string]string{"token_id": c.TokenID, "token_secret": c.TokenSecret} {
		if value == "" {
			refused.Add(name, "is missing: set it, or the environment variable MODAL_%s; modal.com/settings/tokens makes tokens", strings.ToUpper(name))
		}
		refused.Credential(name, value)
	}
	c.ServerURL = serverURL(&refused, c.ServerURL)
	if !appName.MatchString(c.App) {
		refused.Add("app", "must be 1 to 64 letters, digits, dashes, dots and underscores")
	}
	if c.Image == "" || strings.ContainsAny(c.Image, " \t\r\n") {
		refused.Add("image", "must be one image, such as python:3.13-slim")
	}
	if slices.ContainsFunc(c.Setup, notALayer) {
		refused.Add("setup", "must be single lines of a Dockerfile, without FROM and without COPY from this machine")
	}
	if c.CPU < 0 || c.CPU > 1024 {
		refused.Add("cpu", "must be more than 0")
	}
	if c.Memory < 0 || c.Memory > 1<<24 {
		refused.Add("memory", "must be a whole number from 1 on")
	}
	if c.IdleAfter < 0 || c.IdleAfter%time.Second != 0 || c.IdleAfter > longestLife {
		refused.Add("idle_after", "must be whole seconds, 24 hours at most")
	}
	refused.Port("port", c.Port)
	refused.Networks("allow_networks", c.AllowNetworks)
	if c.BlockNetwork && len(c.AllowNetworks) > 0 {
		refused.Add("allow_networks", "goes without block_network: choose one of them")
	}
	if c.BlockNetwork && c.Public {
		refused.Add("public", "goes without block_network: tunnels need the network")
	}
	return refused.Err()
}

// notALayer reports whether a line of a Dockerfile cannot be put after an image. The SDK sends no files.
func notALayer(line string) bool {
	word := strings.ToUpper(strings.TrimSpace(line))
	return strings.ContainsAny(line, "\r\n") || strings.HasPrefix(word, "FROM ") ||
		strings.HasPrefix(word, "COPY ") && !strings.HasPrefix(word, "COPY --FROM=")
}

// serverURL checks the control plane's URL and returns it in the form that the SDK needs, which takes a slash at the end
// for a part of the port and knows no default port.
func serverURL(refused *cloud.Refusals, value string) string {
	value = refused.URL("server_url", value, "https://api.modal.com:443")
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		return value
	}
	if u.Path != "" {
		refused.Add("server_url", "must have no path")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(u.Hostname(), port)
}
