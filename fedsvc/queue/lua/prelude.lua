-- Shared by all scripts; put in front of each by scripts.py.
--
-- KEYS[1]  prefix of the partition, e.g. fedsvc:{p3}. All other names are derived from it (keys.py
--          lists them) and live in its hash slot.
--
-- A record is: state u8, flags u8, priority u8, type u8, attempts u8, deadline u32 (s), message
-- u64, place u64, inbox length u16, inbox, attempts of 9 bytes each. See record.py. Offsets below are
-- 1-based. A finished delivery keeps only state u8 and outcome u64 (9 bytes).

local P = KEYS[1]
local GROUP = 'workers'
local READY = { P .. ':ready:urgent', P .. ':ready:normal', P .. ':ready:bulk' }
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
-- Flags of a record: the deadline is the caller's expiry, not the age limit.
local FLAG_EXPIRES = 2
local HEADER = '>BBBBBI4I8I8I2'

local call = redis.call

-- One clock for all: Redis's. Tests shift it.
local time = call('TIME')
local NOW_US = tonumber(time[1]) * 1000000 + tonumber(time[2])
local shift = call('GET', P .. ':clock-shift')
if shift then NOW_US = NOW_US + tonumber(shift) * 1000 end
local NOW_MS = math.floor(NOW_US / 1000)

-- Whole numbers up to 2^53 as text.
local function text(number) return string.format('%.0f', number) end

-- First of `count` new numbers: the time in microseconds, made unique and increasing.
local function allocate(count)
  local last = tonumber(call('GET', SEQUENCE) or '0')
  local first = last + 1
  if NOW_US > first then first = NOW_US end
  call('SET', SEQUENCE, text(first + count - 1))
  return first
end

-- Collected and written once at the end of a script, by flush().
local changes, counted = {}, {}
local function count(name, by) changes[name] = (changes[name] or 0) + by end
local function tally(metric, by) counted[metric] = (counted[metric] or 0) + by end

local BUCKET_S, BUCKETS = 5, 64
local function flush()
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

local function is_record(record) return record and #record >= 27 end

-- The record with another state and place.
local function moved(record, state, place)
  return string.char(state) .. string.sub(record, 2, 17) .. struct.pack('>I8', place) .. string.sub(record, 26)
end

-- One delivery less needs this message.
local function release(message)
  local key = P .. ':message:' .. text(message)
  if call('HINCRBY', key, 'n', -1) <= 0 then call('DEL', key) end
end

-- Reason of the last attempt, 0 if there was none.
local function last_reason(record)
  local _, _, _, _, _, _, _, _, length = struct.unpack(HEADER, record)
  if #record < 27 + length + 9 then return 0 end
  return string.byte(record, #record)
end

-- What retry stats are read from: `sign` is 1 when a delivery starts to wait for a retry, -1 when it ends.
local function waiting(record, sign)
  count('retry:type:' .. string.byte(record, 4), sign)
  count('retry:attempt:' .. string.byte(record, 5), sign)
  count('retry:reason:' .. last_reason(record), sign)
end

-- Append to a ready stream; the entry's id is <place>-0.
local function to_ready(priority, place, sequence)
  call('XADD', READY[priority], text(place) .. '-0', 'd', sequence)
end

-- Record a terminal outcome: what archive and watchers read.
local function finish(sequence, state, payload, number)
  call('XADD', OUTCOMES, text(number) .. '-0', 'd', sequence, 's', state, 'o', payload)
  count('outcomes', 1)
  count(COUNTER_OF[state], 1)
end

local function ring(partition) redis.call('PUBLISH', string.match(P, '^(.-):{') .. ':bell', partition) end
