-- The database refuses this entry of a journal for good: it is elsewhere now, and its conversation's tail says where.
-- KEYS: the partition's prefix   ARGV: consumer group, entry, queue or '', seq or 0, what the tail is to say
local prefix, group, entry = KEYS[1], ARGV[1], ARGV[2]
local tail = prefix .. ':tail:' .. ARGV[3]
redis.call('XACK', prefix .. ':journal', group, entry)
redis.call('XDEL', prefix .. ':journal', entry)
redis.call('ZREM', tail, entry)
if ARGV[4] ~= '0' then
  redis.call('ZADD', tail, ARGV[4], ARGV[5])
end
return 1
