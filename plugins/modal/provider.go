package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	modal "github.com/modal-labs/modal-client/go"
	pb "github.com/modal-labs/modal-client/go/proto/modal_proto"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// Modal gets sandboxes from Modal. Everything it needs is in the cloud: a session's sandbox has a name that any process
// derives from owner and session. Nothing prolongs a sandbox's life, and none is stopped and started again, so there is
// neither Renew nor Suspend.
//
// The server is not the sandbox's own command but is run in it afterwards: so it can be started again, and its exit code
// and log can be read when it has ended.
type Modal struct {
	*cloud.Provider[sandbox]
	api *api
}

func newModal(config Config, log hclog.Logger, times times) (*Modal, error) {
	a, err := newAPI(config, log, times)
	if err != nil {
		return nil, err
	}
	options := cloud.Options{
		Name: "Modal", Port: config.Port, Times: times.Times, Log: log,
		UniqueNames: true, // among the running sandboxes of an app
		Stay:        true, // so that the server is part of a program which the cloud runs and knows of
	}
	return &Modal{cloud.New(&sandboxes{a, config}, options), a}, nil
}

// sandboxes is the cloud as the kit knows clouds.
type sandboxes struct {
	api    *api
	config Config
}

// Describe returns a sandbox as the host knows sandboxes: one runs, or it has ended for good.
func (*sandboxes) Describe(s sandbox) provider.Sandbox {
	labels := maps.Clone(s.tags)
	delete(labels, tagCreated)
	delete(labels, tagExpires)
	described := provider.Sandbox{
		ID: s.id, State: provider.StateRunning, Detail: "running", Labels: labels, CreatedAt: s.created, ExpiresAt: s.expires,
		Session: s.tags[provider.LabelSession], Owner: s.tags[provider.LabelOwner], Attempt: s.tags[provider.LabelAttempt],
	}
	if s.result != nil {
		described.State, described.Detail = provider.StateGone, ending(s.result)
	}
	return described
}

// ending describes how a sandbox ended.
func ending(result *pb.GenericResult) string {
	switch result.GetStatus() {
	case pb.GenericResult_GENERIC_STATUS_SUCCESS, pb.GenericResult_GENERIC_STATUS_FAILURE:
		return fmt.Sprintf("its own command exited with code %d", result.GetExitcode())
	case pb.GenericResult_GENERIC_STATUS_TERMINATED:
		return "it was terminated"
	case pb.GenericResult_GENERIC_STATUS_TIMEOUT:
		return "its lifetime was over"
	case pb.GenericResult_GENERIC_STATUS_IDLE_TIMEOUT:
		return "it was idle for too long"
	case pb.GenericResult_GENERIC_STATUS_MEMORY_MANAGER_EVICTION:
		return "it was evicted for want of memory"
	}
	word := strings.ToLower(strings.TrimPrefix(result.GetStatus().String(), "GENERIC_STATUS_"))
	if result.GetException() != "" {
		word += ": " + result.GetException()
	}
	return word
}

// Look finds a sandbox by its id.
func (c *sandboxes) Look(ctx context.Context, id string) (sandbox, error) { return c.api.get(ctx, id) }

// Find finds the session's sandbox by its name. The name of one that ended a moment ago may still be found: its state tells.
func (c *sandboxes) Find(ctx context.Context, owner, session string) ([]sandbox, error) {
	id, err := c.api.named(ctx, provider.SandboxName(owner, session))
	var found sandbox
	if err == nil {
		found, err = c.api.get(ctx, id)
	}
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	}
	return []sandbox{found}, nil
}

// List lists by tags.
func (c *sandboxes) List(ctx context.Context, req provider.ListRequest) ([]sandbox, error) {
	tags := map[string]string{}
	if !req.AllOwners {
		tags[provider.LabelOwner] = req.Owner
	}
	if req.Session != "" {
		tags[provider.LabelSession] = req.Session
	}
	return c.api.list(ctx, tags)
}

// Make creates a sandbox, after the app and the image it needs.
func (c *sandboxes) Make(ctx context.Context, name string, req provider.CreateRequest) (sandbox, error) {
	app, err := c.api.app(ctx)
	var image *modal.Image
	if err == nil {
		image, err = c.api.image(ctx, app)
	}
	if err != nil {
		return sandbox{}, cloud.NotAsked(missing(err))
	}
	made, err := c.api.create(ctx, app, image, c.params(name, req))
	return made, missing(err)
}

