package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"
	"github.com/hashicorp/go-hclog"

	"github.com/berth-dev/berth/shared/provider"
)

// Daytona gets sandboxes from Daytona. Everything it knows is in the cloud: a session's sandbox has a name that any
// process derives from owner and session, and the cloud keeps names unique.
type Daytona struct {
	config Config
	log    hclog.Logger
	http   *http.Client
	api    *apiclient.APIClient
	probe  *http.Client
	pace   pace

	mutex sync.Mutex
	looks map[string]look      // by sandbox: those whose server does not answer
	woken map[string]time.Time // by sandbox: when this process woke it
}

func newDaytona(config Config, log hclog.Logger) *Daytona {
	client := newHTTPClient(log)
	return &Daytona{
		config: config, log: log, http: client, api: newAPIClient(config, client), probe: provider.NewProbeClient(),
		pace: normalPace, looks: map[string]look{}, woken: map[string]time.Time{},
	}
}

// Close lets go of idle connections.
func (d *Daytona) Close() error { //nolint:unparam // io.Closer asks for it
	d.http.CloseIdleConnections()
	d.probe.CloseIdleConnections()
	return nil
}

// Create makes the session's sandbox, or adopts the one that has its name. The name is what keeps a second one from
// being made; a call whose answer was lost is settled by looking the name up.
func (d *Daytona) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	name := provider.SandboxName(req.Owner, req.Session)
	c := creation{Daytona: d, name: name, req: req}
	sandbox, err := c.claim(ctx)
	if err != nil {
		return provider.Sandbox{}, c.undo(ctx, err)
	}
	if err := owned(sandbox, req.Owner, req.Session); err != nil {
		return provider.Sandbox{}, err
	}
	sandbox, origin, err := d.run(ctx, sandbox)
	if err != nil {
		if c.made {
			return provider.Sandbox{}, c.undo(ctx, err)
		}
		return provider.Sandbox{}, unnamed(err)
	}
	if c.made {
		origin = provider.OriginCreated
	}
	described := describe(sandbox)
	described.Origin = origin
	return described, nil
}

// unnamed takes the sandbox out of an error of Create: there it would mean that Create made it.
func unnamed(err error) error {
	e := *provider.AsError(err)
	e.SandboxID = ""
	return &e
}

// Attach finds the session's sandbox by its name and wakes it. Looking by name, unlike listing, is never behind.
func (d *Daytona) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	sandbox, err := d.get(ctx, provider.SandboxName(req.Owner, req.Session))
	if err == nil && isGone(sandbox) {
		err = gone(sandbox.Id)
	}
	if provider.CodeOf(err) == provider.CodeNotFound {
		if req.SandboxID != "" {
			return provider.Sandbox{}, gone(req.SandboxID)
		}
		return provider.Sandbox{}, provider.Errorf(provider.CodeNotFound, "session %q has no sandbox in Daytona", req.Session)
	}
	if err != nil {
		return provider.Sandbox{}, err
	}
	if err := owned(sandbox, req.Owner, req.Session); err != nil {
		return provider.Sandbox{}, err
	}
	sandbox, origin, err := d.run(ctx, sandbox)
	if err != nil {
		return provider.Sandbox{}, err
	}
	if origin == provider.OriginWoken {
		d.arm(ctx, sandbox, req.Lifetime)
	}
	described := describe(sandbox)
	described.Origin = origin
	if origin == provider.OriginAttached {
		if endpoints, err := d.endpoints(ctx, sandbox, req.Server); err == nil {
			described.Endpoints = &endpoints
		}
	}
	return described, nil
}

// arm gives a sandbox that was woken the lifetime asked for. It has one from its creation, so that this fails is no
// reason to refuse it.
func (d *Daytona) arm(ctx context.Context, sandbox *apiclient.Sandbox, lifetime time.Duration) {
	if lifetime <= 0 || sandbox.GetAutoStopInterval() == float32(minutes(lifetime)) {
		return
	}
	if err := d.setLifetime(ctx, sandbox, lifetime); err != nil {
		d.log.Warn("the lifetime of a woken sandbox stays as it was", "sandbox", sandbox.Id, "error", err)
	}
}

