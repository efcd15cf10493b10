-- May this request run on this subscription? If so it is counted at once.

-- 1. The session: where another replica has bound it goes before where this one has put it.
local bound = ask.session ~= '' and binding(ask.session) or nil
if bound and bound.home ~= ask.home then
  local knows_better = bound.home == ask.moved_from or (ask.since and ask.since > bound.since)
  if not knows_better then return cjson.encode({ bound = bound.home }) end
end

local limits = ask.limits
local leases = live_leases(ask.subscription)
local full = nil

-- Of several limits the one that lasts longest is told; one without a known end can end at any moment.
local function refuse(why, wait)
  if not full or (wait or -1) > (full.wait or -1) then full = { full = why, wait = wait } end
end

-- 2. Requests at the same time.
if leases.count >= limits.concurrent then refuse('requests') end

-- 3. Rolling windows. The estimates of what runs count, so that a burst cannot run over a limit before its use is known.
local function check(name, rules)
  local wanted = false
  for _, rule in ipairs(rules) do wanted = wanted or rule.limit ~= nil end
  if not wanted then return end
  local width, slots = bucket_width(name), BUCKETS[name]
  local oldest = math.floor(now / width) - slots
  local buckets, sums = {}, { 0, 0, 0, 0 }
  for _, value in ipairs(redis.call('HVALS', P .. name .. ':' .. ask.subscription)) do
    local number, requests, tokens, input, cost = string.match(value, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
    number = tonumber(number)
    if number >= oldest then
      local counts = { tonumber(requests), tonumber(tokens), tonumber(input), tonumber(cost) }
      buckets[#buckets + 1] = { number = number, counts = counts }
      for index = 1, 4 do sums[index] = sums[index] + counts[index] end
    end
  end
  table.sort(buckets, function(one, other) return one.number < other.number end)
  for _, rule in ipairs(rules) do
    local used = sums[rule.of]
    if rule.limit and used + rule.reserved >= rule.limit then
      local wait = nil
      for _, bucket in ipairs(buckets) do
        if used < rule.limit then break end
        used = used - bucket.counts[rule.of]
        wait = (bucket.number + slots + 1) * width - now
      end
      refuse('capacity', wait)
    end
  end
end
check('minute', {
  { of = 1, limit = limits.requests_per_minute, reserved = 0 },
  { of = 2, limit = limits.tokens_per_minute, reserved = leases.tokens },
  { of = 3, limit = limits.input_tokens_per_minute, reserved = leases.tokens },
})
check('day', {
  { of = 2, limit = limits.tokens_per_day, reserved = leases.tokens },
  { of = 4, limit = limits.cost_per_day, reserved = leases.cost },
})

-- 4. Client slots: held by explicit sessions, and by requests that need one of their own while they run.
local clients = P .. 'clients:' .. ask.subscription
local holds_slot = ask.explicit and ask.home == ask.subscription
local own_slot = not holds_slot
redis.call('ZREMRANGEBYSCORE', clients, '-inf', whole(now - ask.session_life))
local gives_way = nil
if own_slot or not redis.call('ZSCORE', clients, ask.session) then
  if redis.call('ZCARD', clients) + leases.own_slots >= limits.clients then
    -- The longest idle session gives way, as it does where there is one replica only.
    local soonest = nil
    for index, session in ipairs(redis.call('ZRANGE', clients, 0, -1, 'WITHSCORES')) do
      if index % 2 == 1 then
        soonest = session
      elseif not leases.sessions[soonest] then
        local idle_at = tonumber(session) + ask.idle_after
        if idle_at <= now then gives_way = soonest else refuse('slots', idle_at - now) end
        break
      end
    end
    if not gives_way and not full then refuse('slots') end
  end
end
if full then return cjson.encode(full) end

if gives_way then
  redis.call('ZREM', clients, gives_way)
  redis.call('DEL', P .. 'session:' .. gives_way)
end
count(ask.subscription, 'minute', now, { requests = 1, tokens = 0, input = 0, cost = 0 })
lend(ask.subscription, {
  id = ask.lease, tokens = ask.tokens, cost = ask.cost, own_slot = own_slot, session = ask.session,
})
if ask.session ~= '' then
  local stays = bound and bound.home == ask.home
  bind(ask.session, ask.home, stays and bound.since or now, bound and bound.answered)
  if bound and not stays then redis.call('ZREM', P .. 'clients:' .. bound.home, ask.session) end
  if holds_slot then
    redis.call('ZADD', clients, whole(now), ask.session)
    keep(clients, ask.session_life)
  end
end
return cjson.encode({ admitted = true })
