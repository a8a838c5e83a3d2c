package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/cloud"
	"github.com/berth-dev/berth/shared/provider"
)

// Acme makes sandboxes of the cloud's boxes. It keeps nothing of a session in memory: any process that is configured
// alike finds the same boxes.
type Acme struct {
	*cloud.Provider[box] // the contract, all of it but what housekeeping.go adds
	api                  *api
}

func newAcme(config Config, log hclog.Logger) *Acme {
	a := newAPI(config.URL, config.APIKey, log)
	// The cloud keeps names unique, which is what makes a second box for one session impossible, whoever tries.
	options := cloud.Options{Name: "acme", UniqueNames: true, Stay: true, Log: log, Times: cloud.Times{Poll: 50 * time.Millisecond}}
	return &Acme{cloud.New(&boxes{api: a, size: config.Size}, options), a}
}

// Close is called before the plugin exits.
func (a *Acme) Close() error {
	a.api.Client.CloseIdleConnections()
	return a.Provider.Close()
}

// boxes is the cloud as the kit knows clouds.
type boxes struct {
	api  *api
	size string
}

// Describe maps the cloud's words to the contract's.
func (b *boxes) Describe(it box) provider.Sandbox {
	state := provider.StateUnknown
	switch it.State {
	case "starting":
		state = provider.StateStarting
	case "running":
		state = provider.StateRunning
	case "suspended":
		state = provider.StateSuspended
	}
	return provider.Sandbox{
		ID: it.ID, State: state, Detail: it.State, Labels: it.Labels, CreatedAt: it.CreatedAt, ExpiresAt: it.ExpiresAt,
		Session: it.Labels[provider.LabelSession], Owner: it.Labels[provider.LabelOwner], Attempt: it.Labels[provider.LabelAttempt],
	}
}

// Look finds a box by its id.
func (b *boxes) Look(ctx context.Context, id string) (box, error) { return b.api.get(ctx, id) }

// Find finds the session's box by its name.
func (b *boxes) Find(ctx context.Context, owner, session string) ([]box, error) {
	found, err := b.api.get(ctx, provider.SandboxName(owner, session))
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	}
	return []box{found}, nil
}

// List lists by label, as far as the cloud can.
func (b *boxes) List(ctx context.Context, req provider.ListRequest) ([]box, error) {
	if req.AllOwners {
		return b.api.list(ctx, "", "")
	}
	return b.api.list(ctx, provider.LabelOwner, req.Owner)
}

// Make creates a box.
func (b *boxes) Make(ctx context.Context, name string, req provider.CreateRequest) (box, error) {
	return b.api.create(ctx, name, b.size, req.AllLabels(), req.Lifetime)
}

// Wake resumes a suspended box.
func (b *boxes) Wake(ctx context.Context, it box, lifetime time.Duration) (box, error) {
	return b.api.resume(ctx, it.ID, lifetime)
}

// tokenHeader opens a box's ports.
const tokenHeader = "X-Box-Token"

// Endpoints publishes ports.
func (b *boxes) Endpoints(ctx context.Context, it box, ports []int) (map[int]provider.Endpoint, error) {
	grants, err := b.publish(ctx, it, ports)
	endpoints := map[int]provider.Endpoint{}
	for port, g := range grants {
		endpoints[port] = provider.Endpoint{URL: g.URL, Headers: map[string]string{tokenHeader: g.Token}}
	}
	return endpoints, err
}

// Grant says which ports a server gets: in this cloud never those it asks for. Most clouds need no such method.
func (b *boxes) Grant(ctx context.Context, it box, ports []int) (map[int]int, error) {
	grants, err := b.publish(ctx, it, ports)
	granted := map[int]int{}
	for port, g := range grants {
		granted[port] = g.Port
	}
	return granted, err
}

// publish publishes ports under names made of their numbers.
func (b *boxes) publish(ctx context.Context, it box, ports []int) (map[int]grant, error) {
	wanted := map[string]int{}
	for _, port := range ports {
		wanted[strconv.Itoa(port)] = port
	}
	all, err := b.api.ports(ctx, it.ID, wanted)
	grants := map[int]grant{}
	for _, port := range ports {
		g, granted := all[strconv.Itoa(port)]
		if err == nil && !granted {
			err = errors.New("the cloud did not publish port " + strconv.Itoa(port))
		}
		grants[port] = g
	}
	return grants, err
}

// Run runs a script in a box.
func (b *boxes) Run(ctx context.Context, it box, script cloud.Script) (string, error) {
	return b.api.exec(ctx, it.ID, script.Argv(), script.Env)
}

// Remove destroys a box.
func (b *boxes) Remove(ctx context.Context, it box) error {
	err := b.api.destroy(ctx, it.ID)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	return err
}
