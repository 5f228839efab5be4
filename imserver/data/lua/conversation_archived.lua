-- The database has these entries of a journal: they may go.
-- KEYS: the partition's prefix   ARGV: consumer group, then entry, queue or '', ...
local prefix, group = KEYS[1], ARGV[1]
local journal = prefix .. ':journal'
for i = 2, #ARGV, 2 do
  redis.call('XACK', journal, group, ARGV[i])
  redis.call('XDEL', journal, ARGV[i])
  if ARGV[i + 1] ~= '' then
    redis.call('ZREM', prefix .. ':tail:' .. ARGV[i + 1], ARGV[i])
  end
end
return 1
