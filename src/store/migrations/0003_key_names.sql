-- The name of a key that was withdrawn may be given to another one. SQLite cannot take a constraint off a table, so both
-- databases get the table anew. The old one is renamed first: that keeps others from writing to it until all is done.
ALTER TABLE client_keys RENAME TO client_keys_before;
CREATE TABLE client_keys (
  id TEXT PRIMARY KEY,
  organization_id TEXT,
  name TEXT NOT NULL,
  digest TEXT NOT NULL UNIQUE,
  -- The key's first characters, to tell keys apart.
  hint TEXT NOT NULL,
  scopes TEXT NOT NULL,
  models TEXT,
  subscriptions TEXT,
  requests_per_minute BIGINT,
  weekly_budget BIGINT,
  priority TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  revoked_at BIGINT,
  last_used_at BIGINT
);
INSERT INTO client_keys (id, organization_id, name, digest, hint, scopes, models, subscriptions, requests_per_minute,
  weekly_budget, priority, created_at, expires_at, revoked_at, last_used_at)
  SELECT id, organization_id, name, digest, hint, scopes, models, subscriptions, requests_per_minute,
    weekly_budget, priority, created_at, expires_at, revoked_at, last_used_at FROM client_keys_before;
DROP TABLE client_keys_before;
CREATE INDEX client_keys_organization ON client_keys (organization_id, id);
CREATE UNIQUE INDEX client_keys_name ON client_keys (name) WHERE revoked_at IS NULL;
