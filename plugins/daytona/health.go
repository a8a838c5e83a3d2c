package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"time"

	apiclient "github.com/daytonaio/daytona/libs/api-client-go"

	"github.com/berth-dev/berth/shared/provider"
)

// look is what is remembered of a sandbox whose server does not answer.
type look struct {
	failing time.Time // since when
	last    time.Time // when the sandbox was last looked at
}

// idleHeader on a request keeps it from counting as activity: being asked for its health must not keep a forgotten
// sandbox alive.
const idleHeader = "X-Daytona-Skip-Last-Activity-Update"

// Ping asks the server. Only one that keeps failing makes the plugin look at the sandbox itself, with one call of the
// API every few seconds at most, and then at the server's process, which its daemon knows.
func (d *Daytona) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	if ctx.Err() != nil {
		return provider.PingResult{}, ctxFailure(ctx, "the ping")
	}
	due := d.lookDue(req.SandboxID)
	endpoint, check := req.Endpoint, req.Health
	endpoint.Headers = maps.Clone(endpoint.Headers)
	if endpoint.Headers == nil {
		endpoint.Headers = map[string]string{}
	}
	endpoint.Headers[idleHeader] = "true"
	probing, cancel := ctx, context.CancelFunc(func() {})
	if deadline, limited := ctx.Deadline(); limited && due { // a server that hangs must leave time for the look
		probing, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
	}
	result := provider.Probe(probing, d.probe, endpoint, check)
	cancel()
	if result.Status == provider.PingAlive {
		d.forget(req.SandboxID)
		return result, nil
	}
	denied := result.Status == provider.PingDenied
	if !d.takeLook(req.SandboxID, denied) {
		return result, nil
	}
	if denied {
		return d.explainDenial(ctx, req, result), nil
	}
	return d.judge(ctx, req, result), nil
}

// lookDue says whether the next failure makes the plugin look.
func (d *Daytona) lookDue(id string) bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.due(d.looks[id], time.Now(), false)
}

// due says whether it is time for a look. A denial, which does not come from a server that boots, is a reason at once.
func (d *Daytona) due(l look, now time.Time, denied bool) bool {
	long := !l.failing.IsZero() && now.Sub(l.failing) >= d.pace.lookWait
	return (long || denied) && now.Sub(l.last) >= d.pace.look
}

// takeLook notes a failure, and says whether it is time to look at the sandbox. Then nobody else looks for a while.
func (d *Daytona) takeLook(id string, denied bool) bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	now := time.Now()
	l := d.looks[id]
	if l.failing.IsZero() {
		bound(d.looks)
		l.failing = now
	}
	take := d.due(l, now, denied)
	if take {
		l.last = now
	}
	d.looks[id] = l
	return take
}

func (d *Daytona) forget(id string) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	delete(d.looks, id)
}

// judge looks at the sandbox of a server that does not answer. What cannot be found out leaves the answer as it is.
func (d *Daytona) judge(ctx context.Context, req provider.PingRequest, result provider.PingResult) provider.PingResult {
	sandbox, err := ask(ctx, d.pace.call, "looking for the sandbox", func(ctx context.Context) (*apiclient.Sandbox, *http.Response, error) {
		return d.api.SandboxAPI.GetSandbox(ctx, req.SandboxID).Execute()
	})
	if provider.CodeOf(err) == provider.CodeNotFound {
		return provider.PingResult{Status: provider.PingGone, Reason: gone(req.SandboxID).Message}
	}
	if err != nil {
		result.Reason += fmt.Sprintf(" (%v)", err)
		return result
	}
	if owned(sandbox, req.Owner, "") != nil {
		return provider.PingResult{Status: provider.PingDenied, Reason: "the sandbox belongs to somebody else"}
	}
	switch stateOf(sandbox.GetState()) {
	case provider.StateRunning:
		return d.judgeServer(ctx, sandbox, result)
	case provider.StateSuspended:
		return provider.PingResult{Status: provider.PingStopped, Reason: "the sandbox is " + stateText(sandbox)}
	case provider.StateGone:
		return provider.PingResult{Status: provider.PingGone, Reason: "the sandbox is " + stateText(sandbox)}
	case provider.StateFailed:
		return provider.PingResult{Status: provider.PingGone, Reason: fmt.Sprintf("the sandbox failed: %s", sandbox.GetErrorReason())}
	}
	result.Reason += fmt.Sprintf(" (the sandbox is %s)", stateText(sandbox))
	return result
}

// judgeServer asks the daemon of a running sandbox for the server's process.
func (d *Daytona) judgeServer(ctx context.Context, sandbox *apiclient.Sandbox, result provider.PingResult) provider.PingResult {
	daemon, err := d.toolbox(sandbox.ToolboxProxyUrl, sandbox.Id)
	if err != nil {
		return result
	}
	report, err := d.execute(ctx, daemon, statusScript(), nil)
	switch {
	case err != nil:
		result.Reason += " (and the sandbox's daemon does not answer)"
	case report.exited:
		exited := provider.ServerExited(report.code, report.log)
		return provider.PingResult{
			Status: provider.PingExited, Reason: exited.Message, ExitCode: exited.ExitCode, LogTail: exited.LogTail,
		}
	case !report.running:
		result.Reason += " (no server was started)"
	}
	return result
}

// explainDenial finds out whether the token of a URL was replaced, as every start of a sandbox does.
func (d *Daytona) explainDenial(ctx context.Context, req provider.PingRequest, result provider.PingResult) provider.PingResult {
	preview, err := ask(ctx, d.pace.call, "asking for the URL", func(ctx context.Context) (*apiclient.PortPreviewUrl, *http.Response, error) {
		// One token opens all ports, so any port will do.
		return d.api.SandboxAPI.GetPortPreviewUrl(ctx, req.SandboxID, float32(d.config.Port)).Execute()
	})
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		return provider.PingResult{Status: provider.PingGone, Reason: gone(req.SandboxID).Message}
	case err == nil && req.Endpoint.Headers[tokenHeader] != "" && preview.Token != req.Endpoint.Headers[tokenHeader]:
		result.Reason += " (the sandbox was started anew, which replaced its token: connect again)"
	}
	return result
}
