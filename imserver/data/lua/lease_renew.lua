-- Renews a worker's lease. A later started worker of the same name takes it over; the earlier one is told.
-- KEYS: lease   ARGV: value, ttl_ms, incarnation, since_ts
-- Gives: 1 renewed, 0 it was not there (expired, lost, or new), -1 a later worker has it
local known = redis.call('GET', KEYS[1])
local answer = 0
if known then
  local lease = cjson.decode(known)
  if lease.incarnation == ARGV[3] then
    answer = 1
  elseif lease.since_ts > tonumber(ARGV[4]) then
    return -1
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return answer
