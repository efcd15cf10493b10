-- What share of a week an alert told of, in percent: its end resolves it and no other. None for alerts of other kinds.
ALTER TABLE quota_alerts ADD COLUMN threshold DOUBLE PRECISION;
