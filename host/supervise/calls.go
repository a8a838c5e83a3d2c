package supervise

import (
	"context"
	"time"

	"github.com/berth-dev/berth/host/fence"
	"github.com/berth-dev/berth/shared/provider"
)

// noticeGrace is how long a call that lost its connection waits to learn that the process ended: the one is noticed a
// moment before the other.
const noticeGrace = time.Second

var (
	_ provider.Provider  = (*Plugin)(nil)
	_ provider.Lister    = (*Plugin)(nil)
	_ provider.Renewer   = (*Plugin)(nil)
	_ provider.Suspender = (*Plugin)(nil)
	_ provider.Destroyer = (*Plugin)(nil)
	_ provider.LogReader = (*Plugin)(nil)
)

// Describe says what the plugin is and can do, starting it if necessary.
func (p *Plugin) Describe(ctx context.Context) (provider.Description, error) {
	r, err := p.acquire(ctx)
	if err != nil {
		return provider.Description{}, err
	}
	defer p.release()
	return r.description, nil
}

// Create is provider.Provider's.
func (p *Plugin) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	return call(ctx, p, req, (*provider.Client).Create)
}

// Attach is provider.Provider's.
func (p *Plugin) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	return call(ctx, p, req, (*provider.Client).Attach)
}

// StartServer is provider.Provider's.
func (p *Plugin) StartServer(ctx context.Context, req provider.StartServerRequest) (provider.Endpoints, error) {
	return call(ctx, p, req, (*provider.Client).StartServer)
}

// Ping is provider.Provider's.
func (p *Plugin) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	return call(ctx, p, req, (*provider.Client).Ping)
}

// List is provider.Lister's. Like all optional calls it answers CodeUnsupported where the plugin lacks it.
func (p *Plugin) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	return call(ctx, p, req, (*provider.Client).List)
}

// Renew is provider.Renewer's.
func (p *Plugin) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	return call(ctx, p, req, (*provider.Client).Renew)
}

// Suspend is provider.Suspender's.
func (p *Plugin) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	_, err := call(ctx, p, ref, withoutAnswer((*provider.Client).Suspend))
	return err
}

// Destroy is provider.Destroyer's.
func (p *Plugin) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	_, err := call(ctx, p, ref, withoutAnswer((*provider.Client).Destroy))
	return err
}

// Logs is provider.LogReader's.
func (p *Plugin) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	return call(ctx, p, req, (*provider.Client).Logs)
}

// CallJSON is provider.Client's.
func (p *Plugin) CallJSON(ctx context.Context, name string, request []byte) ([]byte, error) {
	return call(ctx, p, request, func(c *provider.Client, ctx context.Context, request []byte) ([]byte, error) {
		return c.CallJSON(ctx, name, request)
	})
}

type method[Request, Answer any] func(*provider.Client, context.Context, Request) (Answer, error)

// call passes one call on to the process.
func call[Request, Answer any](ctx context.Context, p *Plugin, req Request, do method[Request, Answer]) (Answer, error) {
	var none Answer
	if p.spec.Configure == nil {
		return none, provider.Errorf(provider.CodeInternal, "plugin %q is here to be described, not to be used", p.spec.Name)
	}
	r, err := p.acquire(ctx)
	if err != nil {
		return none, err
	}
	defer p.release()
	if err := fence.Check(ctx); err != nil { // the plugin's start may have taken long
		return none, err
	}
	answer, err := do(r.client, ctx, req)
	if deadline, limited := ctx.Deadline(); err != nil && limited && !time.Now().Before(deadline) {
		<-ctx.Done() // the plugin noticed the deadline first: the caller must be able to see it, too
	}
	if err != nil && r.lost(ctx, err) {
		return answer, p.crashError(r)
	}
	if ctx.Err() == nil {
		r.answered.Store(true)
	}
	return answer, err
}

func withoutAnswer[Request any](do func(*provider.Client, context.Context, Request) error) method[Request, struct{}] {
	return func(c *provider.Client, ctx context.Context, req Request) (struct{}, error) {
		return struct{}{}, do(c, ctx, req)
	}
}
