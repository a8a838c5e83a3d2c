package main

import (
	"context"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// Config is what the provider's config block may hold.
type Config struct {
	APIKey         string            `berth:"api_key,required,sensitive" env:"RUNLOOP_API_KEY" doc:"The account's API key."`
	BaseURL        string            `berth:"base_url" env:"RUNLOOP_BASE_URL" default:"https://api.runloop.ai" doc:"Where the API is. http is accepted for this machine only."`
	TunnelURL      string            `berth:"tunnel_url" env:"RUNLOOP_TUNNEL_URL" doc:"How a devbox's ports are reached, with {port} and {key} in it. Default: https://{port}-{key}.tunnel.DOMAIN, where DOMAIN is the API's host without its leading api."`
	Blueprint      string            `berth:"blueprint" doc:"Name of the blueprint that devboxes are made from: its latest build that succeeded. Without blueprint, blueprint_id and snapshot_id it is Runloop's default image."`
	BlueprintID    string            `berth:"blueprint_id" doc:"Id of one build of a blueprint, instead of blueprint."`
	SnapshotID     string            `berth:"snapshot_id" doc:"Id of a disk snapshot that devboxes start from, instead of a blueprint."`
	Size           string            `berth:"size" oneof:"X_SMALL,SMALL,MEDIUM,LARGE,X_LARGE,XX_LARGE" doc:"How large a devbox is. Default: the blueprint's, or SMALL."`
	Architecture   string            `berth:"architecture" oneof:"x86_64,arm64" doc:"The processor. Default: the blueprint's, or x86_64."`
	User           string            `berth:"user" doc:"Who runs the server, as NAME:UID, such as root:0. Default: the blueprint's user, or user."`
	LaunchCommands []string          `berth:"launch_commands" doc:"Shell commands run at every start of a devbox, also when it is woken, before it counts as running."`
	Secrets        map[string]string `berth:"secrets" doc:"Environment variables of the devbox that take the value of one of the account's secrets: variable = name of the secret."`
	NetworkPolicy  string            `berth:"network_policy_id" doc:"Id of the network policy for devboxes."`
	Tunnel         string            `berth:"tunnel" default:"authenticated" oneof:"authenticated,open" doc:"authenticated: only who sends the token that berth hands out reaches a devbox's ports. open: anybody who knows the URL."`
	KeepAlive      bool              `berth:"http_keep_alive" default:"true" doc:"Whether requests through the tunnel put off the end of the devbox's life, and its idleness."`
	IdleTimeout    time.Duration     `berth:"idle_timeout" doc:"Suspend or end a devbox after this long without use. It takes the place of the lifetime. Default: off, the lifetime counts."`
	OnIdle         string            `berth:"on_idle" default:"suspend" oneof:"suspend,shutdown" doc:"What idle_timeout does. A suspended devbox keeps its disk, which costs until it is destroyed."`
}

// launchUser is user_parameters of the API.
type launchUser struct {
	Name string `json:"username"`
	UID  int    `json:"uid"`
}

// open checks the configuration. It asks the cloud nothing.
func open(_ context.Context, config Config, log hclog.Logger) (*Runloop, error) {
	config.APIKey = strings.TrimSpace(config.APIKey)
	if config.APIKey == "" || strings.ContainsAny(config.APIKey, "\r\n\t ") {
		return nil, provider.InvalidField("api_key", "must be a key as Runloop's dashboard shows it: not empty, without spaces")
	}
	base, err := baseURL(config.BaseURL)
	if err != nil {
		return nil, err
	}
	template, err := tunnelTemplate(config.TunnelURL, base)
	if err != nil {
		return nil, err
	}
	var user *launchUser
	if config.User != "" {
		if user, err = userOf(config.User); err != nil {
			return nil, err
		}
	}
	images := slices.DeleteFunc([]string{config.Blueprint, config.BlueprintID, config.SnapshotID}, func(s string) bool { return s == "" })
	if len(images) > 1 {
		return nil, provider.InvalidField("blueprint", "give only one of blueprint, blueprint_id and snapshot_id")
	}
	if config.IdleTimeout > 0 && config.IdleTimeout < time.Minute {
		return nil, provider.InvalidField("idle_timeout", "must be at least 1m")
	}
	return &Runloop{
		config: config, user: user, tunnelURL: template, log: log,
		api: newAPI(base, config.APIKey, log), probe: provider.NewProbeClient(), timing: realTiming,
		watched: map[string]*watch{},
	}, nil
}

func baseURL(text string) (*url.URL, error) {
	base, err := url.Parse(strings.TrimRight(strings.TrimSpace(text), "/"))
	switch {
	case err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" || base.User != nil || base.RawQuery != "":
		return nil, provider.InvalidField("base_url", "must be a URL such as https://api.runloop.ai")
	case base.Scheme == "http" && !thisMachine(base.Hostname()):
		return nil, provider.InvalidField("base_url", "must be https: the API key would be sent in the clear")
	}
	return base, nil
}

func thisMachine(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

// tunnelTemplate derives the domain of the tunnels from the API's: there are others than runloop.ai.
func tunnelTemplate(text string, base *url.URL) (string, error) {
	if text == "" {
		return "https://{port}-{key}.tunnel." + strings.TrimPrefix(base.Hostname(), "api."), nil
	}
	sample, err := url.Parse(fillTunnel(text, 8000, "key"))
	if err != nil || sample.Host == "" || sample.Scheme != "https" && sample.Scheme != "http" ||
		!strings.Contains(text, "{port}") || !strings.Contains(text, "{key}") {
		return "", provider.InvalidField("tunnel_url", "must be a URL with {port} and {key} in it")
	}
	if sample.Scheme == "http" && !thisMachine(sample.Hostname()) {
		return "", provider.InvalidField("tunnel_url", "must be https: the tunnel's token would be sent in the clear")
	}
	return strings.TrimRight(text, "/"), nil
}

func fillTunnel(template string, port int, key string) string {
	return strings.NewReplacer("{port}", strconv.Itoa(port), "{key}", key).Replace(template)
}

var userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

func userOf(text string) (*launchUser, error) {
	name, number, _ := strings.Cut(text, ":")
	uid, err := strconv.ParseUint(number, 10, 31)
	if err != nil || !userName.MatchString(name) {
		return nil, provider.InvalidField("user", "must be NAME:UID, such as root:0")
	}
	return &launchUser{Name: name, UID: int(uid)}, nil
}
