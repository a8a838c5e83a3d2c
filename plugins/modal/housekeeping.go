package main

import (
	"context"
	"io"
	"slices"

	"github.com/berth-dev/berth/shared/provider"
)

var _ io.Closer = (*Modal)(nil)

// List lists a session's sandboxes by their tags, where the kit would look the name up: a name is found only once its
// sandbox runs, but the sandbox is listed before.
func (m *Modal) List(ctx context.Context, req provider.ListRequest) ([]provider.Sandbox, error) {
	if req.AllOwners || req.Session == "" {
		return m.Provider.List(ctx, req)
	}
	listed, err := m.Provider.List(ctx, provider.ListRequest{AllOwners: true, Owner: req.Owner, Session: req.Session})
	return slices.DeleteFunc(listed, func(s provider.Sandbox) bool { return s.Owner != req.Owner }), err
}

// Close is called before the plugin exits.
func (m *Modal) Close() error {
	m.api.close()
	return m.Provider.Close()
}
