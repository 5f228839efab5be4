-- Takes the lease on an outbox, so that one server at a time sends what is in it, in order.
-- KEYS: the partition's prefix   ARGV: queue, lease token, lease in ms
-- Gives: the head of the outbox, or '' if there is none or another server has the lease
local prefix, queue = KEYS[1], ARGV[1]
local lease = prefix .. ':lease:' .. queue
if not redis.call('SET', lease, ARGV[2], 'NX', 'PX', ARGV[3]) then
  return ''
end
local head = redis.call('LINDEX', prefix .. ':out:' .. queue, 0)
if head then
  return head
end
redis.call('DEL', lease)
redis.call('ZREM', prefix .. ':pending', queue)
return ''
