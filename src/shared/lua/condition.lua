-- A condition of a subscription that ends at a known time, for those who start later. Of two the one that ends later
-- counts: nobody's milder view shortens what another has learned. Only what is new is told to those who listen. What is
-- over is over for every condition whose name begins so.

local key = P .. 'conditions'
local ends = now + ask.ends_in
local held = redis.call('HGET', key, ask.name)
local known = held and tonumber(string.match(held, '^(%d+) ')) or 0
if ask.over then
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if string.sub(name, 1, #ask.name) == ask.name then redis.call('HDEL', key, name) end
  end
elseif ask.name ~= '' and known < ends then
  redis.call('HSET', key, ask.name, whole(ends) .. ' ' .. ask.news)
  keep(key, 8 * 86400000)
end
tell(ask.news)
return '{}'
