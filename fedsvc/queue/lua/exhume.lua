-- exhume: dead letters go back to the queue, or for good.
-- uses: hosts, endings, groups, lines
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  `replay` or `purge`
-- ARGV[2]  how long a replayed delivery lives, s
-- ARGV[3]  up to how many that no worker has a ready stream is filled directly
-- ARGV[4]  id of the operation that does it; '' for none
-- ARGV[5]  how long to remember what the operation did here, s
-- ARGV[6]  how long to keep the index of an activity at least, ms
-- ARGV[7]  not later than this, ms by Redis's own clock; 0 for any time
-- ARGV[8...] in groups of 4, for each dead letter: sequence, number of its entry among the dead letters, key of
--          its host (8 bytes), key of its activity id, hex
--
-- One that is none any more, or has died again since, is passed over: whoever repeats this does nothing twice.
-- What an operation did is counted here in the same step, so that its count is exact whatever breaks off.
--
-- Result: how many went; -1 if it is too late.

local WIDTH, FIRST = 4, 8
if ARGV[7] ~= '0' then
  local time = call('TIME')
  if time[1] * 1000 + math.floor(time[2] / 1000) > tonumber(ARGV[7]) then return -1 end
end
local R_PURGED = 38
local replay = ARGV[1] == 'replay'
local lifetime, window, keep = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[6])
local EXPIRY = P .. ':expiry'
local total = (#ARGV - FIRST + 1) / WIDTH

local sequences = {}
for i = 0, total - 1 do sequences[i + 1] = ARGV[FIRST + i * WIDTH] end
prefetch(sequences)

-- The record as that of a delivery that is new, but for what was tried.
local function renewed(record)
  local over = has(record, FLAG_EXPIRES) and deadline_ms(record) <= NOW_MS
  local deadline = math.ceil(NOW_MS / 1000) + lifetime
  if has(record, FLAG_EXPIRES) and not over then deadline = math.min(deadline, deadline_ms(record) / 1000) end
  record = unflagged(unflagged(unflagged(record, FLAG_CANCEL), FLAG_SUPERSEDE), FLAG_FOLLOWED)
  if over then record = unflagged(record, FLAG_EXPIRES) end
  return string.sub(record, 1, 5) .. string.char(0) .. struct.pack('>I4', deadline) .. string.sub(record, 11)
end

-- Of an order at a host the message that waits for nobody: it was looked for once, and none of another message has
-- joined since.
local first_in_line = {}

-- Whether it has to wait for others of its order that are on their way; it joins them as the newest.
local function held_back(sequence, record, host_key)
  local message = message_of(record)
  local group = call('HGET', P .. ':message:' .. text(message), 'g')
  if not group or group == '' then return false end
  local index = call('GET', group_key(group))
  local name = host_of(record)
  local order = chain(group, name)
  local waits = first_in_line[order] ~= message and must_wait(group, index, name, host_key, message)
  first_in_line[order] = not waits and message or nil
  join(group, index, tonumber(sequence), { host_key }, keep)
  if waits then call('RPUSH', P .. ':held:' .. order, sequence) end
  return waits
end

local gone = 0
for i = 0, total - 1 do
  local at = FIRST + i * WIDTH
  local sequence, number = ARGV[at], ARGV[at + 1]
  local record = fetch(sequence)
  if is_record(record) and string.byte(record, 1) == S_DEAD and text(place_of(record)) == number then
    call('XDEL', DEAD, number .. '-0')
    count('dead', -1)
    gone = gone + 1
    if not replay then
      conclude(sequence, record, S_PURGED, payload_of(sequence, record, R_PURGED))
    else
      local priority, origin = priority_of(record), origin_of(message_of(record))
      owe(origin, 1)
      record = renewed(record)
      if has(record, FLAG_EXPIRES) then
        call('ZADD', EXPIRY, text(deadline_ms(record)), sequence)
      else
        call('ZREM', EXPIRY, sequence) -- of its former life
      end
      local activity = P .. ':activity:' .. ARGV[at + 3]
      if call('PTTL', activity) < keep then call('PEXPIRE', activity, text(keep)) end
      if held_back(sequence, record, ARGV[at + 2]) then
        store(sequence, moved(record, S_PARKED, 0))
        count('parked', 1)
      elseif not origin or stream_room(priority, window, 1) > 0 then
        to_ready(sequence, record)
      else
        store(sequence, moved(record, S_READY, IN_LINE))
        line_up(priority, origin, { sequence })
      end
      rang = true
    end
  end
end
if ARGV[4] ~= '' then
  local done = P .. ':operation:' .. ARGV[4]
  call('INCRBY', done, gone)
  call('EXPIRE', done, ARGV[5])
end
flush()
if rang then ring() end
return gone
