-- The first tables. One text for SQLite and PostgreSQL: instants are milliseconds since the Unix epoch, money is
-- micro-dollars, lists and settings are JSON text, ids are UUIDs (version 7, so that they sort by time).

-- Subscriptions registered while the program runs.
CREATE TABLE claude_accounts (
  id TEXT PRIMARY KEY,
  organization_id TEXT,
  -- The subscription's name in the pool.
  name TEXT NOT NULL UNIQUE,
  -- claude-pro, claude-max or api.
  kind TEXT NOT NULL,
  enabled BOOLEAN NOT NULL,
  settings TEXT NOT NULL,
  -- The API key or long-lived token, encrypted.
  sealed_secret TEXT,
  metadata TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL
);
CREATE INDEX claude_accounts_organization ON claude_accounts (organization_id, id);

-- Who may use the proxy. Of a key only its SHA-256 is kept.
CREATE TABLE client_keys (
  id TEXT PRIMARY KEY,
  organization_id TEXT,
  name TEXT NOT NULL UNIQUE,
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
CREATE INDEX client_keys_organization ON client_keys (organization_id, id);

-- What each attempt used. The id is given before the first try to write it, so that it is written once.
CREATE TABLE usage_records (
  id TEXT PRIMARY KEY,
  organization_id TEXT,
  subscription TEXT NOT NULL,
  client TEXT NOT NULL,
  session TEXT NOT NULL,
  model TEXT NOT NULL,
  -- The activity it belongs to.
  activity_id TEXT,
  at BIGINT NOT NULL,
  cost BIGINT NOT NULL,
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  reasoning_tokens BIGINT NOT NULL,
  cache_creation_tokens BIGINT NOT NULL,
  cache_read_tokens BIGINT NOT NULL,
  duration_ms BIGINT NOT NULL,
  outcome TEXT NOT NULL
);
CREATE INDEX usage_records_at ON usage_records (at);
CREATE INDEX usage_records_subscription ON usage_records (subscription, at);
CREATE INDEX usage_records_client ON usage_records (client, at);
CREATE INDEX usage_records_organization ON usage_records (organization_id, at);

-- Old usage by the day (UTC).
CREATE TABLE usage_days (
  day BIGINT NOT NULL,
  -- Empty where there is none: a key's columns have values.
  organization_id TEXT NOT NULL,
  subscription TEXT NOT NULL,
  client TEXT NOT NULL,
  model TEXT NOT NULL,
  requests BIGINT NOT NULL,
  cost BIGINT NOT NULL,
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  reasoning_tokens BIGINT NOT NULL,
  cache_creation_tokens BIGINT NOT NULL,
  cache_read_tokens BIGINT NOT NULL,
  duration_ms BIGINT NOT NULL,
  PRIMARY KEY (day, organization_id, subscription, client, model)
);

-- One row a request of a client.
CREATE TABLE activities (
  id TEXT PRIMARY KEY,
  organization_id TEXT,
  client TEXT NOT NULL,
  session TEXT NOT NULL,
  model TEXT NOT NULL,
  -- Who served it last.
  subscription TEXT,
  status TEXT NOT NULL,
  attempts BIGINT NOT NULL,
  started_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  completed_at BIGINT,
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  cost BIGINT NOT NULL,
  duration_ms BIGINT,
  error TEXT,
  -- Counts the changes of the row: an older state never replaces a newer one.
  revision BIGINT NOT NULL
);
CREATE INDEX activities_started ON activities (started_at);
CREATE INDEX activities_status ON activities (status, updated_at);
CREATE INDEX activities_organization ON activities (organization_id, id);

CREATE TABLE quota_alerts (
  id TEXT PRIMARY KEY,
  organization_id TEXT,
  -- The subscription's name; none for what concerns the whole program.
  account TEXT,
  kind TEXT NOT NULL,
  severity TEXT NOT NULL,
  message TEXT NOT NULL,
  current_value BIGINT,
  limit_value BIGINT,
  percentage DOUBLE PRECISION,
  quota_type TEXT,
  created_at BIGINT NOT NULL,
  resolved_at BIGINT
);
CREATE INDEX quota_alerts_created ON quota_alerts (created_at);
CREATE INDEX quota_alerts_open ON quota_alerts (resolved_at, account, kind);

CREATE TABLE audit_log (
  id TEXT PRIMARY KEY,
  organization_id TEXT,
  at BIGINT NOT NULL,
  -- Whose key did it, or `local` on the machine itself.
  actor TEXT NOT NULL,
  action TEXT NOT NULL,
  target TEXT NOT NULL,
  detail TEXT NOT NULL
);
CREATE INDEX audit_log_at ON audit_log (at);

-- What the pool has learned of each subscription: limits, breaker, logins. Budgets follow from usage_records.
CREATE TABLE subscription_states (
  subscription TEXT PRIMARY KEY,
  state TEXT NOT NULL,
  updated_at BIGINT NOT NULL
);

-- Which subscription each session sticks to.
CREATE TABLE sticky_sessions (
  id TEXT PRIMARY KEY,
  subscription TEXT NOT NULL,
  since BIGINT NOT NULL,
  last_used BIGINT NOT NULL
);
CREATE INDEX sticky_sessions_last_used ON sticky_sessions (last_used);
