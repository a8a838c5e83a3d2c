package cloud

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// Attach is provider.Provider.Attach.
func (p *Provider[B]) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	if req.Lifetime <= 0 {
		req.Lifetime = defaultLifetime
	}
	sandbox, err := p.attachNamed(ctx, req)
	if provider.CodeOf(err) == provider.CodeNotFound {
		var present []B
		if present, err = p.settled(ctx, req.Owner, req.Session); err == nil {
			sandbox, err = p.adopt(ctx, present, req.Lifetime)
		}
	}
	switch {
	case provider.CodeOf(err) == provider.CodeNotFound && req.SandboxID != "":
		return provider.Sandbox{}, Gone(req.SandboxID, "")
	case provider.CodeOf(err) == provider.CodeNotFound:
		return provider.Sandbox{}, provider.Errorf(provider.CodeNotFound, "session %q has no sandbox in %s", req.Session, p.options.Name)
	case err != nil:
		return provider.Sandbox{}, err
	}
	if sandbox.Origin == provider.OriginAttached {
		ref := provider.SandboxRef{Owner: req.Owner, SandboxID: sandbox.ID}
		if box, known := p.recall(ref); known {
			if endpoints, err := p.endpoints(ctx, box, req.Server, p.portOf(req.Server)); err == nil {
				sandbox.Endpoints = &endpoints
			}
		}
	}
	return sandbox, nil
}

// find returns the session's sandboxes that have not ended: running ones first, then the oldest first.
func (p *Provider[B]) find(ctx context.Context, owner, session string) ([]B, error) {
	found, err := p.cloud.Find(ctx, owner, session)
	if err != nil {
		return nil, err
	}
	present := found[:0:0]
	for _, box := range found {
		s := p.cloud.Describe(box)
		if s.State == provider.StateGone {
			continue
		}
		if err := owned(s, owner, session); err != nil {
			return nil, err
		}
		present = append(present, box)
	}
	slices.SortFunc(present, func(a, b B) int {
		x, y := p.cloud.Describe(a), p.cloud.Describe(b)
		return cmp.Or(compareRunning(x, y), compareAge(x, y))
	})
	return present, nil
}

// settled is find, once none of the sandboxes is about to be removed by its maker: where the cloud has no names, several
// hosts may have made one each a moment ago (see giveWay). One that is alone is settled after Rivals, and several are after
// twice that. Those that this process has used, or that sleep, are settled. without are left out.
func (p *Provider[B]) settled(ctx context.Context, owner, session string, without ...string) ([]B, error) {
	seen := map[string]time.Time{}
	for {
		present, err := p.find(ctx, owner, session)
		if err != nil || p.options.UniqueNames {
			return present, err
		}
		present = slices.DeleteFunc(present, func(box B) bool { return slices.Contains(without, p.cloud.Describe(box).ID) })
		patience := p.times.Rivals
		if len(present) > 1 {
			patience *= 2
		}
		if !slices.ContainsFunc(present, func(box B) bool { return time.Since(p.since(box, seen)) < patience }) {
			return present, nil
		}
		if !Pause(ctx, p.times.Rivals/20) {
			return nil, Ended(ctx, "waiting until it is clear which sandbox stays")
		}
	}
}

// since returns since when a sandbox is known to be there: since it was made, or, should the cloud's clock be ahead of ours,
// since it was first seen. The zero time is long ago.
func (p *Provider[B]) since(box B, seen map[string]time.Time) time.Time {
	s := p.cloud.Describe(box)
	if _, used := p.recall(provider.SandboxRef{Owner: s.Owner, SandboxID: s.ID}); used || s.State == provider.StateSuspended || s.State == provider.StateFailed {
		return time.Time{}
	}
	if seen[s.ID].IsZero() {
		seen[s.ID] = time.Now()
	}
	if s.CreatedAt.Before(seen[s.ID]) {
		return s.CreatedAt
	}
	return seen[s.ID]
}

// compareRunning orders a sandbox that runs before one that does not.
func compareRunning(a, b provider.Sandbox) int {
	runs := func(s provider.Sandbox) int {
		if s.State == provider.StateRunning {
			return 0
		}
		return 1
	}
	return cmp.Compare(runs(a), runs(b))
}

