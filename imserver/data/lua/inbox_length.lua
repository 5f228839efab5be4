-- How many messages of one channel an inbox keeps, and the last one's cursor.   KEYS: inbox   ARGV: channel
local count, last, from = 0, false, '-'
while true do
  local page = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 100)  -- bounds what is held at a time
  for _, entry in ipairs(page) do
    if cjson.decode(entry[2][4])[2] == ARGV[1] then
      count = count + 1
      last = entry[1]
    end
  end
  if #page < 100 then
    return {count, last}
  end
  from = '(' .. page[#page][1]
end
