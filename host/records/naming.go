package records

import (
	"context"
	"slices"
)

// Naming implements Store.
func (s *SQL) Naming(ctx context.Context, provider, sandboxID string) ([]Record, error) {
	return s.read(ctx, selectRecord+` AND provider = $2 AND sandbox_id = $3 AND state <> $4`, s.owner, provider, sandboxID, StateGone)
}

// Naming implements Store.
func (s *MemoryStore) Naming(ctx context.Context, provider, sandboxID string) ([]Record, error) {
	all, err := s.List(ctx)
	return slices.DeleteFunc(all, func(r Record) bool {
		return r.Provider != provider || r.SandboxID != sandboxID || !r.HasSandbox()
	}), err
}
