// Package replies holds what a provider answers against the records. The contract's own rules, which follow from the
// request alone, are checked where replies are read, in shared/provider. Only the records tell that a sandbox is another
// session's, whatever its reply says.
package replies

import (
	"context"
	"fmt"
	"time"

	"github.com/berth-dev/berth/host/lease"
	"github.com/berth-dev/berth/host/records"
	"github.com/berth-dev/berth/shared/provider"
)

// Checked is a provider of whose answers none gives a session the sandbox of another one. It has all optional calls; those
// that the provider lacks fail with provider.CodeUnsupported. Its methods may be called concurrently.
type Checked struct {
	provider.Provider
	name    string
	records records.Store
}

var (
	_ provider.Lister    = (*Checked)(nil)
	_ provider.Renewer   = (*Checked)(nil)
	_ provider.Suspender = (*Checked)(nil)
	_ provider.Destroyer = (*Checked)(nil)
	_ provider.LogReader = (*Checked)(nil)
)

// Check returns the provider, which has the name in the records, with its answers checked. Errors of the records are
// *lease.Error.
func Check(p provider.Provider, name string, store records.Store) *Checked {
	return &Checked{Provider: p, name: name, records: store}
}

// Describe returns what the provider says of itself, as a plugin does, and nothing for one that does not.
func (c *Checked) Describe(ctx context.Context) (provider.Description, error) {
	if p, able := c.Provider.(interface {
		Describe(ctx context.Context) (provider.Description, error)
	}); able {
		return p.Describe(ctx)
	}
	return provider.Description{}, nil
}

// Create implements provider.Provider.
func (c *Checked) Create(ctx context.Context, req provider.CreateRequest) (provider.Sandbox, error) {
	sandbox, err := c.Provider.Create(ctx, req)
	if err != nil {
		return sandbox, c.withoutForeign(ctx, req.Session, err)
	}
	return sandbox, c.check(ctx, "Create", req.Session, sandbox.ID)
}

// Attach implements provider.Provider.
func (c *Checked) Attach(ctx context.Context, req provider.AttachRequest) (provider.Sandbox, error) {
	sandbox, err := c.Provider.Attach(ctx, req)
	if err != nil || sandbox.ID == req.SandboxID {
		return sandbox, err
	}
	return sandbox, c.check(ctx, "Attach", req.Session, sandbox.ID)
}

// List implements provider.Lister. Of a session's listing it leaves out what is another's, and returns the rest beside an
// error. A listing of all sessions is for those who have all records at hand.
func (c *Checked) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	lister, able := c.Provider.(provider.Lister)
	if !able {
		return nil, c.unable(provider.CapabilityList)
	}
	listed, err := lister.List(ctx, req)
	if req.Session == "" {
		return listed, err
	}
	var own []provider.Sandbox
	for _, sandbox := range listed {
		if foreign := c.check(ctx, "List", req.Session, sandbox.ID); foreign == nil {
			own = append(own, sandbox)
		} else if err == nil {
			err = foreign
		}
	}
	return own, err
}

// Renew implements provider.Renewer.
func (c *Checked) Renew(ctx context.Context, req provider.RenewRequest) (time.Time, error) {
	if renewer, able := c.Provider.(provider.Renewer); able {
		return renewer.Renew(ctx, req)
	}
	return time.Time{}, c.unable(provider.CapabilityRenew)
}

// Suspend implements provider.Suspender.
func (c *Checked) Suspend(ctx context.Context, ref provider.SandboxRef) error {
	if suspender, able := c.Provider.(provider.Suspender); able {
		return suspender.Suspend(ctx, ref)
	}
	return c.unable(provider.CapabilitySuspend)
}

// Destroy implements provider.Destroyer.
func (c *Checked) Destroy(ctx context.Context, ref provider.SandboxRef) error {
	if destroyer, able := c.Provider.(provider.Destroyer); able {
		return destroyer.Destroy(ctx, ref)
	}
	return c.unable(provider.CapabilityDestroy)
}

// Logs implements provider.LogReader.
func (c *Checked) Logs(ctx context.Context, req provider.LogsRequest) ([]string, error) {
	if reader, able := c.Provider.(provider.LogReader); able {
		return reader.Logs(ctx, req)
	}
	return nil, c.unable(provider.CapabilityLogs)
}

func (c *Checked) unable(to provider.Capability) error {
	return provider.Errorf(provider.CodeUnsupported, "provider %s cannot %s", c.name, to)
}

// check returns an error if the records name the sandbox as another session's. The error does not name the sandbox as the
// one concerned: nothing of it is this session's to end.
func (c *Checked) check(ctx context.Context, method, session, sandboxID string) error {
	other, err := c.otherSession(ctx, session, sandboxID)
	if err != nil {
		return err
	}
	if other == "" {
		return nil
	}
	return &provider.Error{
		Code: provider.CodeInternal, Reason: provider.ReasonInvalidReply,
		Message: fmt.Sprintf("the plugin's answer to %s gives session %q the sandbox %s, which is that of session %q",
			method, session, sandboxID, other),
	}
}

// withoutForeign returns an error of Create that does not name another session's sandbox as made by it.
func (c *Checked) withoutForeign(ctx context.Context, session string, err error) error {
	e := provider.AsError(err)
	if e.SandboxID == "" {
		return err
	}
	other, failure := c.otherSession(ctx, session, e.SandboxID)
	if failure == nil && other == "" {
		return err
	}
	nameless := *e
	nameless.SandboxID = ""
	if other != "" {
		nameless.Message += fmt.Sprintf(" (it names the sandbox %s, which is that of session %q)", e.SandboxID, other)
	}
	return &nameless
}

// otherSession returns the session, other than this one, that has the sandbox, or "".
func (c *Checked) otherSession(ctx context.Context, session, sandboxID string) (string, error) {
	// The answer is there whether or not its call was given up meanwhile.
	sessions, err := c.records.Naming(context.WithoutCancel(ctx), c.name, sandboxID)
	if err != nil {
		return "", &lease.Error{Cause: err}
	}
	for _, other := range sessions {
		if other != session {
			return other, nil
		}
	}
	return "", nil
}
