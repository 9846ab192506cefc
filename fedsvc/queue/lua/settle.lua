-- settle: end the flight of some deliveries, each by itself, all in one step.
-- uses: hosts, endings
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2...] in groups of 4, for each delivery:
--   packed numbers: state u8 (what becomes of it: 4 retry, 6 delivered, 7 dead, 8 cancelled, 9 superseded,
--     10 expired), stream of its entry u8, entry's number u64, attempted u8 (1 if an attempt was made),
--     due u64 (ms, for a retry), signal u8 (how the answer bears on the host, see hosts.lua), latency u32 (ms),
--     pause u64 (ms that the host wants to be left alone), dialect u8 (how it wants to be signed to, if learnt)
--   sequence
--   record     for a retry or dead letter: the whole new record
--   payload    packed outcome, for all but a retry
--
-- An entry that is no longer in flight was settled by somebody else: it is passed over, so that each
-- delivery moves exactly once.
--
-- Result: {1 if hosts have room again for what waits in their lanes, indexes (0-based) of those passed over, and
-- if circuits have opened or closed a list of host, 'opened' or 'closed', ...}.

local WIDTH = 4

-- What failed lately, for those who look at a host. Nothing is kept of what was delivered: SQL has it.
local failed = {}
local function note_failure(name, sequence, record)
  failed[name] = struct.pack('>I8', tonumber(sequence)) .. string.sub(record, -9) .. (failed[name] or '')
end
local function keep_failures()
  for name, attempts in pairs(failed) do
    attempts = attempts .. (call('HGET', RECENT, name) or '')
    call('HSET', RECENT, name, string.sub(attempts, 1, RECENT_SIZE * RECENT_MOST))
  end
end

local function key_of(payload)
  local good, parts = pcall(cjson.decode, payload)
  return good and type(parts) == 'table' and parts[7] or ''
end

read_terms(ARGV[1])
local result = { 0 }
local total = (#ARGV - 1) / WIDTH

local sequences, landed_already = {}, {}
for i = 0, total - 1 do sequences[i + 1] = ARGV[3 + i * WIDTH] end
prefetch(sequences)
local names = {}
for i, sequence in ipairs(sequences) do
  local stored = fetch(sequence)
  names[i] = is_record(stored) and host_name(inbox_of(stored))
end
prefetch_hosts(names)

for i = 0, total - 1 do
  local at = 1 + i * WIDTH
  local state, stream, entry, attempted, due, signal, latency, pause, dialect =
    struct.unpack('>BBI8BI8BI4I8B', ARGV[at + 1])
  local sequence = ARGV[at + 2]
  local stored, name = fetch(sequence), text(entry)
  -- Its record names the entry by which it is in flight. One that makes no sense names none.
  local known = is_record(stored) and string.byte(stored, 1) == S_READY and place_of(stored) == entry
  if landed_already[name] or not known and not (is_record(stored) and in_flight(stream, name)) then
    if not is_record(stored) then drop(stream, name) end
    result[#result + 1] = i
  else
    drop(stream, name)
    landed_already[name] = true
    local record, payload = ARGV[at + 3], ARGV[at + 4]
    local h = host(names[i + 1])
    if stream == WOKEN then count('woken:' .. priority_of(stored), -1) end
    local was_closed = h.circuit == CLOSED
    landed(h, signal, latency, pause)
    if dialect > 0 then h.dialect, h.spoke = dialect, NOW_MS end
    if attempted == 1 then tally('t', 1) end
    if has_bit(signal, GONE_INBOX) then
      tell('INBOX_GONE', h.name, inbox_of(stored))
      if has(stored, FLAG_SHARED_INBOX) then shared_inbox_gone(h) end
    end
    if has_bit(signal, KEY_REJECTED) then tell('KEY_REJECTED', h.name, key_of(payload)) end
    if attempted == 1 and #record > 0 and state ~= S_DELIVERED then note_failure(h.name, sequence, record) end
    -- Others may have marked it while it was on its way.
    if #record > 0 then record = string.sub(record, 1, 1) .. string.sub(stored, 2, 2) .. string.sub(record, 3) end
    local parks = (state == S_RETRY or state == S_DEAD) and not was_closed and has_bit(signal, FAILED)
    if (state == S_RETRY or parks) and (has(stored, FLAG_CANCEL) or has(stored, FLAG_SUPERSEDE)) then
      local cancelled = has(stored, FLAG_CANCEL)
      conclude(sequence, record, cancelled and S_CANCELLED or S_SUPERSEDED,
        payload_of(sequence, record, cancelled and R_CANCELLED or R_SUPERSEDED))
    elseif parks then
      -- The host is down, which uses up nobody's retries, not even the last: back to where it came from.
      local tries = string.sub(stored, 6, 6)
      park(h, sequence, string.sub(record, 1, 5) .. tries .. string.sub(record, 7), h.opens % 4 ~= 0 or h.opens == 0)
    elseif state == S_RETRY then
      store(sequence, record)
      call('ZADD', RETRY, text(due), sequence)
      waiting(record, 1)
      if has(record, FLAG_EXPIRES) then call('ZADD', P .. ':expiry', text(deadline_ms(record)), sequence) end
    else
      conclude(sequence, #record > 0 and record or stored, state, payload)
    end
  end
end
keep_failures()
save_hosts()
flush()
if woken > 0 or rang then
  result[1] = 1
  ring()
end
if #circuits > 0 then result[#result + 1] = circuits end
return result
