package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// silence is a server that has not answered for a while, and who was asked about it when.
type silence struct {
	since, askedServer, askedControl time.Time
}

// Ping asks the server. Only when it keeps silent are others asked what is the matter: the sandbox about the server's
// process, and the control API, seldom, about the sandbox.
func (p *E2B) Ping(ctx context.Context, req provider.PingRequest) (provider.PingResult, error) {
	if !idForm.MatchString(req.SandboxID) {
		return provider.PingResult{}, provider.Errorf(provider.CodeInvalid, "%.40q is not the id of a sandbox at E2B", req.SandboxID)
	}
	answer := &answer{}
	result := provider.Probe(withAnswer(ctx, answer), p.probe, req.Endpoint, req.Health)
	if _, _, said := answer.read(); said != "" && result.Status != provider.PingAlive {
		result.Reason += ": " + p.api.presentable(said)
	}
	if result.Status != provider.PingNotYet {
		p.endSilence(req.SandboxID)
		return result, nil
	}
	switch status, _, _ := answer.read(); {
	case answer.closedPort():
		if p.mayAsk(req.SandboxID, p.times.patience, p.times.askServer, askedServer) {
			return p.askServer(ctx, req, result), nil
		}
	case answer.noSandbox():
		if p.mayAsk(req.SandboxID, 0, p.times.askControl, askedControl) {
			return p.askControl(ctx, req, result), nil
		}
	case status > 0 && status < 500: // the server itself answers: it is there and not ready
	default:
		if p.mayAsk(req.SandboxID, p.times.patience, p.times.askControl, askedControl) {
			return p.askControl(ctx, req, result), nil
		}
	}
	return result, nil
}

func askedServer(s *silence) *time.Time  { return &s.askedServer }
func askedControl(s *silence) *time.Time { return &s.askedControl }

// mayAsk says whether somebody may be asked about a silent server now: after so much patience, and so long after the
// last time.
func (p *E2B) mayAsk(id string, patience, gap time.Duration, asked func(*silence) *time.Time) bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	now := time.Now()
	s := p.silence[id]
	if s == nil {
		if len(p.silence) >= rememberedLimit {
			clear(p.silence)
		}
		s = &silence{since: now}
		p.silence[id] = s
	}
	last := asked(s)
	if now.Sub(s.since) < patience || now.Sub(*last) < gap {
		return false
	}
	*last = now
	return true
}

func (p *E2B) endSilence(id string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	delete(p.silence, id)
}

// askServer asks the sandbox what became of the server. It costs no call of the control API as long as what opens the
// sandbox is known.
func (p *E2B) askServer(ctx context.Context, req provider.PingRequest, result provider.PingResult) provider.PingResult {
	p.mutex.Lock()
	known, found := p.opened[req.SandboxID]
	p.mutex.Unlock()
	if !found || known.owner != req.Owner {
		if !p.mayAsk(req.SandboxID, 0, p.times.askControl, askedControl) {
			return result
		}
		return p.askControl(ctx, req, result) // which comes back with what is missing
	}
	return p.lookAtServer(ctx, known.access, result)
}

func (p *E2B) lookAtServer(ctx context.Context, to access, result provider.PingResult) provider.PingResult {
	output, err := p.script(ctx, to, "looking at the server", "look")
	if err != nil {
		p.log.Debug("looking at the server", "sandbox", to.SandboxID, "error", err)
		return result // the next ping knows more
	}
	lines := strings.Split(strings.TrimSuffix(output, "\n"), "\n")
	word, code, _ := strings.Cut(lines[0], " ")
	switch word {
	case "none":
		result.Reason += " (no server was started)"
	case "exited":
		var exitCode *int
		if n, err := strconv.Atoi(code); err == nil {
			exitCode = &n
		}
		exited := provider.ServerExited(exitCode, lines[1:])
		return provider.PingResult{Status: provider.PingExited, Reason: exited.Message, ExitCode: exitCode, LogTail: exited.LogTail}
	}
	return result
}

// askControl asks E2B about the sandbox.
func (p *E2B) askControl(ctx context.Context, req provider.PingRequest, result provider.PingResult) provider.PingResult {
	sandbox, err := p.api.lookOnce(ctx, req.SandboxID)
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound:
		p.forget(req.SandboxID)
		return provider.PingResult{Status: provider.PingGone, Reason: "E2B says that the sandbox does not exist any more"}
	case provider.CodeOf(err) == provider.CodeDenied:
		return provider.PingResult{Status: provider.PingDenied, Reason: err.Error()}
	case err != nil:
		result.Reason += fmt.Sprintf(" (and %v)", err)
		return result
	case sandbox.Metadata[provider.LabelOwner] != req.Owner:
		return provider.PingResult{Status: provider.PingDenied, Reason: "the sandbox belongs to another owner"}
	case sandbox.State == statePaused:
		p.forget(req.SandboxID)
		return provider.PingResult{Status: provider.PingStopped, Reason: "E2B says that the sandbox is paused"}
	case sandbox.State != stateRunning:
		result.Reason += fmt.Sprintf(" (the sandbox is in the state %.40q, which this plugin does not know)", sandbox.State)
		return result
	}
	// It runs. The traffic token is not in this answer, and envd does not ask for it.
	return p.lookAtServer(ctx, access{
		SandboxID: sandbox.SandboxID, EnvdVersion: sandbox.EnvdVersion, EnvdAccessToken: sandbox.EnvdAccessToken, Domain: sandbox.Domain,
	}, result)
}
