package connect

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"

	"github.com/berth-dev/berth/shared/provider"
)

// findServer returns the endpoints of a sandbox that was found running, and reports whether its server is healthy: then
// it need not be started. It asks once.
func (a *attempt) findServer(ctx context.Context, sandbox provider.Sandbox) (endpoints provider.Endpoints, healthy bool, err error) {
	if sandbox.Origin != provider.OriginAttached || sandbox.Endpoints == nil {
		return provider.Endpoints{}, false, nil
	}
	a.enter(PhaseHealth)
	if endpoints, err = a.admit(*sandbox.Endpoints); err != nil {
		return endpoints, false, err
	}
	result, err := a.ping(ctx, endpoints.Server, answerSlack)
	healthy = err == nil && result.Status == provider.PingAlive
	message := "server is up"
	if !healthy {
		message = "server is not up"
	}
	a.timings.Health = a.leave(message)
	return endpoints, healthy, nil
}

// startServer starts the server in the sandbox and returns its endpoints, with the session key.
func (a *attempt) startServer(ctx context.Context) (provider.Endpoints, error) {
	if err := a.lease.Check(ctx); err != nil {
		return provider.Endpoints{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.req.Limits.Start, errStart)
	defer cancel()
	request := provider.StartServerRequest{
		Session: a.req.Session, Owner: a.account.Owner, SandboxID: a.sandboxID, Server: a.server,
	}
	endpoints, err := onceMoreAfterCrash(func() (provider.Endpoints, error) {
		return a.account.Provider.StartServer(ctx, request)
	})
	if err != nil {
		return endpoints, cmp.Or(context.Cause(ctx), err)
	}
	return a.admit(endpoints)
}

// admit returns a provider's endpoints, of whichever call, as callers are to use them: with the session key. It refuses
// those that anyone could use, and those whose provider needs the header in which the server expects its key.
func (a *attempt) admit(endpoints provider.Endpoints) (provider.Endpoints, error) {
	open := &Error{
		Code: CodeStartFailed, Reason: ReasonOpenServer,
		Message: "the server would be open to anyone: neither the provider nor the server asks for a key",
	}
	if a.openToAnyone(endpoints.Server) {
		return endpoints, open
	}
	for _, name := range slices.Sorted(maps.Keys(endpoints.Extra)) {
		if a.openToAnyone(endpoints.Extra[name]) {
			open.Message = fmt.Sprintf("the extra port %q would be open to anyone: neither the provider nor the server asks for a key", name)
			return endpoints, open
		}
	}
	return a.withKey(endpoints)
}

// openToAnyone reports whether a port can be reached without any key, and that was not asked for.
func (a *attempt) openToAnyone(endpoint provider.Endpoint) bool {
	server := a.req.Server
	return server.KeyHeader == "" && len(endpoint.Headers) == 0 && !server.AllowPublic && !isLoopback(endpoint.URL)
}

// isLoopback reports whether the URL can only be reached from the machine itself.
func isLoopback(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	address, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && address.IsLoopback()
}
