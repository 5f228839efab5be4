-- Tells the conversation who has it now, and sends that agent what the customer wrote and nobody answered.
-- KEYS: the partition's prefix   ARGV: conversation, agent or '', epoch, now_ms
-- Gives: the time of its last message, or -1 if it is not known here
local prefix, id = KEYS[1], ARGV[1]
local key = prefix .. ':conv:' .. id
local known = redis.call('HMGET', key, 'seq', 'agent', 'epoch', 'ts')
if not known[1] then
  return -1
end
if tonumber(ARGV[3]) > tonumber(known[3] or '0') then
  redis.call('HSET', key, 'agent', ARGV[2], 'epoch', ARGV[3])
  if ARGV[2] ~= '' and ARGV[2] ~= (known[2] or '') then
    for _, message in ipairs(redis.call('LRANGE', prefix .. ':unanswered:' .. id, 0, -1)) do
      redis.call('RPUSH', prefix .. ':out:' .. id,
        '{"to":["' .. ARGV[2] .. '"],"sender":"","cid":"","origin":"","message":' .. message .. '}')
      redis.call('ZADD', prefix .. ':pending', 'NX', ARGV[4], id)
    end
  end
end
return tonumber(known[4])
