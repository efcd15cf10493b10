-- A request has ended: its lease goes back, what it used is counted, and the other replicas hear of it. A replica that
-- got no answer tells it again, and cannot know whether the first time was carried out: it counts once.

local told = P .. 'settled:' .. ask.replica .. ':' .. ask.lease
if not redis.call('SET', told, '1', 'NX', 'PX', whole(math.max(ask.life, 3600000))) then return '{}' end

local was_lent = redis.call('HDEL', P .. 'leases:' .. ask.subscription, ask.replica .. ':' .. ask.lease) == 1
local at = now - ask.age
if ask.started_age and not was_lent then
  -- It was granted while the server was out of reach. Where it is among the leases all the same it was counted then.
  count(ask.subscription, 'minute', now - ask.started_age, { requests = 1, tokens = 0, input = 0, cost = 0 })
end
if ask.tokens > 0 or ask.cost > 0 then
  count_all(ask.subscription, at, { requests = 0, tokens = ask.tokens, input = ask.input, cost = ask.cost })
end
if ask.session ~= '' then
  local clients = P .. 'clients:' .. ask.home
  local bound = binding(ask.session)
  if ask.answered then
    if not bound or bound.home == ask.home then
      bind(ask.session, ask.home, bound and bound.since or at, true)
      if ask.explicit then
        redis.call('ZADD', clients, whole(at), ask.session)
        keep(clients, ask.session_life)
      end
    end
  elseif bound and bound.home == ask.home and not bound.answered then
    -- It was never answered, so it has nothing to come back for.
    redis.call('DEL', P .. 'session:' .. ask.session)
    redis.call('ZREM', clients, ask.session)
  end
end
tell(ask.news)
return '{}'
