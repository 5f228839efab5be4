-- What became of an attempt to tell an event.
-- KEYS: the channel's prefix   ARGV: entry, now_ms, `told`, `dead` or when it is tried again (ms), why it failed,
--   most dead ones kept
local prefix, entry, now, outcome = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local events, state = prefix .. ':events', prefix .. ':state'
local kept = redis.call('XRANGE', events, entry, entry)[1]
if outcome == 'told' then
  redis.call('HSET', state, 'told', now)
else
  redis.call('HSET', state, 'failed', now, 'error', ARGV[4])
end
if not kept then  -- another server, to whom it came after our time was over, was faster
  return 0
end
if outcome ~= 'told' and outcome ~= 'dead' then
  redis.call('ZADD', prefix .. ':due', outcome, entry)
  return 1
end
if outcome == 'dead' then
  redis.call('XADD', prefix .. ':dead', 'MAXLEN', '=', ARGV[5], '*', 'tries',
    redis.call('HGET', prefix .. ':tries', entry) or '0', 'error', ARGV[4], 'died', now, unpack(kept[2]))
end
redis.call('XDEL', events, entry)
redis.call('ZREM', prefix .. ':due', entry)
redis.call('HDEL', prefix .. ':tries', entry)
return 1
