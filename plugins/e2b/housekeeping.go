package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// List gives the owner's sandboxes, running and paused. E2B filters, and what it gives is checked nevertheless.
func (p *E2B) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	filter := map[string]string{provider.LabelOwner: req.Owner}
	switch {
	case req.AllOwners:
		filter = nil
	case req.Session != "":
		filter = map[string]string{labelName: provider.SandboxName(req.Owner, req.Session)}
	}
	found, err := p.api.list(ctx, filter)
	if err != nil {
		return nil, err
	}
	var sandboxes []provider.Sandbox
	for _, one := range found {
		sandbox := sandboxOf(one)
		if req.Matches(sandbox.Owner, sandbox.Session) {
			sandboxes = append(sandboxes, sandbox)
		}
	}
	return sandboxes, nil
}

// Renew moves the end of a running sandbox's life, also nearer. E2B may shorten what the account's plan does not allow,
// without a word: the end that is returned is E2B's own.
func (p *E2B) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	sandbox, err := p.owned(ctx, req.SandboxRef)
	if err != nil {
		return time.Time{}, err
	}
	if sandbox.State == statePaused {
		return time.Time{}, notRunning(sandbox)
	}
	renewed := p.api.setTimeout(ctx, req.SandboxID, lifetimeOf(req.Lifetime))
	sandbox, err = p.owned(ctx, req.SandboxRef)
	switch {
	case err != nil:
		return time.Time{}, err
	case sandbox.State == statePaused: // which E2B calls not found
		return time.Time{}, notRunning(sandbox)
	}
	return sandbox.EndAt, renewed
}

// Suspend pauses the sandbox, with its memory: the server goes on where it stopped once Attach has woken it.
func (p *E2B) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	sandbox, err := p.owned(ctx, ref)
	if err != nil {
		return err
	}
	p.endSilence(ref.SandboxID)
	for deadline := time.Now().Add(p.times.transition); sandbox.State != statePaused; {
		refused := p.api.pauseSandbox(ctx, ref.SandboxID)
		switch {
		case provider.CodeOf(refused) == provider.CodeNotFound:
			return gone(ref.SandboxID)
		case provider.CodeOf(refused) != provider.CodeState, time.Now().After(deadline):
			return refused
		}
		// It may be paused already, or on its way.
		if err := pause(ctx, p.times.pause); err != nil {
			return err
		}
		if sandbox, err = p.owned(ctx, ref); err != nil {
			return err
		}
	}
	return nil
}

// Destroy kills the sandbox, running or paused.
func (p *E2B) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	_, err := p.owned(ctx, ref)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	p.forget(ref.SandboxID)
	return p.api.kill(ctx, ref.SandboxID)
}

// Logs gives what the present server wrote last. A paused sandbox is not woken for it.
func (p *E2B) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	to, err := p.open(ctx, req.SandboxRef)
	if err != nil {
		return nil, err
	}
	var lines []string
	err = persist(ctx, p.times, func() (again bool, err error) {
		lines, err = p.logs(ctx, to, req.Lines)
		return true, err
	})
	if err != nil {
		return nil, p.explain(ctx, req.SandboxID, err)
	}
	return lines, nil
}

func (p *E2B) logs(ctx context.Context, to access, lines int) ([]string, error) {
	output, err := p.script(ctx, to, "reading the server's log", "logs", strconv.Itoa(max(lines, 0)))
	if err != nil || output == "" {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(output, "\n"), "\n"), nil
}
