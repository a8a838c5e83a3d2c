package supervise

import (
	"context"
	"time"

	"github.com/berth-dev/berth/host/fence"
	"github.com/berth-dev/berth/shared/provider"
)

// noticeGrace is how long a call that lost its connection waits for the process to be seen to have ended, which takes a
// moment longer.
const noticeGrace = time.Second

var (
	_ provider.Provider  = (*Plugin)(nil)
	_ provider.Lister    = (*Plugin)(nil)
	_ provider.Renewer   = (*Plugin)(nil)
	_ provider.Suspender = (*Plugin)(nil)
	_ provider.Destroyer = (*Plugin)(nil)
	_ provider.LogReader = (*Plugin)(nil)
)

// Describe returns the plugin's description. It starts the plugin if necessary.
func (p *Plugin) Describe(ctx context.Context) (provider.Description, error) {
	c, err := p.beginCall(ctx)
	if err != nil {
		return provider.Description{}, err
	}
	defer p.endCall()
	return c.description, nil
}

// Create implements [provider.Provider].
func (p *Plugin) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	return call(ctx, p, req, (*provider.Client).Create)
}

// Attach implements [provider.Provider].
func (p *Plugin) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	return call(ctx, p, req, (*provider.Client).Attach)
}

// StartServer implements [provider.Provider].
func (p *Plugin) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	return call(ctx, p, req, (*provider.Client).StartServer)
}

// Ping implements [provider.Provider].
func (p *Plugin) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	return call(ctx, p, req, (*provider.Client).Ping)
}

// List implements [provider.Lister]. Like every optional call it fails with CodeUnsupported if the plugin lacks it.
func (p *Plugin) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	return call(ctx, p, req, (*provider.Client).List)
}

// Renew implements [provider.Renewer].
func (p *Plugin) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	return call(ctx, p, req, (*provider.Client).Renew)
}

// Suspend implements [provider.Suspender].
func (p *Plugin) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	_, err := call(ctx, p, ref, withoutResult((*provider.Client).Suspend))
	return err
}

// Destroy implements [provider.Destroyer].
func (p *Plugin) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	_, err := call(ctx, p, ref, withoutResult((*provider.Client).Destroy))
	return err
}

// Logs implements [provider.LogReader].
func (p *Plugin) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	return call(ctx, p, req, (*provider.Client).Logs)
}

// CallJSON calls a method by name with a request in JSON: see [provider.Client.CallJSON].
func (p *Plugin) CallJSON(ctx context.Context, name string, request []byte) ([]byte, error) {
	return call(ctx, p, request, func(c *provider.Client, ctx context.Context, request []byte) ([]byte, error) {
		return c.CallJSON(ctx, name, request)
	})
}

type method[Request, Answer any] func(*provider.Client, context.Context, Request) (Answer, error)

// call passes one call on to the plugin process, starting it if necessary.
func call[Request, Answer any](ctx context.Context, p *Plugin, req Request, do method[Request, Answer]) (Answer, error) {
	var none Answer
	if p.spec.Configure == nil {
		return none, provider.Errorf(provider.CodeInternal, "plugin %q is here to be described, not to be used", p.spec.Name)
	}
	c, err := p.beginCall(ctx)
	if err != nil {
		return none, err
	}
	defer p.endCall()
	if err := fence.Check(ctx); err != nil { // starting the plugin may have taken long
		return none, err
	}
	answer, err := do(c.client, ctx, req)
	if deadline, limited := ctx.Deadline(); err != nil && limited && !time.Now().Before(deadline) {
		<-ctx.Done() // the plugin noticed the deadline first; make sure that the caller sees it too
	}
	if err != nil && c.lost(ctx, err) {
		return answer, p.crashError(c)
	}
	if ctx.Err() == nil {
		c.answered.Store(true)
	}
	return answer, err
}

func withoutResult[Request any](do func(*provider.Client, context.Context, Request) error) method[Request, struct{}] {
	return func(c *provider.Client, ctx context.Context, req Request) (struct{}, error) {
		return struct{}{}, do(c, ctx, req)
	}
}
