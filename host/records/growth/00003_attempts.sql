-- +goose Up
-- Every attempt to create a sandbox. A session's own attempt is the one that its row in sessions names, and that row says
-- how it stands; what is written here of an earlier one, sessions has forgotten.

CREATE TABLE attempts (
  owner      TEXT   NOT NULL,
  session    TEXT   NOT NULL,
  id         TEXT   NOT NULL,
  provider   TEXT   NOT NULL DEFAULT '',
  sandbox_id TEXT   NOT NULL DEFAULT '',
  state      TEXT   NOT NULL,
  generation TEXT   NOT NULL DEFAULT '', -- what the key of the sandbox's server is derived from
  created_at BIGINT NOT NULL DEFAULT 0,
  updated_at BIGINT NOT NULL,
  PRIMARY KEY (owner, session, id)
);

CREATE INDEX attempts_owed ON attempts (owner) WHERE state IN ('creating', 'destroying');
