package main

import (
	"cmp"
	"context"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
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

// open makes the provider from its configuration. It asks the cloud nothing.
func open(_ context.Context, config Config, log hclog.Logger) (*Runloop, error) {
	config, err := config.checked()
	if err != nil {
		return nil, err
	}
	return newProvider(config, log, standardTimes), nil
}

// checked returns the configuration with its URLs filled in, or everything that is wrong with it.
func (c Config) checked() (Config, error) {
	var refused cloud.Refusals
	c.APIKey = strings.TrimSpace(c.APIKey)
	if c.APIKey == "" {
		refused.Add("api_key", "must not be empty")
	}
	refused.Credential("api_key", c.APIKey)
	c.BaseURL = refused.URL("base_url", c.BaseURL, "https://api.runloop.ai")
	if c.TunnelURL == "" {
		c.TunnelURL = tunnelsBeside(c.BaseURL)
	}
	if !strings.Contains(c.TunnelURL, "{port}") || !strings.Contains(c.TunnelURL, "{key}") {
		refused.Add("tunnel_url", "must be a URL with {port} and {key} in it")
	} else {
		refused.URL("tunnel_url", tunnelURL(c.TunnelURL, 8000, "key"), "https://{port}-{key}.tunnel.example.com")
	}
	c.TunnelURL = strings.TrimRight(strings.TrimSpace(c.TunnelURL), "/")
	if _, valid := userOf(c.User); !valid {
		refused.Add("user", "must be NAME:UID, such as root:0")
	}
	images := slices.DeleteFunc([]string{c.Blueprint, c.BlueprintID, c.SnapshotID}, func(s string) bool { return s == "" })
	if len(images) > 1 {
		refused.Add("blueprint", "must be the only one of blueprint, blueprint_id and snapshot_id")
	}
	if c.IdleTimeout != 0 && c.IdleTimeout < time.Minute {
		refused.Add("idle_timeout", "must be at least 1m")
	}
	return c, refused.Err()
}

// tunnelsBeside derives the domain of the tunnels from the API's, because there are others than runloop.ai.
func tunnelsBeside(base string) string {
	host := "runloop.ai"
	if u, err := url.Parse(base); err == nil {
		host = cmp.Or(strings.TrimPrefix(u.Hostname(), "api."), host)
	}
	return "https://{port}-{key}.tunnel." + host
}

// tunnelURL fills the template of a tunnel's URL.
func tunnelURL(template string, port int, key string) string {
	return strings.NewReplacer("{port}", strconv.Itoa(port), "{key}", key).Replace(template)
}

var userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// userOf reads NAME:UID. It returns nil for no text, which leaves the user to the blueprint.
func userOf(text string) (user *launchUser, valid bool) {
	if text == "" {
		return nil, true
	}
	name, number, _ := strings.Cut(text, ":")
	uid, err := strconv.ParseUint(number, 10, 31)
	if err != nil || !userName.MatchString(name) {
		return nil, false
	}
	return &launchUser{Name: name, UID: int(uid)}, true
}
