-- Fair shares of origins in a ready stream, for scripts that fill one: a stream is filled directly only while it
-- is short; what is more stands in its origin's line, and lines are drained by turns.
--
-- line:<priority>:<origin> is a list of sequences, the oldest first; the list lines:<priority> names each origin
-- that has one, once, in the order of their turns. The counter line:<priority> is how many stand in lines: those
-- whose record says READY, IN_LINE. Names of others, which have ended meanwhile, are passed over.

-- How many of one origin go on in one turn, if the window is not smaller.
local QUANTUM = 16

local function line_key(priority, origin) return P .. ':line:' .. priority .. ':' .. origin end
local function turns_key(priority) return P .. ':lines:' .. priority end

local lined
local function in_lines(priority)
  if not lined then
    lined = call('HMGET', COUNTERS, 'line:1', 'line:2', 'line:3')
    for each = 1, 3 do lined[each] = tonumber(lined[each] or '0') end
  end
  return lined[priority] + (changes['line:' .. priority] or 0)
end

-- How many new deliveries may go straight to a ready stream, at most about `wanted`. None while others stand in
-- lines: whoever comes must not overtake them.
local function stream_room(priority, window, wanted)
  if in_lines(priority) > 0 then return 0 end
  local key = STREAM[priority]
  local room = window - call('XLEN', key)
  if room < wanted then
    -- What workers have does not wait there.
    local flying = redis.pcall('XPENDING', key, GROUP)
    if not flying.err then room = room + flying[1] end
  end
  return math.max(0, room)
end

-- Deliveries join the end of their origin's line. Their records say so already.
local function line_up(priority, origin, names)
  if #names == 0 then return end
  local key, length = line_key(priority, origin), 0
  for from = 1, #names, MANY do
    length = call('RPUSH', key, unpack(names, from, math.min(#names, from + MANY - 1)))
  end
  if length == #names then call('RPUSH', turns_key(priority), origin) end
  count('line:' .. priority, #names)
end

-- Up to about `wanted` deliveries go on from lines to the ready stream, by turns; those that `parks(sequence,
-- record, host)` takes do not, for which `prepare(sequences)` comes first, which tells their hosts. How many did, and
-- whether there are no lines any more.
local function refill(priority, wanted, window, prepare, parks)
  if in_lines(priority) <= 0 then return 0, true end
  local turns, quantum = turns_key(priority), math.min(QUANTUM, window)
  local gone_on, looked = 0, 0
  while gone_on < wanted and looked < 4 * wanted do
    local origin = call('LPOP', turns)
    if not origin then
      count('line:' .. priority, -in_lines(priority)) -- should it ever have been counted wrong
      return gone_on, true
    end
    local key = line_key(priority, origin)
    local names = call('LPOP', key, quantum) or {}
    looked = looked + #names
    prefetch(names)
    local names_of_hosts = prepare(names)
    local live, left = {}, 0
    for i, name in ipairs(names) do
      local record = fetch(name)
      if is_record(record) and string.byte(record, 1) == S_READY and place_of(record) == IN_LINE then
        left = left + 1
        if not parks(name, record, names_of_hosts[i]) then live[#live + 1] = name end
      end
    end
    if left > 0 then count('line:' .. priority, -left) end
    if #live > 0 then
      local first = allocate(#live)
      for i, name in ipairs(live) do
        store(name, moved(fetch(name), S_READY, first + i - 1))
        append(priority, first + i - 1, name)
      end
      gone_on = gone_on + #live
    end
    if #names == quantum and call('EXISTS', key) == 1 then call('RPUSH', turns, origin) end
  end
  return gone_on, false
end

-- Forget lines in which nobody stands any more.
local function sweep_lines()
  for priority = 1, 3 do
    local turns = turns_key(priority)
    if in_lines(priority) <= 0 and call('EXISTS', turns) == 1 then
      for _, origin in ipairs(call('LPOP', turns, 100) or {}) do call('UNLINK', line_key(priority, origin)) end
    end
  end
end
