-- Every condition that holds; those that have ended are forgotten.

local key = P .. 'conditions'
local all = redis.call('HGETALL', key)
local held = {}
for index = 1, #all, 2 do
  local ends, news = string.match(all[index + 1], '^(%d+) (.*)$')
  if tonumber(ends) > now then held[#held + 1] = news else redis.call('HDEL', key, all[index]) end
end
local newest = redis.call('XREVRANGE', P .. 'news', '+', '-', 'COUNT', 1)
return cjson.encode({ news = #held > 0 and held or nil, newest = newest[1] and newest[1][1] or '0-0' })
