-- A conversation as a list shows it to one user.   KEYS: the partition's prefix   ARGV: conversation, uid
-- Gives: {channel, shop, customer, ts, last message, unread} or nothing
-- Unread is exact: a byte for each message says who sent it, 0 for what does not count (system, recall, recalled).
local prefix, id, uid = KEYS[1], ARGV[1], ARGV[2]
local known = redis.call('HMGET', prefix .. ':conv:' .. id, 'channel', 'shop', 'customer', 'ts', 'last', 'read:' .. uid,
  'who:' .. uid)
if not known[1] then
  return {}
end
local unread, own = 0, tonumber(known[7] or '-1')
local senders = redis.call('GETRANGE', prefix .. ':senders:' .. id, tonumber(known[6] or '0'), -1)
for i = 1, #senders do
  local sender = string.byte(senders, i)
  if sender ~= 0 and sender ~= own then
    unread = unread + 1
  end
end
return {known[1], known[2], known[3], known[4], known[5] or '', unread}
