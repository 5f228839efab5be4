-- Moves acknowledged cursors of one user's devices forward, never back.
-- KEYS: cursors   ARGV: ttl_s, devices_max, then device, cursor, device, cursor, ...
local function later(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  am, as, bm, bs = tonumber(am), tonumber(as), tonumber(bm), tonumber(bs)
  return am > bm or (am == bm and as > bs)
end
for i = 3, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  if not known or later(ARGV[i + 1], known) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
local surplus = redis.call('HLEN', KEYS[1]) - tonumber(ARGV[2])
while surplus > 0 do  -- device names are the client's own choice: the one furthest behind is forgotten
  local all = redis.call('HGETALL', KEYS[1])
  local oldest = 1
  for i = 3, #all, 2 do
    if later(all[oldest + 1], all[i + 1]) then oldest = i end
  end
  redis.call('HDEL', KEYS[1], all[oldest])
  surplus = surplus - 1
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
