-- Makes a conversation, or brings one back that the database knows and Redis has lost.
-- KEYS: the partition's prefix   ARGV: conversation, channel, shop, customer, now_ms, seq, ts, last message,
--   senders (a byte for each message), 1 if it is new (the archive is told), then field, value, ... (reads, people)
-- Gives: 1, or 0 if it was there
local prefix, id = KEYS[1], ARGV[1]
local key = prefix .. ':conv:' .. id
if redis.call('EXISTS', key) == 1 then
  return 0
end
redis.call('HSET', key, 'channel', ARGV[2], 'shop', ARGV[3], 'customer', ARGV[4], 'created', ARGV[5],
  'seq', ARGV[6], 'ts', ARGV[7], 'last', ARGV[8])
for i = 11, #ARGV, 2 do
  redis.call('HSET', key, ARGV[i], ARGV[i + 1])
end
if ARGV[9] ~= '' then
  redis.call('SET', prefix .. ':senders:' .. id, ARGV[9])
end
if ARGV[10] == '1' then
  redis.call('XADD', prefix .. ':journal', '*', 'kind', 'new', 'q', id, 'channel', ARGV[2], 'shop', ARGV[3],
    'customer', ARGV[4], 'ts', ARGV[5])
end
return 1
