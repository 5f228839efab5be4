-- Bans a subject (a uid or an address) in one channel. What has ended in other channels goes; so does the key once
-- nothing in it holds any more.
-- KEYS: bans   ARGV: channel, entry (JSON with until_ts or null), now_ms
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local now, longest = tonumber(ARGV[3]), 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local ends = cjson.decode(all[i + 1]).until_ts
  if ends == cjson.null then
    longest = -1
  elseif ends <= now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif longest >= 0 and ends > longest then
    longest = ends
  end
end
if longest < 0 then
  redis.call('PERSIST', KEYS[1])
else
  redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', longest))
end
return 1
