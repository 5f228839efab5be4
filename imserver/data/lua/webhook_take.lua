-- Takes events that are due, for a while: who takes them and dies leaves them to others.
-- KEYS: the channel's prefix   ARGV: now_ms, for how long in ms, how many
-- Gives: {entry, attempt, fields} of each
local prefix, found = KEYS[1], {}
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':due', '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])) do
  local kept = redis.call('XRANGE', prefix .. ':events', entry, entry)[1]
  if kept then
    redis.call('ZADD', prefix .. ':due', string.format('%.0f', ARGV[1] + ARGV[2]), entry)
    found[#found + 1] = {entry, redis.call('HINCRBY', prefix .. ':tries', entry, 1), kept[2]}
  else
    redis.call('ZREM', prefix .. ':due', entry)
  end
end
return found