// missing keeps "not found" for sandboxes: what is missing while one is made is an app, an image or an environment.
func missing(err error) error {
	if provider.CodeOf(err) != provider.CodeNotFound {
		return err
	}
	e := *provider.AsError(err)
	e.Code = provider.CodeInvalid
	return &e
}

// sleep is the sandbox's own command. It outlasts the longest lifetime. It is always given: what an image's ENTRYPOINT does
// to a sandbox without a command is not documented.
var sleep = []string{"sleep", "100000"}

func (c *sandboxes) params(name string, req provider.CreateRequest) *modal.SandboxCreateParams {
	now, timeout := time.Now(), life(req.Lifetime)
	tags := req.AllLabels()
	tags[tagCreated] = strconv.FormatInt(now.Unix(), 10)
	tags[tagExpires] = strconv.FormatInt(now.Add(timeout).Unix(), 10)
	params := &modal.SandboxCreateParams{
		Name: name, Tags: tags, Command: sleep, Timeout: timeout, IdleTimeout: c.config.IdleAfter,
		CPU: c.config.CPU, MemoryMiB: c.config.Memory, Regions: c.config.Regions, BlockNetwork: c.config.BlockNetwork,
	}
	if len(c.config.AllowNetworks) > 0 {
		params.OutboundCIDRAllowlist = &modal.Allowlist{Entries: c.config.AllowNetworks}
	}
	if c.config.Public { // tunnels cannot be added later
		ports := append(slices.Collect(maps.Values(req.Server.ExtraPorts)), cmp.Or(req.Server.Port, c.config.Port))
		slices.Sort(ports)
		params.EncryptedPorts = slices.Compact(ports)
	}
	return params
}

// longestLife is the longest lifetime that the cloud gives.
const longestLife = 24 * time.Hour

// life returns how long a sandbox runs, in whole seconds. Without a timeout the cloud would end it after five minutes.
func life(lifetime time.Duration) time.Duration {
	return min(longestLife, (lifetime + time.Second - 1).Truncate(time.Second))
}

// Wake is never asked for: no sandbox is suspended.
func (*sandboxes) Wake(_ context.Context, s sandbox, _ time.Duration) (sandbox, error) {
	return s, cloud.Gone(s.id, "nothing wakes a sandbox of Modal")
}

// connectToken is what can be the value of a cookie.
var connectToken = regexp.MustCompile(`^[!#-+\--:<-\[\]-~]+$`)

// Endpoints returns public tunnels if the configuration asks for them, and else URLs with a token each. A token opens one
// port, which need not be declared when the sandbox is made.
func (c *sandboxes) Endpoints(ctx context.Context, s sandbox, ports []int) (map[int]provider.Endpoint, error) {
	endpoints := map[int]provider.Endpoint{}
	if c.config.Public {
		urls, err := c.api.tunnels(ctx, s.id, ports)
		for port, url := range urls {
			endpoints[port] = provider.Endpoint{URL: url}
		}
		return endpoints, err
	}
	for _, port := range ports {
		access, err := c.api.token(ctx, s.id, port)
		if err != nil {
			return nil, err
		}
		url, err := cloud.PortURL(access.URL)
		if err != nil {
			return nil, err
		}
		if !connectToken.MatchString(access.Token) { // without one the URL would have to be public
			return nil, provider.Errorf(provider.CodeFailed, "the cloud gave no usable token for port %d", port)
		}
		endpoints[port] = provider.Endpoint{URL: url, Headers: map[string]string{tokenHeader: "_modal_connect_token=" + access.Token}}
	}
	return endpoints, nil
}

// tokenHeader carries the connect token, as a cookie. Authorization, where the cloud takes it as well, is the server's own.
const tokenHeader = "Cookie"

// Run runs a script in a sandbox. The environment travels in the protocol's own field for it.
func (c *sandboxes) Run(ctx context.Context, s sandbox, script cloud.Script) (string, error) {
	return c.api.run(ctx, s.id, script)
}

// Remove terminates a sandbox.
func (c *sandboxes) Remove(ctx context.Context, s sandbox) error {
	err := c.api.terminate(ctx, s.id)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	return err
}
