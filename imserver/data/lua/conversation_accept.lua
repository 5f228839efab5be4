-- Accepts one message, in one atomic step: is it a repeat, its number, the journal, the outbox.
--
-- Who is assigned is the shop's business; a copy is here, with the epoch of the assignment, so that a server with an
-- older view cannot send a message to an agent who lost the conversation.
-- KEYS: the partition's prefix
-- ARGV: 1 queue (the conversation, or `to.UID` for a message outside of any)   2 id
--   3 the message as JSON, without to, ts, conversation, seq and the closing brace   4 sender   5 cid or ''
--   6 origin connection or ''   7 now_ms   8 how long the cid is remembered, s   9 side: customer, shop or backend
--   10 1 if it counts as unread for others   11 agent or ''   12 epoch of that   13 seq taken back, or 0
--   14 lease token   15 lease, ms   16 unanswered messages kept   17 ... for so many s   18 further receivers, by blanks
--   19 1 if the sender's other devices get it   20 the receiver outside of a conversation
-- Gives: {'duplicate', seq, ts, queue} {'unknown'} {'refused'} or {'ok', seq, ts, agent, head of the outbox or ''}
local prefix, queue, id, sender, side = KEYS[1], ARGV[1], ARGV[2], ARGV[4], ARGV[9]
local now = tonumber(ARGV[7])
local seen = redis.call('GET', prefix .. ':dup:' .. id)
if seen then
  local seq, ts = string.match(seen, '^(%d+) (%d+)$')
  return {'duplicate', tonumber(seq), tonumber(ts)}
end
local out = prefix .. ':out:' .. queue

local function envelope(message, receivers, own)
  local cid = own and ARGV[5] or ''
  local origin = own and ARGV[6] or ''
  local who = own and sender or ''
  redis.call('RPUSH', out, '{"to":["' .. table.concat(receivers, '","') .. '"],"sender":"' .. who .. '","cid":"' .. cid
    .. '","origin":"' .. origin .. '","message":' .. message .. '}')
end

local receivers, listed = {}, {}
local function receive(uid)
  if uid ~= '' and not listed[uid] then
    listed[uid] = true
    receivers[#receivers + 1] = uid
  end
end

local seq, ts, agent, message = 0, now, '', nil
if ARGV[20] ~= '' then
  receive(ARGV[20])
  message = ARGV[3] .. string.format(',"to":"%s","ts":%.0f}', ARGV[20], ts)
else
  local key, senders = prefix .. ':conv:' .. queue, prefix .. ':senders:' .. queue
  local known = redis.call('HMGET', key, 'seq', 'ts', 'customer', 'shop', 'agent', 'epoch')
  if not known[1] then
    return {'unknown'}
  end
  seq, ts, agent = tonumber(known[1]) + 1, math.max(now, tonumber(known[2])), known[5] or ''
  local customer, shop = known[3], known[4]
  local mark = '\0'
  if ARGV[10] == '1' or ARGV[13] ~= '0' then
    local index = redis.call('HGET', key, 'who:' .. sender)
    if not index and ARGV[13] == '0' then
      index = math.min(redis.call('HINCRBY', key, 'people', 1), 255)
      redis.call('HSET', key, 'who:' .. sender, index)
    end
    mark = index and string.char(tonumber(index)) or '\0'
  end
  if ARGV[13] ~= '0' then
    local at = tonumber(ARGV[13]) - 1
    if mark == '\0' or redis.call('GETRANGE', senders, at, at) ~= mark then
      return {'refused'}
    end
    redis.call('SETRANGE', senders, at, '\0')
    mark = '\0'
  end
  local unanswered = prefix .. ':unanswered:' .. queue
  if tonumber(ARGV[12]) > tonumber(known[6] or '0') then
    redis.call('HSET', key, 'agent', ARGV[11], 'epoch', ARGV[12])
    if ARGV[11] ~= '' and ARGV[11] ~= agent then
      for _, earlier in ipairs(redis.call('LRANGE', unanswered, 0, -1)) do
        envelope(earlier, {ARGV[11]}, false)
      end
    end
    agent = ARGV[11]
  end
  local to = side == 'customer' and (agent ~= '' and agent or shop) or customer
  message = ARGV[3] .. string.format(',"to":"%s","ts":%.0f,"conversation":"%s","seq":%d}', to, ts, queue, seq)
  receive(customer)
  receive(agent)
  redis.call('SETRANGE', senders, seq - 1, mark)
  redis.call('HSET', key, 'seq', seq, 'ts', string.format('%.0f', ts), 'last', message)
  if side == 'customer' then
    redis.call('RPUSH', unanswered, message)
    redis.call('LTRIM', unanswered, -tonumber(ARGV[16]), -1)
    redis.call('EXPIRE', unanswered, ARGV[17])
  elseif side == 'shop' then
    redis.call('DEL', unanswered)
  end
end
if ARGV[19] == '1' then
  receive(sender)
end
for uid in string.gmatch(ARGV[18], '%S+') do
  receive(uid)
end
local entry = redis.call('XADD', prefix .. ':journal', '*', 'kind', 'message', 'q', queue, 'seq', seq, 'cid', ARGV[5],
  'message', message)
if seq > 0 then
  redis.call('ZADD', prefix .. ':tail:' .. queue, seq, entry)
end
if ARGV[5] ~= '' then
  redis.call('SET', prefix .. ':dup:' .. id, string.format('%d %.0f', seq, ts), 'EX', ARGV[8])
end
envelope(message, receivers, true)
redis.call('ZADD', prefix .. ':pending', 'NX', string.format('%.0f', now), queue)
local head = ''
if redis.call('SET', prefix .. ':lease:' .. queue, ARGV[14], 'NX', 'PX', ARGV[15]) then
  head = redis.call('LINDEX', out, 0)
end
return {'ok', seq, ts, agent, head}
