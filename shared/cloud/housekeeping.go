package cloud

import (
	"context"

	"github.com/berth-dev/berth/shared/provider"
)

// List is provider.Lister.List.
func (p *Provider[B]) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	list := p.cloud.List
	if req.Session != "" && !req.AllOwners { // in the way that lags least
		list = func(ctx context.Context, req provider.ListRequest) ([]B, error) {
			return p.cloud.Find(ctx, req.Owner, req.Session)
		}
	}
	boxes, err := list(ctx, req)
	if err != nil {
		return nil, err
	}
	var sandboxes []provider.Sandbox
	seen := map[string]bool{} // one may move from page to page meanwhile
	for _, box := range boxes {
		s := p.cloud.Describe(box)
		if !seen[s.ID] && req.Matches(s.Owner, s.Session) {
			seen[s.ID] = true
			sandboxes = append(sandboxes, s)
		}
	}
	return sandboxes, nil
}

// Destroy is provider.Destroyer.Destroy.
func (p *Provider[B]) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	box, err := p.Own(ctx, ref)
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	p.Forget(ref.SandboxID)
	return About(p.cloud.Remove(ctx, box), ref.SandboxID)
}
