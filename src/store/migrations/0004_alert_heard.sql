-- When whoever raised an alert of the whole program last said that it still holds: of several programs on one database each
-- knows the ends of its own only.
ALTER TABLE quota_alerts ADD COLUMN heard_at BIGINT;
