-- +goose Up
-- Both SQLite and PostgreSQL run these files. Times are milliseconds since 1970; 0 is no time.

CREATE TABLE sessions (
  owner      TEXT   NOT NULL,
  session    TEXT   NOT NULL,
  provider   TEXT   NOT NULL DEFAULT '',
  sandbox_id TEXT   NOT NULL DEFAULT '',
  attempt    TEXT   NOT NULL DEFAULT '',
  state      TEXT   NOT NULL,
  holder     TEXT   NOT NULL DEFAULT '', -- who has the lease, if there is such a holder; '' is nobody
  token      BIGINT NOT NULL,
  created_at BIGINT NOT NULL DEFAULT 0,
  updated_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (owner, session)
);

-- A host at work. Its leases live as long as its row: until is moved on by its heartbeat.
CREATE TABLE holders (
  id          TEXT   NOT NULL PRIMARY KEY,
  description TEXT   NOT NULL,
  until       BIGINT NOT NULL,
  ttl         BIGINT NOT NULL
);

CREATE TABLE about (
  owner TEXT   NOT NULL PRIMARY KEY,
  began BIGINT NOT NULL
);
