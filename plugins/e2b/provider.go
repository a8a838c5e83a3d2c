package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/plugins/e2b/envd"
	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// labelName is the metadata entry by which a session's sandbox is found: E2B has no names. Its value is safe in every
// encoding.
const labelName = "berth-name"

// labelGeneration is the metadata entry of a sandbox that was made in the first generation of the API.
const labelGeneration = "berth-api"

const (
	// trafficHeader carries the token that opens a sandbox's ports.
	trafficHeader = "e2b-traffic-access-token"
	// idHeader and portHeader say at a sandbox_url which sandbox and which of its ports a request is for.
	idHeader   = "E2b-Sandbox-Id"
	portHeader = "E2b-Sandbox-Port"
)

// E2B makes sandboxes at E2B. It keeps nothing of a session in memory that is not in the sandbox's metadata too.
type E2B struct {
	*cloud.Provider[sandbox] // the contract, all of it but what housekeeping.go adds
	cluster                  *cluster
}

func newE2B(config Config, log hclog.Logger, times cloud.Times) *E2B {
	c := &cluster{config: config, api: newAPI(config, log, times.Retry), envd: newEnvdClient()}
	return &E2B{cloud.New(c, cloud.Options{Name: "E2B", Log: log, Times: times}), c}
}

// cluster is E2B, or a cluster of one's own, as the kit knows clouds.
type cluster struct {
	config Config
	api    *api
	envd   *http.Client
}

// Describe maps E2B's words to the contract's.
func (c *cluster) Describe(s sandbox) provider.Sandbox {
	described := provider.Sandbox{
		ID: s.ID, State: provider.StateUnknown, Detail: s.State, Labels: map[string]string{}, CreatedAt: s.StartedAt, ExpiresAt: s.EndAt,
		Session: s.Metadata[provider.LabelSession], Owner: s.Metadata[provider.LabelOwner], Attempt: s.Metadata[provider.LabelAttempt],
	}
	for name, value := range s.Metadata {
		if name != labelName && name != labelGeneration {
			described.Labels[name] = value
		}
	}
	switch s.State {
	case stateRunning:
		described.State = provider.StateRunning
	case statePaused: // it is kept until somebody destroys it
		described.State, described.ExpiresAt = provider.StateSuspended, time.Time{}
	}
	return described
}

// Look finds a sandbox by its id.
func (c *cluster) Look(ctx context.Context, id string) (sandbox, error) {
	if !idForm.MatchString(id) {
		return sandbox{}, provider.Errorf(provider.CodeInvalid, "%.40q is not the id of a sandbox at E2B", id)
	}
	return c.api.get(ctx, id)
}

// Find finds the session's sandboxes by the name in their metadata.
func (c *cluster) Find(ctx context.Context, owner, session string) ([]sandbox, error) {
	return c.api.list(ctx, labelName, provider.SandboxName(owner, session))
}

// List lists by metadata, as far as E2B can.
func (c *cluster) List(ctx context.Context, req provider.ListRequest) ([]sandbox, error) {
	if req.AllOwners {
		return c.api.list(ctx, "", "")
	}
	return c.api.list(ctx, provider.LabelOwner, req.Owner)
}

// Make creates a sandbox, and kills it again if it turns out not to be usable.
func (c *cluster) Make(ctx context.Context, name string, req provider.CreateRequest) (sandbox, error) {
	labels := req.AllLabels()
	labels[labelName] = name
	request := newSandbox{
		TemplateID: c.config.Template, Timeout: seconds(req.Lifetime), Metadata: labels, AutoPause: c.config.OnTimeout == "pause",
	}
	request.Network.AllowPublicTraffic = c.config.Public
	if !c.config.Internet {
		request.Internet = new(bool)
	}
	sum := sha256.Sum256([]byte(req.Owner + "\x00" + req.Session + "\x00" + req.Attempt))
	made, err := c.api.create(ctx, request, "berth-"+hex.EncodeToString(sum[:16]))
	if err != nil {
		return sandbox{}, err
	}
	if unusable := c.check(made); unusable != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cloud.DefaultTimes.Undo)
		defer cancel()
		if err := c.api.kill(ctx, made.ID); err != nil {
			unusable.Message += fmt.Sprintf("; and removing the sandbox %s again failed: %v", made.ID, err)
		}
		return sandbox{}, unusable
	}
	return made, nil
}

// check refuses a sandbox that was opened and cannot be used.
func (c *cluster) check(s sandbox) *provider.Error {
	switch {
	case tooOld(s.EnvdVersion):
		return provider.Errorf(provider.CodeFailed, "the sandbox's template has envd %s, which is too old: build it anew", s.EnvdVersion)
	case s.TrafficToken == "" && !c.config.Public:
		return provider.Errorf(provider.CodeFailed, "the ports of the sandbox %s are open to anybody who knows its URL: it was made so, or "+
			"this cluster has no traffic tokens. Destroy it, or accept it with public = true", s.ID)
	}
	return nil
}

// Wake connects to a paused sandbox.
func (c *cluster) Wake(ctx context.Context, s sandbox, lifetime time.Duration) (sandbox, error) {
	s, _, err := c.connect(ctx, s, lifetime)
	return s, err
}

// Found connects to a running sandbox: nothing else tells the token for its ports.
func (c *cluster) Found(ctx context.Context, s sandbox, woken bool, lifetime time.Duration) (sandbox, bool, error) {
	if woken { // and so connected to
		return s, true, nil
	}
	return c.connect(ctx, s, lifetime)
}

func (c *cluster) connect(ctx context.Context, s sandbox, lifetime time.Duration) (sandbox, bool, error) {
	s, woken, err := c.api.connect(ctx, s, lifetime)
	if err != nil {
		return s, false, err
	}
	if unusable := c.check(s); unusable != nil {
		return s, false, unusable
	}
	return s, woken, nil
}

// Endpoints returns URLs that follow from the sandbox's id.
func (c *cluster) Endpoints(ctx context.Context, s sandbox, ports []int) (map[int]provider.Endpoint, error) {
	if !s.opened {
		var err error
		// Its life ends no sooner for a second.
		if s, _, err = c.connect(ctx, s, time.Second); err != nil {
			return nil, err
		}
	}
	endpoints := map[int]provider.Endpoint{}
	for _, port := range ports {
		headers := map[string]string{}
		if c.config.SandboxURL != "" {
			headers[idHeader], headers[portHeader] = s.ID, strconv.Itoa(port)
		}
		if s.TrafficToken != "" {
			headers[trafficHeader] = s.TrafficToken
		}
		endpoints[port] = provider.Endpoint{URL: c.portURL(s, port), Headers: headers}
	}
	return endpoints, nil
}

// portURL is the URL of a port. The cluster that made the sandbox knows best where it is reached.
func (c *cluster) portURL(s sandbox, port int) string {
	if c.config.SandboxURL != "" {
		return c.config.SandboxURL
	}
	domain := c.config.Domain
	if hostForm.MatchString(s.Domain) {
		domain = s.Domain
	}
	return (&url.URL{Scheme: "https", Host: fmt.Sprintf("%d-%s.%s", port, s.ID, domain)}).String()
}

func (c *cluster) envdURL(s sandbox) string { return c.portURL(s, envd.Port) }

// Remove kills a sandbox, running or paused.
func (c *cluster) Remove(ctx context.Context, s sandbox) error { return c.api.kill(ctx, s.ID) }