// StartServer starts the server unless one runs on its port. The running one stays, whatever its command.
func (d *Daytona) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	command, env, err := d.commandOf(req.Server)
	if err != nil {
		return provider.Endpoints{}, err
	}
	sandbox, err := d.hold(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
	if err != nil {
		return provider.Endpoints{}, err
	}
	if sandbox.GetState() != apiclient.SANDBOXSTATE_STARTED {
		return provider.Endpoints{}, notRunning(sandbox)
	}
	port := d.portOf(req.Server)
	report, err := d.inside(ctx, sandbox, startScript(port, d.pace.second, req.Server.Workdir, command, env), wrapped(env))
	switch {
	case err != nil:
		return provider.Endpoints{}, err
	case report.exited:
		exited := provider.ServerExited(report.code, report.log)
		exited.SandboxID = sandbox.Id
		return provider.Endpoints{}, exited
	}
	d.forget(sandbox.Id) // how an earlier server failed
	d.awaitToken(ctx, sandbox.Id)
	return d.endpoints(ctx, sandbox, req.Server)
}

// portOf is the port that the server gets, which is always the one it asks for.
func (d *Daytona) portOf(server provider.Server) int {
	if server.Port == 0 {
		return d.config.Port
	}
	return server.Port
}

// awaitToken waits until the token that a start replaced is no longer given out: the cloud remembers it for a second.
func (d *Daytona) awaitToken(ctx context.Context, id string) {
	d.mutex.Lock()
	woken, recently := d.woken[id]
	delete(d.woken, id)
	d.mutex.Unlock()
	if recently {
		pause(ctx, d.pace.token-time.Since(woken))
	}
}

// The headers of a private sandbox's URLs. The second keeps the proxy from answering 200 with a page that warns people.
const (
	tokenHeader = "X-Daytona-Preview-Token"
	plainHeader = "X-Daytona-Skip-Preview-Warning"
)

// endpoints asks where the server and the extra ports are reached. The token changes whenever the sandbox is started.
func (d *Daytona) endpoints(ctx context.Context, sandbox *apiclient.Sandbox, server provider.Server) (provider.Endpoints, error) {
	own, err := d.endpoint(ctx, sandbox, d.portOf(server))
	if err != nil {
		return provider.Endpoints{}, err
	}
	endpoints := provider.Endpoints{Server: own, Extra: map[string]provider.Endpoint{}}
	for name, port := range server.ExtraPorts {
		if endpoints.Extra[name], err = d.endpoint(ctx, sandbox, port); err != nil {
			return provider.Endpoints{}, err
		}
	}
	return endpoints, nil
}

func (d *Daytona) endpoint(ctx context.Context, sandbox *apiclient.Sandbox, port int) (provider.Endpoint, error) {
	preview, err := patiently(ctx, d, fmt.Sprintf("asking for the URL of port %d", port),
		func(ctx context.Context) (*apiclient.PortPreviewUrl, *http.Response, error) {
			return d.api.SandboxAPI.GetPortPreviewUrl(ctx, sandbox.Id, float32(port)).Execute()
		})
	if err != nil {
		return provider.Endpoint{}, aboutSandbox(err, sandbox.Id)
	}
	address, err := cleanURL(preview.Url)
	if err != nil {
		return provider.Endpoint{}, err
	}
	if sandbox.Public { // no header: nothing protects the URL, and it must not look as if
		return provider.Endpoint{URL: address}, nil
	}
	if preview.Token == "" {
		return provider.Endpoint{}, provider.Errorf(provider.CodeFailed, "the cloud gave no token for the private URL of port %d", port)
	}
	return provider.Endpoint{URL: address, Headers: map[string]string{tokenHeader: preview.Token, plainHeader: "true"}}, nil
}
