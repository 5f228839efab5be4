-- The head of an outbox has been sent (or could not be): the next one, while the lease is still ours.
-- KEYS: the partition's prefix   ARGV: queue, lease token, lease in ms, now_ms, 1 if it was sent
-- Gives: the next head, or '' if there is none, or the lease is lost or given back
local prefix, queue = KEYS[1], ARGV[1]
local lease, out, pending = prefix .. ':lease:' .. queue, prefix .. ':out:' .. queue, prefix .. ':pending'
if redis.call('GET', lease) ~= ARGV[2] then
  return ''
end
if ARGV[5] == '1' then
  redis.call('LPOP', out)
  local head = redis.call('LINDEX', out, 0)
  if head then
    redis.call('PEXPIRE', lease, ARGV[3])
    redis.call('ZADD', pending, ARGV[4], queue)
    return head
  end
  redis.call('ZREM', pending, queue)
else
  redis.call('ZADD', pending, ARGV[4], queue)
end
redis.call('DEL', lease)
return ''
