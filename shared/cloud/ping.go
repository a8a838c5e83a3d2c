package cloud

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// watch is what is remembered of a sandbox whose server was started by this process or does not answer.
type watch struct {
	launched time.Time // when this process started the server; zero if it did not
	failing  time.Time // since when the server does not answer; zero before
	server   time.Time // when its process was last looked at
	cloud    time.Time // when the cloud was last asked about the sandbox
	doubted  bool      // the server's refusal may pass, as was found then
	silence  string    // what the last look at the process said of why it keeps silent, for the pings until the next one
}

// serverDue reports whether the server's process may be looked at now. One that this process has not started is looked at
// as soon as it does not answer: whoever asks only once learns why.
func (w watch) serverDue(now time.Time, t Times) bool {
	gap := t.LookServer
	if !w.launched.IsZero() {
		gap = min(gap, max(t.FirstLook, w.server.Sub(w.launched)))
		if w.server.IsZero() {
			return now.Sub(w.launched) >= gap
		}
	}
	return now.Sub(w.server) >= gap
}

// cloudDue reports whether the cloud may be asked about the sandbox now. A reason to do so at once is that the server refuses
// us or the sandbox cannot be looked into, which those that boot do not, or that this process knows nothing of it.
func (w watch) cloudDue(now time.Time, t Times, reason bool) bool {
	long := !w.failing.IsZero() && now.Sub(w.failing) >= t.Patience
	return (long || reason) && now.Sub(w.cloud) >= t.LookCloud
}

// Ping is provider.Provider.Ping. Only a server that does not answer makes it look at the server's process, and only if that
// cannot be done, or the server refuses us, does it ask the cloud, seldom.
func (p *Provider[B]) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	if ctx.Err() != nil {
		return provider.PingResult{}, Ended(ctx, "the ping")
	}
	probing, cancel := p.leaveTime(ctx, req.SandboxID)
	result := provider.Probe(probing, p.probe, p.probeEndpoint(req.Endpoint), req.Health)
	cancel()
	if result.Status == provider.PingAlive {
		p.noteAlive(req.SandboxID)
		return result, nil
	}
	return p.judge(ctx, req, result), nil
}

