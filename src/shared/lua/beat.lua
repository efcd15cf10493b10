-- This replica is alive. Says whether it still counted as such: if not, its leases have gone to others.

local replicas = P .. 'replicas'
local ends = redis.call('ZSCORE', replicas, ask.replica)
redis.call('ZADD', replicas, whole(now + ask.alive), ask.replica)
redis.call('ZREMRANGEBYSCORE', replicas, '-inf', whole(now - 86400000))
keep(replicas, math.max(ask.life, 86400000))
return cjson.encode({
  known = (ends and tonumber(ends) > now) or false,
  replicas = redis.call('ZCOUNT', replicas, whole(now), '+inf'),
})
