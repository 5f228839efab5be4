-- Counts one attempt of a subject (a uid or an address) to connect; too many in a window suspend it. Trying while
-- suspended prolongs that; from its beginning a suspension lasts at most max_ms.
-- KEYS: attempts, suspension   ARGV: now_ms, limit, window_ms, suspend_ms, max_ms
-- Gives: until when (ms) it is suspended, 0 if it is not
local now, suspend, most = tonumber(ARGV[1]), tonumber(ARGV[4]), tonumber(ARGV[5])
local known = redis.call('GET', KEYS[2])
local since, ends = now, now
if known then
  since, ends = string.match(known, '^(%d+) (%d+)$')
  since, ends = tonumber(since), tonumber(ends)
end
if ends <= now then
  local count = redis.call('INCR', KEYS[1])
  if count == 1 then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
  end
  if count <= tonumber(ARGV[2]) then
    return 0
  end
  redis.call('DEL', KEYS[1])
  since, ends = now, now
end
ends = math.min(ends + suspend, since + most)
redis.call('SET', KEYS[2], string.format('%.0f %.0f', since, ends), 'PX', string.format('%.0f', ends - now))
return ends
