-- settle: end the flight of some deliveries, each by itself, all in one step.
-- uses: hosts, calm, endings, logged
-- seldom: closely, in_flight, let_others_go, forget_message, ring, starts_of, priority_of, room, all_behind_spilled
-- seldom: lane_deadline, lanes, shut
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  of each that was delivered, in order: sequence u64, size of its packed outcome u32
-- ARGV[3]  these outcomes, nothing between them
-- ARGV[4]  packed numbers, for each delivery: state u8 (what becomes of it: 4 retry, 6 delivered, 7 dead, 8 cancelled,
--          9 superseded, 10 expired; 0: delivered, and there is no more to say than that the host answered and took it),
--          stream of its entry u8, latency u32 (ms), number of its entry u64; then, unless state is 0: attempted u8 (1
--          if an attempt was made), signal u8 (how the answer bears on the host, see hosts.lua), dialect u8 (how it wants
--          to be signed to, if learnt), pause u64 (ms that the host wants to be left alone), due u64 (ms, for a retry)
-- ARGV[5]  how many deliveries
-- ARGV[6...] for each delivery: number of its entry, as text, and sequence
-- then for each that was not delivered, in order: record, for a retry or dead letter the whole new one, else '';
--          and packed outcome, for all but a retry
--
-- An entry that is no longer in flight was settled by somebody else: it is passed over, so that each
-- delivery moves exactly once.
--
-- Result: {1 if hosts have room again for what waits in their lanes, indexes (0-based) of those passed over, and
-- if circuits have opened or closed a list of host, 'opened' or 'closed', ...}.

local NUMBERS, NUMBERS_SIZE = '>BBI4I8', 14
local MORE, MORE_SIZE = '>BBBI8I8', 19
local FIRST = 5

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

-- Told of an attempt that the host took; then only what is done for every delivery is left to do.
local WELL = ANSWERED + TOOK

read_terms(ARGV[1])
local result = { 0 }
local total = tonumber(ARGV[5])

local sequences, landed_already = {}, {}
for i = 1, total do sequences[i] = ARGV[FIRST + 2 * i] end
local names = hosts_of(sequences)

-- What conclude does, for the nth of those that were delivered. What is counted is counted together, by message, and
-- all of them are one entry of the log.
local ended, ended_of, many, missed = {}, {}, 0, {}
local function conclude_delivered(sequence, stored, flags, message)
  records[sequence], written[sequence] = '', nil -- it is over; its number is known when all are
  ended[2 * many + 1], ended[2 * many + 2] = sequence, ''
  many = many + 1
  ended_of[message] = (ended_of[message] or 0) + 1
  if flags % (2 * FLAG_FOLLOWED) >= FLAG_FOLLOWED then let_others_go(stored) end
end
local function append_delivered()
  local heads, outcomes = ARGV[2], ARGV[3]
  if many == 0 then return end
  local first = allocate(many)
  for i = 1, many do ended[2 * i] = pack('>BI8', S_DELIVERED, first + i - 1) end
  in_parts('HSET', DELIVERIES, ended)
  if #heads ~= HEAD_SIZE * many then
    -- Others of those that were delivered were settled by somebody else.
    local from, some_heads, some_outcomes = starts_of(heads), {}, {}
    for nth = 1, #heads / HEAD_SIZE do
      if not missed[nth] then
        some_heads[#some_heads + 1] = string.sub(heads, HEAD_SIZE * (nth - 1) + 1, HEAD_SIZE * nth)
        some_outcomes[#some_outcomes + 1] = string.sub(outcomes, from[nth], from[nth + 1] - 1)
      end
    end
    heads, outcomes = table.concat(some_heads), table.concat(some_outcomes)
  end
  call('XADD', OUTCOMES, text(first + many - 1), 'many', heads, 'o', outcomes)
  for message, of_it in pairs(ended_of) do
    owe(origin_of(message), -of_it)
    release(message, of_it)
  end
  count('outcomes', many)
  count(COUNTER_OF[S_DELIVERED], many)
  tally('d', many)
end

-- What an answer tells of a host that needs a closer look, and what becomes of the delivery then.
local function closely(record, payload, name, sequence, stored, state, attempted, signal, latency, dialect, pause, due)
  local h = host(name)
  local was_closed = h.circuit == CLOSED
  landed(h, signal, latency, pause)
  if dialect > 0 then h.dialect, h.spoke = dialect, NOW_MS end
  if has_bit(signal, GONE_INBOX) then
    tell('INBOX_GONE', name, inbox_of(stored))
    if has(stored, FLAG_SHARED_INBOX) then shared_inbox_gone(h) end
  end
  if has_bit(signal, KEY_REJECTED) then tell('KEY_REJECTED', name, key_of(payload)) end
  if attempted == 1 and #record > 0 and state ~= S_DELIVERED then note_failure(name, sequence, record) end
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
  elseif state == S_DELIVERED then
    conclude_delivered(sequence, stored, string.byte(stored, 2), message_of(stored))
  else
    conclude(sequence, #record > 0 and record or stored, state, payload)
  end
end

local tried, nth, numbers, at, more = 0, 0, ARGV[4], 1, FIRST + 2 * total + 1
for i = 1, total do
  local state, stream, latency, number = unpacked(NUMBERS, numbers, at)
  at = at + NUMBERS_SIZE
  local well, attempted, signal, dialect, pause, due = state == 0, 1, WELL, 0, 0, 0
  if well then
    state = S_DELIVERED
  else
    attempted, signal, dialect, pause, due = unpacked(MORE, numbers, at)
    at = at + MORE_SIZE
  end
  local entry, sequence = ARGV[FIRST + 2 * i - 1], sequences[i]
  local record, payload = '', ''
  if state == S_DELIVERED then
    nth = nth + 1
  else
    record, payload = ARGV[more], ARGV[more + 1]
    more = more + 2
  end
  local stored, name = records[sequence], names[i]
  -- It may have ended since its host was looked for: one delivery can be among them twice.
  if name and #stored < LEAST then name = false end
  local was, flags, message, place, _
  if name then was, flags, _, message, place = unpacked('>BBI8I8I8', stored) end
  -- Its record names the entry by which it is in flight. One that makes no sense names none.
  if landed_already[entry] or (place ~= number or was ~= S_READY) and not (name and in_flight(stream, entry)) then
    if not name then drop(stream, entry) end
    if state == S_DELIVERED then missed[nth] = true end
    result[#result + 1] = i - 1
  else
    drop(stream, entry)
    if stream == WOKEN then count('woken:' .. priority_of(stored), -1) end
    tried = tried + attempted
    if well and calm_landed(name, latency) then
      conclude_delivered(sequence, stored, flags, message)
    else
      landed_already[entry] = true -- what was delivered is no record any more
      closely(record, payload, name, sequence, stored, state, attempted, signal, latency, dialect, pause, due)
    end
  end
end
append_delivered()
if tried > 0 then tally('t', tried) end
keep_failures()
save_hosts()
flush()
if woken > 0 or rang then
  result[1] = 1
  ring()
end
if #circuits > 0 then result[#result + 1] = circuits end
return result
