-- Moves what a user has read forward, never back and never past the last message.
-- KEYS: the partition's prefix   ARGV: conversation, uid, seq
-- Gives: {1 if it moved, the seq now read, agent}
local prefix, id, uid = KEYS[1], ARGV[1], ARGV[2]
local key = prefix .. ':conv:' .. id
local known = redis.call('HMGET', key, 'seq', 'read:' .. uid, 'agent')
local before = tonumber(known[2] or '0')
local seq = math.min(tonumber(ARGV[3]), tonumber(known[1] or '0'))
if seq <= before then
  return {0, before, known[3] or ''}
end
redis.call('HSET', key, 'read:' .. uid, seq)
redis.call('XADD', prefix .. ':journal', '*', 'kind', 'read', 'q', id, 'uid', uid, 'seq', seq)
return {1, seq, known[3] or ''}
