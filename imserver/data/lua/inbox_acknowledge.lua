-- Moves acknowledged cursors of one user's devices forward, never back.
-- KEYS: cursors   ARGV: ttl_s, devices_max (in each channel), then CHANNEL/DEVICE, cursor, CHANNEL/DEVICE, cursor, ...
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
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[2]) then
  -- device names are the client's own choice: those furthest behind are forgotten
  local all, by_channel = redis.call('HGETALL', KEYS[1]), {}
  for i = 1, #all, 2 do
    local channel = string.match(all[i], '^([^/]*)/') or ''
    by_channel[channel] = by_channel[channel] or {}
    table.insert(by_channel[channel], {all[i], all[i + 1]})
  end
  for _, devices in pairs(by_channel) do
    if #devices > tonumber(ARGV[2]) then
      table.sort(devices, function(a, b) return later(b[2], a[2]) end)
      for i = 1, #devices - tonumber(ARGV[2]) do
        redis.call('HDEL', KEYS[1], devices[i][1])
      end
    end
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
