-- +goose Up
-- Every answer of a provider is held against the records that name its sandbox.

CREATE INDEX sessions_sandbox ON sessions (owner, provider, sandbox_id);
