package main

import (
	"context"
	"io"
	"time"

	"github.com/berth-dev/berth/shared/provider"
)

// What the provider can do beyond the four calls: having an interface's method declares the capability. The kit has all but
// two. Remove the method of what your cloud cannot do, and its line here.
var (
	_ provider.Lister    = (*Acme)(nil)
	_ provider.Renewer   = (*Acme)(nil)
	_ provider.Suspender = (*Acme)(nil)
	_ provider.Destroyer = (*Acme)(nil)
	_ provider.LogReader = (*Acme)(nil)
	_ io.Closer          = (*Acme)(nil)
)

// Renew moves the end of a box's life.
func (a *Acme) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	if _, err := a.Own(ctx, req.SandboxRef); err != nil {
		return time.Time{}, err
	}
	renewed, err := a.api.renew(ctx, req.SandboxID, req.Lifetime)
	return renewed.ExpiresAt, err
}

// Suspend ends a box's processes and keeps its disk.
func (a *Acme) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	if _, err := a.Own(ctx, ref); err != nil {
		return err
	}
	a.Forget(ref.SandboxID)
	return a.api.suspend(ctx, ref.SandboxID)
}
