-- What this replica has lent on one subscription is exactly this: what is missing is added, whatever the limits say,
-- because it runs; what is too much goes back.

local key = P .. 'leases:' .. ask.subscription
local running = {}
for _, lease in ipairs(ask.leases) do
  local name = ask.replica .. ':' .. lease.id
  running[name] = true
  -- One that is there already was counted when it came: then the answer to that was lost.
  local is_new = redis.call('HEXISTS', key, name) == 0
  lend(ask.subscription, lease)
  if lease.started_age and is_new then
    count(ask.subscription, 'minute', now - lease.started_age, { requests = 1, tokens = 0, input = 0, cost = 0 })
  end
end
for _, lease in ipairs(redis.call('HKEYS', key)) do
  if string.match(lease, '^([^:]*):') == ask.replica and not running[lease] then redis.call('HDEL', key, lease) end
end
return '{}'
