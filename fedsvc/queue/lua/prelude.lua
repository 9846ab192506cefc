-- Shared by all scripts; put in front of each by script.py.
--
-- KEYS[1]  prefix of the partition, e.g. fedsvc:{p3}. All other names are derived from it (keys.py
--          lists them) and live in its hash slot.
--
-- A record is: state u8, flags u8, priority u8, type u8, attempts u8, tries u8, deadline u32 (s), message
-- u64, place u64, inbox length u16, where in the inbox its host begins u8 (0-based), length of that u8, inbox, attempts
-- of 9 bytes each. See record.py. Offsets below are 1-based. A finished delivery keeps only state u8 and outcome u64 (9
-- bytes).

local P = KEYS[1]
local GROUP = 'workers'
-- Streams by number. The fourth takes what comes from a host's lane straight into a worker's hands: all of it
-- is in flight, nothing ever waits there.
local STREAM = { P .. ':ready:urgent', P .. ':ready:normal', P .. ':ready:bulk', P .. ':woken' }
local WOKEN = 4
local DELIVERIES = P .. ':deliveries'
local RETRY = P .. ':retry'
local DEAD = P .. ':dead'
local OUTCOMES = P .. ':outcomes'
local COUNTERS = P .. ':counters'
local RATES = P .. ':rates'
local CONSUMERS = P .. ':consumers'
local SEQUENCE = P .. ':sequence'

local S_READY, S_PARKED, S_RETRY, S_SCHEDULED = 1, 3, 4, 5
local S_DELIVERED, S_DEAD, S_CANCELLED, S_SUPERSEDED, S_EXPIRED, S_PURGED = 6, 7, 8, 9, 10, 11
local COUNTER_OF = {
  [S_DELIVERED] = 'delivered', [S_DEAD] = 'dead', [S_CANCELLED] = 'cancelled',
  [S_SUPERSEDED] = 'superseded', [S_EXPIRED] = 'expired', [S_PURGED] = 'purged',
}
-- Flags of a record: the deadline is the caller's expiry, not the age limit; others wait behind it for their
-- order; a newer one with its supersede key replaces it; of one in flight: what it becomes if it fails; and: it is
-- superseded in another group than the one whose order it keeps.
local FLAG_SHARED_INBOX, FLAG_EXPIRES, FLAG_FOLLOWED, FLAG_REPLACED, FLAG_CANCEL, FLAG_SUPERSEDE, FLAG_APART =
  1, 2, 4, 8, 16, 32, 64
local HOST_AT, INBOX_AT, LEAST = 29, 31, 30 -- LEAST: bytes without an inbox
-- `place` of a parked record: in its host's lane; or in SQL, then only the head of the record is here, its origin
-- instead of the inbox, and 17 bytes: the key of the inbox, the batch u64, and a 1, which ends what could be an attempt.
-- Any other value: held back for its order, and not to be sent before that time (ms).
local IN_LANE, SPILLED = 1, 2
-- `place` of a ready record: the number of its entry in a stream; or in its origin's line.
local IN_LINE = 3

local call = redis.call

-- One clock for all: Redis's. Tests shift it.
local time = call('TIME')
local NOW_US = tonumber(time[1]) * 1000000 + tonumber(time[2])
local shift = call('GET', P .. ':clock-shift')
if shift then NOW_US = NOW_US + tonumber(shift) * 1000 end
local NOW_MS = math.floor(NOW_US / 1000)

-- Whole numbers up to 2^53 as text.
local function text(number) return string.format('%d', number) end

-- First of `count` new numbers: the time in microseconds, made unique and increasing. Entries of streams must
-- be appended in the order of their numbers. Written down by flush().
local last_number
local function allocate(count)
  local first = (last_number or tonumber(call('GET', SEQUENCE) or '0')) + 1
  if first < NOW_US then first = NOW_US end
  last_number = first + count - 1
  return first
end

-- Records are read once, and written once at the end of a script, by flush(): a call to Redis costs more than
-- what it does.
local records, written = {}, {}
local function fetch(sequence)
  local record = records[sequence]
  if record == nil then
    record = call('HGET', DELIVERIES, sequence)
    records[sequence] = record
  end
  return record
