package main

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// What the provider can do beyond the four calls: implementing an interface declares the capability. Remove the methods
// of what your cloud cannot do, and its line here.
var (
	_ provider.Provider  = (*Cloud)(nil)
	_ provider.Lister    = (*Cloud)(nil)
	_ provider.Renewer   = (*Cloud)(nil)
	_ provider.Suspender = (*Cloud)(nil)
	_ provider.Destroyer = (*Cloud)(nil)
	_ provider.LogReader = (*Cloud)(nil)
	_ io.Closer          = (*Cloud)(nil)
)

// List gives the owner's boxes, or those of all owners.
func (c *Cloud) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	label := provider.LabelOwner
	if req.AllOwners {
		label = ""
	}
	boxes, err := c.api.list(ctx, label, req.Owner)
	if err != nil {
		return nil, err
	}
	var sandboxes []provider.Sandbox
	for _, b := range boxes {
		if req.Matches(b.Labels[provider.LabelOwner], b.Labels[provider.LabelSession]) {
			sandboxes = append(sandboxes, sandboxOf(b))
		}
	}
	return sandboxes, nil
}

// Renew moves the end of a box's life.
func (c *Cloud) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	if _, err := c.owned(ctx, req.SandboxRef); err != nil {
		return time.Time{}, err
	}
	b, err := c.api.renew(ctx, req.SandboxID, req.Lifetime)
	return b.ExpiresAt, err
}

// Suspend ends a box's processes and keeps its disk.
func (c *Cloud) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	if _, err := c.owned(ctx, ref); err != nil {
		return err
	}
	_, err := c.api.suspend(ctx, ref.SandboxID)
	return err
}

// Destroy ends a box for good.
func (c *Cloud) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	c.asked.forget(ref.SandboxID)
	_, err := c.owned(ctx, ref)
	if err == nil {
		err = c.api.destroy(ctx, ref.SandboxID)
	}
	if provider.CodeOf(err) == provider.CodeNotFound {
		return nil
	}
	return err
}

// Logs gives the server's last lines.
func (c *Cloud) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	if _, err := c.owned(ctx, req.SandboxRef); err != nil {
		return nil, err
	}
	p, err := c.api.process(ctx, req.SandboxID)
	return p.Log[max(0, len(p.Log)-req.Lines):], err
}

// throttle keeps the questions about one sandbox apart: pings come many a second, and clouds limit what they answer.
type throttle struct {
	mutex sync.Mutex
	last  map[string]time.Time
}

const askPause = 500 * time.Millisecond

func newThrottle() *throttle { return &throttle{last: map[string]time.Time{}} }

// due says whether it is time to ask about a sandbox, and notes that it is being done.
func (t *throttle) due(id string) bool {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if time.Since(t.last[id]) < askPause {
		return false
	}
	t.last[id] = time.Now()
	return true
}

func (t *throttle) forget(id string) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	delete(t.last, id)
}
