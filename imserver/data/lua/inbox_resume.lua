-- Where a device goes on reading its owner's inbox.
-- KEYS: inbox, cursors   ARGV: since ('' what it acknowledged, '$' only what is new), now_ms, ttl_ms, then CHANNEL/DEVICE
--   for each channel that it receives: the earliest cursor counts
-- Gives: the cursor to read on from, the last cursor, 1 if nothing after it has left the inbox
local function parts(cursor)
  local ms, seq = string.match(cursor, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function later(a, b)
  local am, as = parts(a)
  local bm, bs = parts(b)
  return am > bm or (am == bm and as > bs)
end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local last = newest[1] and newest[1][1] or '0-0'
local since = ARGV[1]
if since == '$' then
  return {last, last, 1}
end
if since == '' then
  for i = 4, #ARGV do
    local known = redis.call('HGET', KEYS[2], ARGV[i]) or '0-0'
    if since == '' or later(since, known) then since = known end
  end
end
if later(since, last) then  -- an inbox that expired or was lost
  return {last, last, 0}
end
local following = redis.call('XRANGE', KEYS[1], '(' .. since, '+', 'COUNT', 1)
if not following[1] then
  return {since, last, 1}
end
local prev = following[1][2][2]
local whole = not later(prev, since)
if whole and prev == '0-0' and since ~= '0-0' then
  -- the first message of a stream: an older stream, with more after `since`, can only have expired if `since` is old
  whole = tonumber(ARGV[2]) - parts(since) < tonumber(ARGV[3])
end
return {since, last, whole and 1 or 0}
