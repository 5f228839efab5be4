-- The desk of one shop: its agents, who has which customer, who waits. Everything that changes it is here, so that each
-- change is one atomic step and leaves it right: no agent over capacity (but one whose capacity was lowered), no
-- conversation with two agents, nobody waiting beside an agent who is free for him, in order of arrival.
--
-- KEYS: the shop's prefix
-- ARGV: operation, conversation or agent, who is online (uids, by blanks), strategy, sticky 1 or 0, now_ms, what the
--   back office is told of (of `assigned waiting closed`), then by operation. Gives {result, a text, changes}; a change
--   is {conversation, customer, agent or '', state, position, epoch, the agent before or ''}.
local prefix, operation, subject = KEYS[1], ARGV[1], ARGV[2]
local strategy, sticky, now, wanted, more = ARGV[4], ARGV[5] == '1', ARGV[6], ARGV[7], {unpack(ARGV, 8)}
local function key(name) return prefix .. ':' .. name end
local function get(name, field) return redis.call('HGET', key(name), field) or '' end
local function tick() return redis.call('INCR', key('clock')) end

local online = {}
for uid in string.gmatch(ARGV[3], '%S+') do online[uid] = true end

local agents, loaded_agents = {}, false
local function load_agents()
  if loaded_agents then return end
  loaded_agents = true
  local all, load = redis.call('HGETALL', key('agents')), {}
  local loads = redis.call('HGETALL', key('load'))
  for i = 1, #loads, 2 do load[loads[i]] = tonumber(loads[i + 1]) end
  for i = 1, #all, 2 do
    local agent = cjson.decode(all[i + 1])
    agent.uid, agent.load, agent.has = all[i], load[all[i]] or 0, {}
    for _, skill in ipairs(agent.skills) do agent.has[skill] = true end
    agents[agent.uid] = agent
  end
end

