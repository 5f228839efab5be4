-- Takes a worker's lease down if it still is this incarnation's.   KEYS: lease   ARGV: incarnation
local known = redis.call('GET', KEYS[1])
if known and cjson.decode(known).incarnation == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
