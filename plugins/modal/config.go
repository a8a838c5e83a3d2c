package main

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
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

// open checks the configuration. It asks the cloud nothing.
func open(_ context.Context, config Config, log hclog.Logger) (*Modal, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	return newModal(config, log, normalPace)
}

var objectName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// check refuses what the cloud would refuse, and what would not mean what it says. All of it at once.
func (c *Config) check() error {
	refused := &provider.Error{Code: provider.CodeInvalid, Message: "the configuration was refused"}
	refuse := func(field, message string) {
		refused.Fields = append(refused.Fields, provider.FieldError{Field: field, Message: message})
	}
	// The SDK notices missing ones only at the first call.
	for name, value := range map[string]string{"token_id": c.TokenID, "token_secret": c.TokenSecret} {
		switch {
		case value == "":
			refuse(name, "is missing: set it, or the environment variable MODAL_"+strings.ToUpper(name)+"; modal.com/settings/tokens makes tokens")
		case strings.ContainsAny(value, " \t\r\n"):
			refuse(name, "has spaces or line breaks in it")
		}
	}
	if problem := c.checkURL(); problem != "" {
		refuse("server_url", problem)
	}
	if !objectName.MatchString(c.App) {
		refuse("app", "must be 1 to 64 letters, digits, dashes, dots and underscores")
	}
	if c.Image == "" || strings.ContainsAny(c.Image, " \t\r\n") {
		refuse("image", "must be one image, such as python:3.13-slim")
	}
	for _, line := range c.Setup {
		word := strings.ToUpper(strings.TrimSpace(line))
		if strings.ContainsAny(line, "\r\n") || strings.HasPrefix(word, "COPY ") && !strings.HasPrefix(word, "COPY --FROM=") || strings.HasPrefix(word, "FROM ") {
			refuse("setup", "must be single lines of a Dockerfile, without FROM and without COPY from this machine")
			break
		}
	}
	if c.CPU < 0 || c.CPU > 1024 {
		refuse("cpu", "must be more than 0")
	}
	if c.Memory < 0 || c.Memory > 1<<24 {
		refuse("memory", "must be a whole number from 1 on")
	}
	if c.IdleAfter < 0 || c.IdleAfter%time.Second != 0 || c.IdleAfter > longestLife {
		refuse("idle_after", "must be whole seconds, 24 hours at most")
	}
	if c.Port < 1 || c.Port > 65535 {
		refuse("port", "must be between 1 and 65535")
	}
	for _, network := range c.AllowNetworks {
		if _, err := netip.ParsePrefix(network); err != nil {
			refuse("allow_networks", "must be networks such as 208.80.154.232/32")
			break
		}
	}
	if c.BlockNetwork && len(c.AllowNetworks) > 0 {
		refuse("allow_networks", "goes without block_network: choose one of them")
	}
	if c.BlockNetwork && c.Public {
		refuse("public", "goes without block_network: tunnels need the network")
	}
	if len(refused.Fields) > 0 {
		return refused
	}
	return nil
}

// checkURL brings the URL into the form that the SDK needs: it takes a slash at the end for a part of the port, and knows
// no default port.
func (c *Config) checkURL() (problem string) {
	u, err := url.Parse(strings.TrimRight(c.ServerURL, "/"))
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.Path != "" || u.RawQuery != "" {
		return "must be a URL such as https://api.modal.com:443"
	}
	if address, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (err != nil || !address.IsLoopback()) {
		return "must begin with https://: the token would travel unencrypted"
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	c.ServerURL = u.Scheme + "://" + net.JoinHostPort(u.Hostname(), port)
	return ""
}