local TOLD_MAX = 1000
local EVENTS_MAX = 10000
local changes, queued = {}, {}
local function change(id, agent, state, position, before)
  local epoch = tick()
  if state ~= 'closed' then redis.call('HSET', key('epoch'), id, epoch) end
  if state == 'closed' then
    redis.call('HDEL', key('unsettled'), id)
  elseif state == 'assigned' or before ~= '' then
    redis.call('HSET', key('unsettled'), id, epoch)
  end
  changes[#changes + 1] = {id, get('customer', id), agent, state, position, epoch, before}
end

local function free(agent)
  return agent.status == 'online' and online[agent.uid] and agent.load < agent.capacity
end

local function pick(id, except)
  local skill = get('skill', id)
  if skill ~= '' then  -- a skill that nobody here has would make its customer wait for ever
    local somebody = false
    for _, agent in pairs(agents) do somebody = somebody or agent.has[skill] end
    if not somebody then skill = '' end
  end
  local function fits(agent) return free(agent) and agent.uid ~= except and (skill == '' or agent.has[skill]) end
  local last = sticky and agents[get('last', id)]
  if last and fits(last) then return last end
  local best, best_load, best_turn
  for uid, agent in pairs(agents) do
    if fits(agent) then
      local load = strategy == 'least_loaded' and agent.load or 0
      local turn = tonumber(redis.call('HGET', key('served'), uid) or '0')
      if not best or load < best_load or (load == best_load and (turn < best_turn
          or (turn == best_turn and uid < best.uid))) then
        best, best_load, best_turn = agent, load, turn
      end
    end
  end
  return best
end

local function take_from(uid)
  if uid == '' then return end
  if redis.call('HINCRBY', key('load'), uid, -1) <= 0 then redis.call('HDEL', key('load'), uid) end
  if agents[uid] then agents[uid].load = agents[uid].load - 1 end
end

local function give(id, agent, before)
  redis.call('HSET', key('assigned'), id, agent.uid)
  redis.call('HSET', key('last'), id, agent.uid)
  redis.call('HINCRBY', key('load'), agent.uid, 1)
  agent.load = agent.load + 1
  redis.call('HSET', key('served'), agent.uid, tick())
  redis.call('HDEL', key('since'), id)
  redis.call('ZADD', key('unanswered'), 'XX', now, id)  -- his time to answer begins now
  change(id, agent.uid, 'assigned', 0, before)
end

local function enqueue(id, front)
  local score
  if front then
    local first = redis.call('ZRANGE', key('queue'), 0, 0, 'WITHSCORES')
    score = first[2] and tonumber(first[2]) - 1 or 0
  else
    local last = redis.call('ZRANGE', key('queue'), -1, -1, 'WITHSCORES')
    score = last[2] and tonumber(last[2]) + 1 or 0
  end
  redis.call('ZADD', key('queue'), score, id)
  redis.call('HSET', key('since'), id, now)
  queued[id] = true
end

-- Whoever waits and can be served is, in order; then the others hear of their new positions, TOLD_MAX of them at a
-- time. `first`: the rank from which on positions have changed already. Gives whether any have.
local function serve(first)
  load_agents()
  local left = 0
  for _, agent in pairs(agents) do
    if free(agent) then left = left + agent.capacity - agent.load end
  end
  local rank = 0
  while left > 0 do
    local waiting = redis.call('ZRANGE', key('queue'), rank, rank)[1]
    if not waiting then break end
    local agent = pick(waiting, '')
    if agent then
      redis.call('ZREM', key('queue'), waiting)
      give(waiting, agent, '')
      left = left - 1
      first = math.min(first or rank, rank)
    else
      rank = rank + 1
    end
  end
  if first then
    for i, id in ipairs(redis.call('ZRANGE', key('queue'), first, first + TOLD_MAX - 1)) do
      change(id, '', 'waiting', first + i, '')
    end
  end
  return first ~= nil
end

-- The answer; what the back office is told of waits beside the desk until a server has passed it on.
local function done(result, text)
  local last, before = {}, {}
  for i, one in ipairs(changes) do
    last[one[1]] = i
    before[one[1]] = before[one[1]] or (one[7] ~= '' and one[7])
  end
  for i, one in ipairs(changes) do
    local id, state = one[1], one[4]
    if last[id] == i and string.find(wanted, state, 1, true) and (state ~= 'waiting' or queued[id]) then
      redis.call('XADD', key('events'), 'MAXLEN', '~', EVENTS_MAX, '*', 'event', state, 'conversation', id, 'customer',
        one[2], 'agent', one[3], 'position', one[5], 'epoch', one[6], 'previous', before[id] or '', 'ts', now)
    end
  end
  return {result, text, changes}
end

local function state_of(id)
  local agent = get('assigned', id)
  if agent ~= '' then return 'assigned', agent, 0 end
  local rank = redis.call('ZRANK', key('queue'), id)
  if rank then return 'waiting', '', rank + 1 end
  return 'closed', '', 0
end

local function mark(id, side)
  if side == 'customer' then
    redis.call('ZADD', key('unanswered'), 'NX', now, id)
  elseif side == 'shop' then
    redis.call('ZREM', key('unanswered'), id)
  end
end

local function look(id)
  local state, agent, position = state_of(id)
  if state == 'closed' then agent = get('last', id) end
  return {state, agent, position, tonumber(redis.call('HGET', key('epoch'), id) or '0')}
end

if operation == 'look' then  -- side that writes now, or ''
  local found = look(subject)
  if found[1] ~= 'closed' then mark(subject, more[1]) end
  return {found[1], found[2], found[3], found[4]}

elseif operation == 'put' then  -- the agent as JSON
  redis.call('HSET', key('agents'), subject, more[1])
  serve(nil)
  return done('ok', '')

elseif operation == 'remove' then
  if get('load', subject) ~= '' then return done('busy', '') end
  redis.call('HDEL', key('agents'), subject)
  redis.call('HDEL', key('served'), subject)
  return done('ok', '')

elseif operation == 'start' then  -- customer, skill, queue_max, the agent who opens it or '', side
  local state, agent = state_of(subject)
  if state ~= 'closed' then
    mark(subject, more[5])
    return done('ok', '')
  end
  load_agents()
  if next(agents) == nil then return done('no_agent', '') end
  redis.call('HSET', key('customer'), subject, more[1])
  if more[2] ~= '' then redis.call('HSET', key('skill'), subject, more[2]) end
  if more[4] ~= '' then
    local own = agents[more[4]]
    if not own or own.load >= own.capacity then
      redis.call('HDEL', key('customer'), subject)
      redis.call('HDEL', key('skill'), subject)
      return done('full', '')
    end
    give(subject, own, '')
    return done('ok', '')
  end
  if redis.call('ZCARD', key('queue')) >= tonumber(more[3]) then
    redis.call('HDEL', key('customer'), subject)
    redis.call('HDEL', key('skill'), subject)
    return done('crowded', '')
  end
  enqueue(subject, false)
  local told = serve(nil)
  local rank = redis.call('ZRANK', key('queue'), subject)
  if rank and not told then change(subject, '', 'waiting', rank + 1, '') end
  mark(subject, more[5])
  return done('ok', '')

elseif operation == 'close' then  -- the agent it has to be, or '-' for whoever
  local state, agent = state_of(subject)
  if state == 'closed' then return done('ok', '') end
  if more[1] ~= '-' and more[1] ~= agent then return done('other', agent) end
  local rank = redis.call('ZRANK', key('queue'), subject)
  load_agents()
  redis.call('HDEL', key('assigned'), subject)
  redis.call('ZREM', key('queue'), subject)
  take_from(agent)
  change(subject, agent, 'closed', 0, agent)
  for _, name in ipairs({'customer', 'since', 'skill', 'epoch'}) do redis.call('HDEL', key(name), subject) end
  redis.call('ZREM', key('unanswered'), subject)
  serve(rank or nil)
  return done('ok', agent)

elseif operation == 'transfer' then  -- the agent who has it, '' if it waits, '-' for whoever; the agent who gets it
  local state, agent = state_of(subject)
  if state == 'closed' then return done('closed', '') end
  if more[1] ~= '-' and more[1] ~= agent then return done('other', agent) end
  if agent == more[2] then return done('same', agent) end
  load_agents()
  local target = agents[more[2]]
  if not target then return done('stranger', '') end
  if not (target.status == 'online' and online[target.uid]) then return done('offline', '') end
  if target.load >= target.capacity then return done('full', '') end
  local rank = redis.call('ZRANK', key('queue'), subject)
  redis.call('ZREM', key('queue'), subject)
  take_from(agent)
  give(subject, target, agent)
  serve(rank or nil)
  return done('ok', agent)

elseif operation == 'settled' then  -- epoch: the conversation has been told, and what waited for the agent is sent
  if get('unsettled', subject) == more[1] then redis.call('HDEL', key('unsettled'), subject) end
  return done('ok', '')

elseif operation == 'serve' then
  serve(nil)
  return done('ok', '')

elseif operation == 'sweep' then  -- offline_grace_ms, answer_timeout_ms (0: never)
  load_agents()
  local gone = {}
  for uid, agent in pairs(agents) do
    if online[uid] or agent.load == 0 then
      redis.call('HDEL', key('gone'), uid)
    else
      redis.call('HSETNX', key('gone'), uid, now)
      gone[uid] = tonumber(now) - tonumber(get('gone', uid)) >= tonumber(more[1])
    end
  end
  local back = {}
  local waiting = redis.call('ZRANGE', key('unanswered'), 0, -1, 'WITHSCORES')
  for i = 1, #waiting, 2 do
    local id, since = waiting[i], tonumber(waiting[i + 1])
    local agent = get('assigned', id)
    if agent ~= '' and gone[agent] then
      back[#back + 1] = {id, agent}
    elseif agent ~= '' and tonumber(more[2]) > 0 and tonumber(now) - since >= tonumber(more[2]) then
      local other = pick(id, agent)
      if other then  -- else he keeps the customer, and the next sweep looks again
        take_from(agent)
        give(id, other, agent)
      end
    end
  end
  for i = #back, 1, -1 do  -- the one who has waited longest comes first of all
    local id, agent = back[i][1], back[i][2]
    redis.call('HDEL', key('assigned'), id)
    take_from(agent)
    enqueue(id, true)
    change(id, '', 'waiting', 1, agent)
  end
  serve(#back > 0 and 0 or nil)
  local open = redis.call('HLEN', key('assigned')) + redis.call('ZCARD', key('queue')) + redis.call('XLEN', key('events'))
  return done('ok', tostring(open))
end
return redis.error_reply('no such operation ' .. operation)
