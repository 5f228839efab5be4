-- Keeps events of a channel until its back office has been told.
-- KEYS: the channel's prefix   ARGV: now_ms, most events kept, most dead ones kept, then id, event, body, ...
local prefix, now = KEYS[1], ARGV[1]
local events, due, tries = prefix .. ':events', prefix .. ':due', prefix .. ':tries'
for i = 4, #ARGV, 3 do
  local entry = redis.call('XADD', events, '*', 'id', ARGV[i], 'event', ARGV[i + 1], 'body', ARGV[i + 2], 'ts', now)
  redis.call('ZADD', due, now, entry)
end
-- a back office that is away for very long: the oldest are given up, where it can be seen
local over = redis.call('XLEN', events) - tonumber(ARGV[2])
for _, oldest in ipairs(over > 0 and redis.call('XRANGE', events, '-', '+', 'COUNT', over) or {}) do
  local entry, fields = oldest[1], oldest[2]
  local count = redis.call('HGET', tries, entry) or '0'
  redis.call('XADD', prefix .. ':dead', 'MAXLEN', '=', ARGV[3], '*', 'tries', count, 'error',
    'too many events are waiting', 'died', now, unpack(fields))
  redis.call('XDEL', events, entry)
  redis.call('ZREM', due, entry)
  redis.call('HDEL', tries, entry)
end
return 1
