-- What all scripts begin with. Each takes one argument, a JSON object, and answers with one.
-- KEYS[1] begins the name of every key. The names are put together here, so a script works on one server, not on a
-- cluster that spreads keys.
-- The time is that of the server: the clocks of replicas do not have to agree.

local P = KEYS[1]
local ask = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

local function keep(key, life)
  redis.call('PEXPIRE', key, whole(life))
end

-- A rolling window is a ring of buckets. A field holds the number of its bucket and what was counted in it, so that a
-- field of an earlier round counts as empty. One bucket more than fills the window is counted: what was used leaves it
-- at most one bucket late and never early.
local BUCKETS = { minute = 60, day = 144 }

local function bucket_width(name)
  return ask.windows[name] / BUCKETS[name]
end

local function count(subscription, name, at, counts)
  local key = P .. name .. ':' .. subscription
  local bucket = math.floor(at / bucket_width(name))
  local field = whole(bucket % (BUCKETS[name] + 1))
  local sums = { 0, 0, 0, 0 }
  local held = redis.call('HGET', key, field)
  if held then
    local number, requests, tokens, input, cost = string.match(held, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
    if tonumber(number) > bucket then return end
    if tonumber(number) == bucket then
      sums = { tonumber(requests), tonumber(tokens), tonumber(input), tonumber(cost) }
    end
  end
  redis.call('HSET', key, field, table.concat({
    whole(bucket), whole(sums[1] + counts.requests), whole(sums[2] + counts.tokens), whole(sums[3] + counts.input),
    whole(sums[4] + counts.cost),
  }, ' '))
  keep(key, math.max(ask.life, ask.windows[name] + bucket_width(name)))
end

local function count_all(subscription, at, counts)
  count(subscription, 'minute', at, counts)
  count(subscription, 'day', at, counts)
end

-- The leases of replicas that are alive; those of others go back.
local function live_leases(subscription)
  local key = P .. 'leases:' .. subscription
  local all = redis.call('HGETALL', key)
  local alive = {}
  local found = { count = 0, tokens = 0, cost = 0, own_slots = 0, sessions = {} }
  for index = 1, #all, 2 do
    local lease, value = all[index], all[index + 1]
    local replica = string.match(lease, '^([^:]*):')
    if alive[replica] == nil then
      local ends = redis.call('ZSCORE', P .. 'replicas', replica)
      alive[replica] = (ends and tonumber(ends) > now) or false
    end
    if alive[replica] then
      local tokens, cost, own, session = string.match(value, '^(%d+) (%d+) (%d) (.*)$')
      found.count = found.count + 1
      found.tokens = found.tokens + tonumber(tokens)
      found.cost = found.cost + tonumber(cost)
      found.own_slots = found.own_slots + tonumber(own)
      found.sessions[session] = true
    else
      redis.call('HDEL', key, lease)
    end
  end
  return found
end

local function lend(subscription, lease)
  local own = lease.own_slot and 1 or 0
  local value = table.concat({ whole(lease.tokens), whole(lease.cost), own, lease.session }, ' ')
  local key = P .. 'leases:' .. subscription
  redis.call('HSET', key, ask.replica .. ':' .. lease.id, value)
  keep(key, math.max(ask.life, 86400000))
end

-- Where a session is bound: subscription, since when, and whether it was ever answered.
local function binding(session)
  local held = redis.call('GET', P .. 'session:' .. session)
  if not held then return nil end
  local since, answered, home = string.match(held, '^(%d+) (%d) (.*)$')
  return { home = home, since = tonumber(since), answered = answered == '1' }
end

local function bind(session, home, since, answered)
  local value = whole(since) .. ' ' .. (answered and '1' or '0') .. ' ' .. home
  redis.call('SET', P .. 'session:' .. session, value, 'PX', whole(ask.session_life))
end

local function tell(news)
  local key = P .. 'news'
  redis.call('XADD', key, 'MAXLEN', '~', '10000', '*', 'replica', ask.replica, 'news', news)
  keep(key, math.max(ask.life, 3600000))
end
