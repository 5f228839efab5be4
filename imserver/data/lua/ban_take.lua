-- Lifts a ban and gives what it was.   KEYS: bans   ARGV: channel
local known = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
return known
