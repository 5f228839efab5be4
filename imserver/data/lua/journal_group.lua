-- Makes the consumer group of a journal, from its beginning on, unless it is there.   KEYS: journal   ARGV: group
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP') then
  return redis.error_reply(made.err)
end
return 1
