-- Appends one message to a channel's journal, once.
-- KEYS: journal, seen   ARGV: length, remember_s (0: do not look for a repeat), then the entry's fields and values
-- Gives: cursor, 1 for a repeat
local remember = tonumber(ARGV[2])
if remember > 0 then
  local seen = redis.call('GET', KEYS[2])
  if seen then
    return {seen, 1}
  end
end
local fields = {}
for i = 3, #ARGV do
  fields[i - 2] = ARGV[i]
end
local cursor = redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[1], '*', unpack(fields))
if remember > 0 then
  redis.call('SET', KEYS[2], cursor, 'EX', remember)
end
return {cursor, 0}
