-- Takes events from the list of the dead: to be told after all, or to be forgotten.
-- KEYS: the channel's prefix   ARGV: now_ms, 1 to tell them, how many at the most, then their places there (none: all)
-- Gives: how many
local prefix, now, again = KEYS[1], ARGV[1], ARGV[2] == '1'
local dead, found = prefix .. ':dead', {}
if #ARGV > 3 then
  for i = 4, #ARGV do
    found[#found + 1] = redis.call('XRANGE', dead, ARGV[i], ARGV[i])[1]
  end
else
  found = redis.call('XRANGE', dead, '-', '+', 'COUNT', ARGV[3])
end
for _, one in ipairs(found) do
  local fields = {}
  for i = 1, #one[2], 2 do fields[one[2][i]] = one[2][i + 1] end
  if again then
    local entry = redis.call('XADD', prefix .. ':events', '*', 'id', fields.id, 'event', fields.event, 'body',
      fields.body, 'ts', now)
    redis.call('ZADD', prefix .. ':due', now, entry)
  end
  redis.call('XDEL', dead, one[1])
end
return #found
