package main

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	modal "github.com/modal-labs/modal-client/go"

	"github.com/berth-dev/berth/shared/provider"
)

// Modal gets sandboxes from Modal. Everything it needs is in the cloud: a session's sandbox has a name that any process
// derives from owner and session, and the cloud keeps the names of an app's running sandboxes unique.
//
// The server is not the sandbox's own command but is run in it afterwards: so it can be started again, and its exit code
// and log can be read when it has ended.
type Modal struct {
	config Config
	log    hclog.Logger
	client *modal.Client
	probe  *http.Client
	pace   pace

	mutex sync.Mutex
	held  map[string]*modal.Sandbox // by id: those of which the way to their worker is known
	looks map[string]look           // by id: those whose server does not answer
}

func newModal(config Config, log hclog.Logger, pace pace) (*Modal, error) {
	client, err := newClient(config, log, pace)
	if err != nil {
		return nil, provider.Errorf(provider.CodeInvalid, "Modal's client cannot be set up: %w", err)
	}
	return &Modal{
		config: config, log: log, client: client, probe: provider.NewProbeClient(), pace: pace,
		held: map[string]*modal.Sandbox{}, looks: map[string]look{},
	}, nil
}

// Close lets go of all connections.
func (m *Modal) Close() error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	for id, handle := range m.held {
		_ = handle.Detach()
		delete(m.held, id)
	}
	m.client.Close()
	m.probe.CloseIdleConnections()
	return nil
}

// Create makes the session's sandbox, or adopts the one that has its name. The name is what keeps a second one from
// being made; a call whose answer was lost is settled by looking the name up.
func (m *Modal) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	c := creation{Modal: m, name: provider.SandboxName(req.Owner, req.Session), req: req}
	found, err := c.claim(ctx)
	if err != nil {
		return provider.Sandbox{}, c.undo(ctx, err)
	}
	if err := found.owned(req.Owner, req.Session); err != nil {
		return provider.Sandbox{}, err
	}
	sandbox := found.describe()
	sandbox.Origin = provider.OriginAttached
	if c.made {
		sandbox.Origin = provider.OriginCreated
	}
	return sandbox, nil
}

// Attach finds the session's sandbox by its name. There is nothing to wake: a sandbox runs, or it has ended for good.
func (m *Modal) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	found, err := m.lookUp(ctx, provider.SandboxName(req.Owner, req.Session))
	if provider.CodeOf(err) == provider.CodeNotFound {
		if req.SandboxID != "" {
			return provider.Sandbox{}, gone(req.SandboxID)
		}
		return provider.Sandbox{}, provider.Errorf(provider.CodeNotFound, "session %q has no running sandbox in Modal", req.Session)
	}
	if err != nil {
		return provider.Sandbox{}, err
	}
	if err := found.owned(req.Owner, req.Session); err != nil {
		return provider.Sandbox{}, err
	}
	sandbox := found.describe()
	sandbox.Origin = provider.OriginAttached
	if endpoints, err := m.endpoints(ctx, found.id, req.Server); err == nil {
		sandbox.Endpoints = &endpoints
	}
	return sandbox, nil
}

// StartServer starts the server unless one runs on its port. The running one stays, whatever its command.
func (m *Modal) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	command, env, err := m.commandOf(req.Server)
	if err != nil {
		return provider.Endpoints{}, err
	}
	if err := m.hold(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID}); err != nil {
		return provider.Endpoints{}, err
	}
	script := startScript(m.portOf(req.Server), m.pace.second, req.Server.Workdir, command, env)
	lines, err := m.run(ctx, req.SandboxID, "starting the server", script, wrapped(env))
	if err != nil {
		return provider.Endpoints{}, m.explainSilence(ctx, req.SandboxID, err)
	}
	if said := read(lines); said.exited {
		exited := provider.ServerExited(said.code, said.log)
		exited.SandboxID = req.SandboxID
		return provider.Endpoints{}, exited
	}
	return m.endpoints(ctx, req.SandboxID, req.Server)
}

// portOf is the port that the server gets, which is always the one it asks for.
func (m *Modal) portOf(server provider.Server) int {
	if server.Port == 0 {
		return m.config.Port
	}
	return server.Port
}

