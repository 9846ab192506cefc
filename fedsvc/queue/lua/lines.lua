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

-- Up to `wanted` deliveries go on from lines to the end of the ready stream, by turns: those of which `goes(priority,
-- sequence, record, host)` says so, which takes care of the others itself; after them the rest of the last turn, of
-- which it was not asked. `prepare(sequences)` comes first, which reads their records and tells their hosts. When
-- `most` have been looked at, no further turn begins.
-- Result, of those first ones: lists of their entries (numbers, as text), sequences, records, and what else `goes` says
-- of them; whether there are no lines any more; and how many were looked at.
local function refill(priority, wanted, most, window, prepare, goes)
  local entries, going, going_records, told, looked = {}, {}, {}, {}, 0
  if in_lines(priority) <= 0 then return entries, going, going_records, told, true, looked end
  local turns, quantum = turns_key(priority), math.min(QUANTUM, window)
  local function enter(sequence, record, place)
    record = moved(record, S_READY, place)
    store(sequence, record)
    return append(priority, place, sequence), record
  end
  while #going < wanted and looked < most do
    local origin = call('LPOP', turns)
    if not origin then
      count('line:' .. priority, -in_lines(priority)) -- should it ever have been counted wrong
      return entries, going, going_records, told, true, looked
    end
    local key = line_key(priority, origin)
    local sequences = call('LPOP', key, quantum) or {}
    looked = looked + #sequences
    local names = prepare(sequences)
    local before, left, rest = #going, 0, {}
    for i = 1, #sequences do
      local sequence, name = sequences[i], names[i]
      local record = fetch(sequence)
      if name and string.byte(record, 1) == S_READY and place_of(record) == IN_LINE then
        left = left + 1
        local n = #going + 1
        if n > wanted then
          rest[#rest + 1] = sequence
        else
          local so, more = goes(priority, sequence, record, name)
          if so then going[n], going_records[n], told[n] = sequence, record, more end
        end
      end
    end
    if left > 0 then count('line:' .. priority, -left) end
    local many = #going - before
    if many > 0 then
      local first = allocate(many + #rest)
      for i = 1, many do
        local n = before + i
        entries[n], going_records[n] = enter(going[n], going_records[n], first + i - 1)
      end
      for i, sequence in ipairs(rest) do enter(sequence, fetch(sequence), first + many + i - 1) end
    end
    if #sequences == quantum and call('EXISTS', key) == 1 then call('RPUSH', turns, origin) end
  end
  return entries, going, going_records, told, false, looked
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
