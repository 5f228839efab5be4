-- Stores one message in an inbox, once, and looks up where its owner is connected, in one atomic step: a connection
-- that registers later finds the message in its backlog, one that registered earlier is in the answer.
-- KEYS: inbox, connections, seen   ARGV: head, tail, length, ttl_s, remember_s (0: do not look for a repeat)
-- Gives: cursor, cursor of the message before it, 1 for a repeat, the connections
local remember = tonumber(ARGV[5])
if remember > 0 then
  local seen = redis.call('GET', KEYS[3])
  if seen then
    local cursor, prev = string.match(seen, '^(%S+) (%S+)$')
    return {cursor, prev, 1, redis.call('HVALS', KEYS[2])}
  end
end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local prev = newest[1] and newest[1][1] or '0-0'
local cursor = redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[3], '*', 'p', prev, 'h', ARGV[1], 't', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
if remember > 0 then
  redis.call('SET', KEYS[3], cursor .. ' ' .. prev, 'EX', remember)
end
return {cursor, prev, 0, redis.call('HVALS', KEYS[2])}