// endpoints asks where the server and the extra ports are reached.
func (m *Modal) endpoints(ctx context.Context, id string, server provider.Server) (provider.Endpoints, error) {
	endpoint := m.tokenEndpoint
	if m.config.Public {
		tunnels, err := m.tunnels(ctx, id, append(extras(server), m.portOf(server)))
		if err != nil {
			return provider.Endpoints{}, err
		}
		endpoint = func(_ context.Context, _ string, port int) (provider.Endpoint, error) {
			return provider.Endpoint{URL: tunnels[port].URL()}, nil
		}
	}
	own, err := endpoint(ctx, id, m.portOf(server))
	if err != nil {
		return provider.Endpoints{}, err
	}
	endpoints := provider.Endpoints{Server: own, Extra: map[string]provider.Endpoint{}}
	for name, port := range server.ExtraPorts {
		if endpoints.Extra[name], err = endpoint(ctx, id, port); err != nil {
			return provider.Endpoints{}, err
		}
	}
	return endpoints, nil
}

func extras(server provider.Server) []int {
	var ports []int
	for _, port := range server.ExtraPorts {
		ports = append(ports, port)
	}
	return ports
}

// tokenEndpoint makes a token that opens one port.
func (m *Modal) tokenEndpoint(ctx context.Context, id string, port int) (provider.Endpoint, error) {
	access, err := patiently(ctx, m, m.pace.call, "making a token for the server's port", func(ctx context.Context) (*modal.SandboxCreateConnectCredentials, error) {
		return m.handle(ctx, id).CreateConnectToken(ctx, &modal.SandboxCreateConnectTokenParams{Port: port})
	})
	if err != nil {
		return provider.Endpoint{}, m.explainSilence(ctx, id, err)
	}
	address, err := url.Parse(strings.TrimRight(access.URL, "/"))
	if err != nil || address.Host == "" || address.Scheme != "https" && address.Scheme != "http" || access.Token == "" {
		return provider.Endpoint{}, provider.Errorf(provider.CodeFailed, "the cloud gave no proper URL and token for port %d", port)
	}
	return provider.Endpoint{URL: address.String(), Headers: map[string]string{"Authorization": "Bearer " + access.Token}}, nil
}

// tunnels asks for the public addresses of ports. Each try uses a new handle: one remembers an answer without tunnels for
// good, as if there were none, although the SDK reports no error then.
func (m *Modal) tunnels(ctx context.Context, id string, ports []int) (map[int]*modal.Tunnel, error) {
	wait := m.pace.retry
	for try := 1; ; try++ {
		tunnels, err := patiently(ctx, m, m.pace.call, "asking for the tunnels", func(ctx context.Context) (map[int]*modal.Tunnel, error) {
			handle, err := m.client.Sandboxes.FromID(ctx, id, nil)
			if err != nil {
				return nil, err
			}
			return handle.Tunnels(ctx, m.pace.call/2, nil)
		})
		if err != nil {
			return nil, m.explainSilence(ctx, id, err)
		}
		missing := 0
		for _, port := range ports {
			if tunnels[port] == nil {
				missing = port
			}
		}
		if missing == 0 {
			return tunnels, nil
		}
		if try >= m.pace.tries || !pause(ctx, wait) {
			return nil, m.explainSilence(ctx, id, &provider.Error{
				Code: provider.CodeState, Reason: "NO_TUNNEL", SandboxID: id,
				Message: "the sandbox has no tunnel to a port that is asked for, and gets none after it was made: disconnect the session and connect again",
			})
		}
		wait *= 2
	}
}

// holdLimit is how many ways to workers are remembered.
const holdLimit = 1000

// handle gives the SDK's handle of a sandbox: the one that knows the way to the sandbox's worker, if there is one.
func (m *Modal) handle(ctx context.Context, id string) *modal.Sandbox {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if handle := m.held[id]; handle != nil {
		return handle
	}
	handle, _ := m.client.Sandboxes.FromID(ctx, id, nil) // it asks nobody and never fails
	return handle
}

// keep remembers a handle that knows the way, unless there is one already.
func (m *Modal) keep(handle *modal.Sandbox) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if first := m.held[handle.SandboxID]; first != nil {
		if first != handle {
			_ = handle.Detach() // what it does is finished first
		}
		return
	}
	for id, other := range m.held {
		if len(m.held) < holdLimit {
			break
		}
		_ = other.Detach()
		delete(m.held, id)
	}
	m.held[handle.SandboxID] = handle
}

// knowsWay says whether programs can be run in a sandbox without asking the control plane first.
func (m *Modal) knowsWay(id string) bool {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.held[id] != nil
}

// drop forgets the way to a sandbox.
func (m *Modal) drop(id string) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if handle := m.held[id]; handle != nil {
		_ = handle.Detach()
	}
	delete(m.held, id)
}

// longestLife is the longest lifetime that the cloud gives.
const longestLife = 24 * time.Hour

// life is how long a sandbox shall run, in whole seconds: always some time, never for ever.
func life(lifetime time.Duration) time.Duration {
	if lifetime <= 0 {
		lifetime = time.Hour
	}
	return min(longestLife, (lifetime + time.Second - 1).Truncate(time.Second))
}