end
local MANY = 1000 -- arguments in one call
local function in_parts(command, key, arguments)
  for from = 1, #arguments, MANY do
    call(command, key, unpack(arguments, from, math.min(#arguments, from + MANY - 1)))
  end
end
-- Append to a string that is there and reads `present`. APPEND makes Redis set aside as much again for what may come:
-- a large part is written together with the rest instead, which takes what it needs.
local function extend(key, present, part)
  if 4 * #part < #present then call('APPEND', key, part) else call('SET', key, present .. part, 'KEEPTTL') end
end
local function prefetch(sequences)
  local missing = sequences
  if next(records) then
    missing = {}
    for i = 1, #sequences do
      local sequence = sequences[i]
      if records[sequence] == nil then missing[#missing + 1] = sequence end
    end
  end
  for from = 1, #missing, MANY do
    local to = math.min(#missing, from + MANY - 1)
    local found = call('HMGET', DELIVERIES, unpack(missing, from, to))
    for i = from, to do records[missing[i]] = found[i - from + 1] end
  end
end
local function store(sequence, record)
  written[sequence] = true
  records[sequence] = record
end

-- Likewise, entries that leave their streams (their ids, or numbers as text), and messages that are needed less.
local dropped, released = { {}, {}, {}, {} }, {}
local function drop(stream, entry)
  local list = dropped[stream]
  list[#list + 1] = entry
end
local function release(message, many) released[message] = (released[message] or 0) + (many or 1) end

-- How many messages need a registered key, so that none is deleted before its time. Written at once.
local KEY_USES = P .. ':key-uses'
local function use_key(name, by)
  if call('HINCRBY', KEY_USES, name, by) <= 0 then call('HDEL', KEY_USES, name) end
end
local function forget_message(key)
  local name = call('HGET', key, 'k')
  if name then use_key(name, -1) end
  call('DEL', key)
end

-- Likewise, how many deliveries of each origin are pending.
local BACKLOG = P .. ':backlog'
local owed = {}
local function owe(origin, by)
  if origin then owed[origin] = (owed[origin] or 0) + by end
end

-- Likewise, what is counted.
local changes, counted = {}, {}
local function count(name, by) changes[name] = (changes[name] or 0) + by end
local function tally(metric, by) counted[metric] = (counted[metric] or 0) + by end

local BUCKET_S, BUCKETS = 5, 64
local function flush()
  local batch, n = {}, 0
  for sequence in pairs(written) do
    batch[n + 1], batch[n + 2] = sequence, records[sequence]
    n = n + 2
  end
  in_parts('HSET', DELIVERIES, batch)
  for stream, entries in ipairs(dropped) do
    for from = 1, #entries, MANY do
      local to = math.min(#entries, from + MANY - 1)
      redis.pcall('XACK', STREAM[stream], GROUP, unpack(entries, from, to))
      call('XDEL', STREAM[stream], unpack(entries, from, to))
    end
  end
  for message, less in pairs(released) do
    local key = P .. ':message:' .. text(message)
    if call('HINCRBY', key, 'n', -less) <= 0 then forget_message(key) end
  end
  if last_number then call('SET', SEQUENCE, text(last_number)) end
  for origin, by in pairs(owed) do
    if by ~= 0 and call('HINCRBY', BACKLOG, origin, by) <= 0 then call('HDEL', BACKLOG, origin) end
  end
  for name, by in pairs(changes) do
    if by ~= 0 then call('HINCRBY', COUNTERS, name, by) end
  end
  local bucket = math.floor(NOW_US / 1000000 / BUCKET_S)
  for metric, by in pairs(counted) do
    local field = metric .. (bucket % BUCKETS)
    local now = call('HGET', RATES, field)
    local before = 0
    if now then
      local at, sum = string.match(now, '^(%d+):(%d+)$')
      if tonumber(at) == bucket then before = tonumber(sum) end
    end
    call('HSET', RATES, field, text(bucket) .. ':' .. text(before + by))
  end
end

local function is_record(record) return record and #record >= LEAST end

-- The record with another state and place.
local function moved(record, state, place)
  return string.char(state) .. string.sub(record, 2, 18) .. struct.pack('>I8', place) .. string.sub(record, 27)
end

local function has(record, flag) return string.byte(record, 2) % (2 * flag) >= flag end
local function flagged(record, flag)
  if has(record, flag) then return record end
  return string.sub(record, 1, 1) .. string.char(string.byte(record, 2) + flag) .. string.sub(record, 3)
end

-- Origin of a message; false if the message is not there.
local origins = {}
local function origin_of(message)
  local origin = origins[message]
  if origin == nil then
    origin = call('HGET', P .. ':message:' .. text(message), 'o')
    origins[message] = origin
  end
  return origin
end

-- Of a record that makes no sense: bulk. A worker will find out what is wrong with it.
local function priority_of(record)
  local priority = string.byte(record, 3)
  return priority >= 1 and priority <= 3 and priority or 3
end
local function unflagged(record, flag)
  if not has(record, flag) then return record end
  return string.sub(record, 1, 1) .. string.char(string.byte(record, 2) - flag) .. string.sub(record, 3)
end
local function message_of(record) return (struct.unpack('>I8', record, 11)) end
local function place_of(record) return (struct.unpack('>I8', record, 19)) end
local function deadline_ms(record) return struct.unpack('>I4', record, 7) * 1000 end
local function inbox_of(record) return string.sub(record, INBOX_AT, LEAST + struct.unpack('>I2', record, 27)) end
-- Host of an inbox, which stands behind where that says it is.
local function host_at(text, at)
  local from, length = string.byte(text, at, at + 1)
  from = from + at + 2
  return string.sub(text, from, from + length - 1)
end
-- Of a delivery; false if it is no record.
local function host_of(record) return is_record(record) and host_at(record, HOST_AT) end

-- Reason of the last attempt, 0 if there was none.
local function last_reason(record)
  if #record < LEAST + struct.unpack('>I2', record, 27) + 9 then return 0 end
  return string.byte(record, #record)
end

-- What retry stats are read from: `sign` is 1 when a delivery starts to wait for a retry, -1 when it ends.
local function waiting(record, sign)
  count('retry:type:' .. string.byte(record, 4), sign)
  count('retry:attempt:' .. string.byte(record, 5), sign)
  count('retry:reason:' .. last_reason(record), sign)
end

-- Append to a stream; the entry's id is <place>-0, which Redis makes of the number alone. Result: that, as text.
local function append(stream, place, sequence)
  local number = text(place)
  call('XADD', STREAM[stream], number, 'd', sequence)
  return number
end

-- Put a delivery on its ready stream.
local function to_ready(sequence, record)
  local place = allocate(1)
  store(sequence, moved(record, S_READY, place))
  append(priority_of(record), place, sequence)
end

-- Whether an entry of a stream is with a worker.
local function in_flight(stream, entry)
  local pending = redis.pcall('XPENDING', STREAM[stream], GROUP, entry, entry, 1)
  return not pending.err and #pending > 0
end

-- What `command` answers, which works on the group of a stream, in the name of a worker.
local function by_group(stream, command)
  local reply = command()
  if reply and reply.err then
    if not string.find(reply.err, 'NOGROUP', 1, true) then error(reply.err) end
    -- First use, or Redis came back empty.
    call('XGROUP', 'CREATE', STREAM[stream], GROUP, '0', 'MKSTREAM')
    reply = command()
    if reply and reply.err then error(reply.err) end
  end
  return reply
end

-- Read new entries as a worker: they are in flight with it from now on.
local function take(stream, worker, number)
  local reply = by_group(stream, function()
    return redis.pcall('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', number, 'STREAMS', STREAM[stream], '>')
  end)
  return reply and reply[1][2] or {}
end

-- The same for entries that were appended just now, where all before them were read. Their numbers (as text) are known:
-- an answer that tells what is in them would cost as much as reading them does.
local function hand_over(stream, worker, entries)
  for from = 1, #entries, MANY do
    local to = math.min(#entries, from + MANY - 1)
    local arguments = { unpack(entries, from, to) }
    for _, option in ipairs({ 'FORCE', 'JUSTID', 'LASTID', entries[to] }) do arguments[#arguments + 1] = option end
    by_group(stream, function()
      return redis.pcall('XCLAIM', STREAM[stream], GROUP, worker, 0, unpack(arguments))
    end)
  end
end

-- What archive and watchers read; for an entry of several see logged.lua.
local function append_outcome(number, sequence, state, payload)
  call('XADD', OUTCOMES, text(number), 'd', sequence, 's', state, 'o', payload)
end

-- Record a terminal outcome.
local function finish(sequence, state, payload, number)
  append_outcome(number, sequence, state, payload)
  count('outcomes', 1)
  count(COUNTER_OF[state], 1)
end

-- Tell workers that there is work here.
local function ring(urgent)
  local namespace, partition = string.match(P, '^(.-):{p(%d+)}$')
  call('PUBLISH', namespace .. ':bell', urgent and partition .. '!' or partition)
end