// leaveTime halves the time for a probe that may be followed by a look, so that a server which hangs leaves some.
func (p *Provider[B]) leaveTime(ctx context.Context, id string) (context.Context, context.CancelFunc) {
	deadline, limited := ctx.Deadline()
	p.mutex.Lock()
	w := p.watches[id]
	due := limited && w != nil && (w.serverDue(deadline, p.times) || w.cloudDue(deadline, p.times, false))
	p.mutex.Unlock()
	if !due {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}

func (p *Provider[B]) probeEndpoint(e provider.Endpoint) provider.Endpoint {
	if len(p.options.ProbeHeaders) > 0 {
		headers := maps.Clone(p.options.ProbeHeaders)
		maps.Copy(headers, e.Headers)
		e.Headers = headers
	}
	return e
}

// judge finds out about a server that does not answer. What cannot be found out leaves the answer as it is.
func (p *Provider[B]) judge(ctx context.Context, req provider.PingRequest, result provider.PingResult) provider.PingResult {
	denied := result.Status == provider.PingDenied
	box, known := p.recall(provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
	known = known && owned(p.cloud.Describe(box), req.Owner, req.Session) == nil
	reason := denied || !known
	if known && !denied && p.takeServerLook(req.SandboxID) {
		said, err := p.lookAtServer(ctx, box)
		if err == nil {
			p.changeWatch(req.SandboxID, func(w *watch) {
				w.cloud = time.Now() // a sandbox that runs scripts is there
				w.silence = silenceOf(said)
			})
			return judgeServer(said, result)
		}
		reason = true
	}
	if !p.takeCloudLook(req.SandboxID, reason) {
		if !denied {
			p.changeWatch(req.SandboxID, func(w *watch) { result.Reason += w.silence })
		}
		return p.doubt(req.SandboxID, result)
	}
	box, verdict := p.judgeSandbox(ctx, req, result)
	switch {
	case verdict != nil:
		return *verdict
	case denied:
		if denier, able := p.cloud.(Denier[B]); able {
			wrong, why := denier.Denied(ctx, box, req.Endpoint)
			if why != "" {
				result.Reason += " (" + why + ")"
			}
			p.changeWatch(req.SandboxID, func(w *watch) { w.doubted = !wrong })
			return p.doubt(req.SandboxID, result)
		}
	case !known: // another process started the server
		if said, err := p.lookAtServer(ctx, box); err == nil {
			return judgeServer(said, result)
		}
	}
	return result
}

// doubt makes "not yet" of a refusal that may pass.
func (p *Provider[B]) doubt(id string, result provider.PingResult) provider.PingResult {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if w := p.watches[id]; w != nil && w.doubted && result.Status == provider.PingDenied {
		result.Status = provider.PingNotYet
	}
	return result
}

// lookAtServer asks a sandbox for its server's process. A sandbox that does not answer must leave time to ask the cloud.
func (p *Provider[B]) lookAtServer(ctx context.Context, box B) (report, error) {
	limit := p.times.LookServer
	if deadline, limited := ctx.Deadline(); limited {
		limit = min(limit, time.Until(deadline)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return p.runOnce(ctx, box, lookScript())
}

// judgeSandbox asks the cloud about the sandbox. It returns the answer to give, or nil if the sandbox runs.
func (p *Provider[B]) judgeSandbox(ctx context.Context, req provider.PingRequest, result provider.PingResult) (B, *provider.PingResult) {
	answer := func(status provider.PingStatus, format string, args ...any) *provider.PingResult {
		return &provider.PingResult{Status: status, Reason: fmt.Sprintf(format, args...)}
	}
	box, err := p.cloud.Look(ctx, req.SandboxID)
	if provider.CodeOf(err) == provider.CodeNotFound {
		p.Forget(req.SandboxID)
		return box, answer(provider.PingGone, "%s", Gone(req.SandboxID, "").Message)
	}
	if err != nil {
		result.Reason += fmt.Sprintf(" (%v)", err)
		if _, able := p.cloud.(Denier[B]); able {
			p.changeWatch(req.SandboxID, func(w *watch) { w.doubted = true })
			result = p.doubt(req.SandboxID, result)
		}
		return box, &result
	}
	s := p.cloud.Describe(box)
	if err := owned(s, req.Owner, req.Session); err != nil {
		return box, answer(provider.PingDenied, "%v", err)
	}
	switch s.State {
	case provider.StateRunning:
		p.remember(box)
		return box, nil
	case provider.StateSuspended:
		p.Forget(s.ID)
		return box, answer(provider.PingStopped, "the sandbox is %s", s.Detail)
	case provider.StateGone, provider.StateFailed:
		p.Forget(s.ID)
		return box, answer(provider.PingGone, "the sandbox has ended: %s", s.Detail)
	}
	result.Reason += fmt.Sprintf(" (the sandbox is %s)", s.Detail)
	return box, &result
}

// judgeServer reads what a sandbox says of the server.
func judgeServer(said report, result provider.PingResult) provider.PingResult {
	if said.state == "exited" {
		e := said.exited("")
		return provider.PingResult{Status: provider.PingExited, Reason: e.Message, ExitCode: e.ExitCode, LogTail: e.LogTail}
	}
	result.Reason += silenceOf(said)
	return result
}

// silenceOf words why a server keeps silent, as far as a sandbox says.
func silenceOf(said report) string {
	switch {
	case said.state == "none":
		return " (no server was started)"
	case said.state == "running" && said.silence == "nowhere":
		return fmt.Sprintf(" (the server's process runs, but nothing listens on port %d yet)", said.port)
	case said.state == "running" && said.silence == "ipv6":
		return fmt.Sprintf(" (the server's process runs and listens on ::1 only: let it listen on 0.0.0.0, port %d)", said.port)
	}
	return ""
}

// noteLaunch notes that a server was started: how an earlier one failed counts no more.
func (p *Provider[B]) noteLaunch(id string) {
	p.changeWatch(id, func(w *watch) { *w = watch{launched: time.Now()} })
}

func (p *Provider[B]) noteAlive(id string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	delete(p.watches, id)
}

// takeServerLook notes a failure, and reports whether it is time to look at the server's process. Then nobody else looks for
// a while.
func (p *Provider[B]) takeServerLook(id string) (take bool) {
	p.changeWatch(id, func(w *watch) {
		now := time.Now()
		if w.failing.IsZero() {
			w.failing = now
		}
		if take = w.serverDue(now, p.times); take {
			w.server = now
		}
	})
	return take
}

// takeCloudLook is takeServerLook for a call of the cloud's API.
func (p *Provider[B]) takeCloudLook(id string, reason bool) (take bool) {
	p.changeWatch(id, func(w *watch) {
		now := time.Now()
		if w.failing.IsZero() {
			w.failing = now
		}
		if take = w.cloudDue(now, p.times, reason); take {
			w.cloud = now
		}
	})
	return take
}

func (p *Provider[B]) changeWatch(id string, change func(*watch)) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	w := p.watches[id]
	if w == nil {
		if len(p.watches) >= remembered {
			clear(p.watches)
		}
		w = &watch{}
		p.watches[id] = w
	}
	change(w)
}
