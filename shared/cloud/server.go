package cloud

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// StartServer is provider.Provider.StartServer. A sandbox has one server: one that runs stays, whatever its command and port.
func (p *Provider[B]) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	req.Server = p.withEnv(req.Server)
	if err := p.checkServer(req.Server); err != nil { // before anybody is called
		return provider.Endpoints{}, err
	}
	box, err := p.open(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
	if err == nil {
		err = owned(p.cloud.Describe(box), req.Owner, req.Session)
	}
	if err != nil {
		return provider.Endpoints{}, err
	}
	script, err := p.startScript(ctx, box, req.Server)
	if err != nil {
		return provider.Endpoints{}, p.explain(ctx, box, err)
	}
	said, err := p.run(ctx, box, script)
	switch {
	case err != nil:
		return provider.Endpoints{}, err
	case said.state != "running":
		return provider.Endpoints{}, said.exited(req.SandboxID)
	}
	p.noteLaunch(req.SandboxID)
	asked := p.portOf(req.Server)
	if said.port != script.port { // a server runs already, on a port of its own
		asked = said.port
	}
	return p.endpoints(ctx, box, req.Server, asked)
}

// withEnv returns a server with the variables that it gets besides its own.
func (p *Provider[B]) withEnv(server provider.Server) provider.Server {
	env := maps.Clone(p.options.Env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, server.Env)
	server.Env = env
	return server
}

// checkServer refuses a server that cannot be started.
func (p *Provider[B]) checkServer(server provider.Server) error {
	_, err := startScript(server, p.portOf(server), server.ExtraPorts, p.options.Stay)
	return err
}

// startScript is the script that starts a server on the ports it can have.
func (p *Provider[B]) startScript(ctx context.Context, box B, server provider.Server) (Script, error) {
	port, extra := p.portOf(server), server.ExtraPorts
	if granter, grants := p.cloud.(Granter[B]); grants {
		granted, err := granter.Grant(ctx, box, ports(server, port))
		if err != nil {
			return Script{}, err
		}
		port, extra = granted[port], map[string]int{}
		for name, asked := range server.ExtraPorts {
			extra[name] = granted[asked]
		}
	}
	return startScript(server, port, extra, p.options.Stay)
}

// ports are all ports of a server, each once.
func ports(server provider.Server, port int) []int {
	all := append(slices.Collect(maps.Values(server.ExtraPorts)), port)
	slices.Sort(all)
	return slices.Compact(all)
}

// portOf is the port that a server gets, which is always the one it asks for.
func (p *Provider[B]) portOf(server provider.Server) int {
	if server.Port == 0 {
		return p.options.Port
	}
	return server.Port
}

// open returns a running sandbox of the owner. It wakes nothing.
func (p *Provider[B]) open(ctx context.Context, ref provider.SandboxRef) (B, error) {
	if box, known := p.recall(ref); known {
		return box, nil
	}
	box, err := p.Own(ctx, ref)
	if err != nil {
		return box, err
	}
	if s := p.cloud.Describe(box); s.State != provider.StateRunning {
		return box, NotRunning(s)
	}
	p.remember(box)
	return box, nil
}

// endpoints returns where a server on that port and its extra ports are reached.
func (p *Provider[B]) endpoints(ctx context.Context, box B, server provider.Server, port int) (provider.Endpoints, error) {
	reached, err := p.cloud.Endpoints(ctx, box, ports(server, port))
	if err != nil {
		return provider.Endpoints{}, p.explain(ctx, box, err)
	}
	endpoints := provider.Endpoints{Server: reached[port], Extra: map[string]provider.Endpoint{}}
	for name, extra := range server.ExtraPorts {
		endpoints.Extra[name] = reached[extra]
	}
	return endpoints, nil
}

// run runs a script in a sandbox that should run, and reads what it says. It tries for a while: after a start, or on another
// machine, a sandbox cannot be reached at once.
func (p *Provider[B]) run(ctx context.Context, box B, script Script) (report, error) {
	wait := p.times.Retry.First
	for began := time.Now(); ; wait = min(2*wait, p.times.Retry.Most) {
		said, err := p.runOnce(ctx, box, script)
		if err == nil {
			return said, nil
		}
		e := provider.AsError(err)
		if !e.Retryable || e.RetryAfter > p.times.Retry.Longest || ctx.Err() != nil || time.Since(began) > p.times.Reach {
			return report{}, p.explain(ctx, box, err)
		}
		if !Pause(ctx, max(wait, e.RetryAfter)) {
			return report{}, Ended(ctx, "reaching the sandbox")
		}
	}
}

func (p *Provider[B]) runOnce(ctx context.Context, box B, script Script) (report, error) {
	within, cancel := context.WithTimeout(ctx, p.times.Script)
	defer cancel()
	output, err := p.cloud.Run(within, box, script)
	if err != nil {
		if ctx.Err() == nil && within.Err() != nil {
			return report{}, NoAnswer(ctx, "running a script in the sandbox", p.times.Script, within.Err())
		}
		return report{}, err
	}
	return script.read(output)
}

// explain looks at a sandbox with which something could not be done: it may have been stopped, or have ended.
func (p *Provider[B]) explain(ctx context.Context, box B, cause error) error {
	id := p.cloud.Describe(box).ID
	switch provider.CodeOf(cause) {
	case provider.CodeUnreachable, provider.CodeState, provider.CodeNotFound, provider.CodeFailed, provider.CodeDenied:
	default:
		return About(cause, id)
	}
	if ctx.Err() != nil {
		return About(cause, id)
	}
	p.Forget(id)
	now, err := p.cloud.Look(ctx, id)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return About(err, id)
	}
	if err == nil {
		if s := p.cloud.Describe(now); s.State != provider.StateRunning {
			return NotRunning(s)
		}
	}
	e := *provider.AsError(cause)
	e.SandboxID = id
	if e.Code == provider.CodeNotFound { // something else was not found: the sandbox is there
		e.Code, e.Retryable = provider.CodeUnreachable, true
	}
	return &e
}

// Logs is provider.LogReader.Logs. A sandbox that sleeps is not woken for it.
func (p *Provider[B]) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	box, err := p.open(ctx, req.SandboxRef)
	if err != nil || req.Lines <= 0 {
		return nil, err
	}
	said, err := p.run(ctx, box, logScript(req.Lines))
	return said.log, err
}