// compareAge orders sandboxes by age, the oldest first, so that every process agrees on it.
func compareAge(a, b provider.Sandbox) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
}

// attachNamed takes the sandbox that the request names: it needs no listing, which may lag. CodeNotFound: it names none, or
// one that has ended.
func (p *Provider[B]) attachNamed(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	if req.SandboxID == "" {
		return provider.Sandbox{}, provider.Errorf(provider.CodeNotFound, "the request names no sandbox")
	}
	box, err := p.Own(ctx, provider.SandboxRef{Owner: req.Owner, SandboxID: req.SandboxID})
	if err == nil {
		err = owned(p.cloud.Describe(box), req.Owner, req.Session)
	}
	if err != nil {
		return provider.Sandbox{}, err
	}
	return p.adopt(ctx, []B{box}, req.Lifetime)
}

// adopt takes the first of the sandboxes into use that is still there. None is CodeNotFound.
func (p *Provider[B]) adopt(ctx context.Context, present []B, lifetime time.Duration) (provider.Sandbox, error) {
	for _, box := range present {
		box, woken, err := p.use(ctx, box, lifetime)
		if provider.CodeOf(err) == provider.CodeNotFound {
			continue
		}
		if err != nil {
			return provider.Sandbox{}, err
		}
		if woken {
			p.Forget(p.cloud.Describe(box).ID) // its server may be gone with its other processes
			p.remember(box)
			return p.result(box, provider.OriginWoken), nil
		}
		p.remember(box)
		return p.result(box, provider.OriginAttached), nil
	}
	return provider.Sandbox{}, provider.Errorf(provider.CodeNotFound, "the session has no sandbox in %s", p.options.Name)
}

// use brings a sandbox that was found to run, and tells the cloud that it is in use again.
func (p *Provider[B]) use(ctx context.Context, box B, lifetime time.Duration) (_ B, woken bool, err error) {
	box, woken, err = p.untilRunning(ctx, box, lifetime)
	if finder, asks := p.cloud.(Finder[B]); asks && err == nil {
		return finder.Found(ctx, box, woken, lifetime)
	}
	return box, woken, err
}

// mostWakes is how often a sandbox is woken that falls asleep again on its way.
const mostWakes = 3

// untilRunning waits until a sandbox runs, and wakes it if it sleeps.
func (p *Provider[B]) untilRunning(ctx context.Context, box B, lifetime time.Duration) (_ B, woken bool, err error) {
	wakes, looks := 0, 0
	for {
		s := p.cloud.Describe(box)
		var next B
		switch s.State {
		case provider.StateRunning:
			return box, woken, nil
		case provider.StateGone:
			return box, woken, Gone(s.ID, s.Detail)
		case provider.StateSuspended, provider.StateFailed:
			if wakes++; wakes > mostWakes {
				return box, woken, &provider.Error{
					Code: provider.CodeFailed, SandboxID: s.ID, Message: fmt.Sprintf("the sandbox %s does not wake: it is %s", s.ID, s.Detail),
				}
			}
			woken = true
			next, err = p.cloud.Wake(ctx, box, lifetime)
		default:
			next, err = p.await(ctx, box, looks)
			looks++
		}
		switch {
		case ctx.Err() != nil && err != nil:
			e := Ended(ctx, "waiting until the sandbox runs")
			e.Message += fmt.Sprintf(": the sandbox %s is %s", s.ID, s.Detail)
			if s.State == provider.StateUnknown {
				e.Message += ", a state that this plugin does not know"
			}
			e.SandboxID = s.ID
			return box, woken, e
		case err != nil:
			return box, woken, About(err, s.ID)
		}
		box = next
	}
}

// await looks at a sandbox that is on its way: at first at once, because the answer to a create may show it as it was before.
func (p *Provider[B]) await(ctx context.Context, box B, looks int) (B, error) {
	if waiter, able := p.cloud.(Waiter[B]); able {
		return waiter.Await(ctx, box)
	}
	if looks > 0 {
		pause := min(p.times.Poll<<min(looks/2, 10), p.times.PollMost)
		Pause(ctx, pause/2+rand.N(pause/2+1))
	}
	return p.cloud.Look(ctx, p.cloud.Describe(box).ID)
}
