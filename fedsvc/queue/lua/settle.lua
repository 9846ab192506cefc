-- settle: end the flight of some deliveries, each by itself, all in one step.
-- uses: hosts, calm, endings, logged
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  of each that was delivered, in order: sequence u64, size of its packed outcome u32
-- ARGV[3]  these outcomes, nothing between them
-- ARGV[4]  packed numbers, for each delivery: state u8 (what becomes of it: 4 retry, 6 delivered, 7 dead, 8 cancelled,
--          9 superseded, 10 expired), stream of its entry u8, attempted u8 (1 if an attempt was made), signal u8 (how
--          the answer bears on the host, see hosts.lua), latency u32 (ms), dialect u8 (how it wants to be signed to, if
--          learnt), pause u64 (ms that the host wants to be left alone), number of its entry u64, due u64 (ms, for a
--          retry)
-- ARGV[5...] for each delivery: number of its entry, as text, and sequence
-- then for each that was not delivered, in order: record, for a retry or dead letter the whole new one, else '';
--          and packed outcome, for all but a retry
--
-- An entry that is no longer in flight was settled by somebody else: it is passed over, so that each
-- delivery moves exactly once.
--
-- Result: {1 if hosts have room again for what waits in their lanes, indexes (0-based) of those passed over, and
-- if circuits have opened or closed a list of host, 'opened' or 'closed', ...}.

local NUMBERS, NUMBERS_SIZE = '>BBBBI4BI8I8', 33
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
local total = #ARGV[4] / NUMBERS_SIZE

local sequences, delivered, landed_already = {}, {}, {}
for i = 1, total do sequences[i] = ARGV[FIRST + 2 * i - 1] end
local names = hosts_of(sequences)

-- What conclude does, for the nth of those that were delivered. What is counted is counted together, by message, and
-- all of them are one entry of the log.
local ended, ended_of = {}, {}
local function conclude_delivered(nth, sequence, stored, message)
  store(sequence, '') -- it is over; its number is known when all are
  ended[#ended + 1] = nth
  ended_of[message] = (ended_of[message] or 0) + 1
  if has(stored, FLAG_FOLLOWED) then let_others_go(stored) end
end
local function append_delivered()
  local many, heads, outcomes = #ended, ARGV[2], ARGV[3]
  if many == 0 then return end
  local first = allocate(many)
  for i = 1, many do records[delivered[ended[i]]] = pack('>BI8', S_DELIVERED, first + i - 1) end
  if #heads ~= HEAD_SIZE * many then
    -- Others of those that were delivered were settled by somebody else.
    local from, some_heads, some_outcomes = starts_of(heads), {}, {}
    for i, nth in ipairs(ended) do
      some_heads[i] = string.sub(heads, HEAD_SIZE * (nth - 1) + 1, HEAD_SIZE * nth)
      some_outcomes[i] = string.sub(outcomes, from[nth], from[nth + 1] - 1)
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
local function closely(at, record, payload, nth, name, sequence, stored, state, attempted, signal, latency, dialect,
  pause)
  local due = struct.unpack('>I8', ARGV[4], at + 25)
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
    conclude_delivered(nth, sequence, stored, message_of(stored))
  else
    conclude(sequence, #record > 0 and record or stored, state, payload)
  end
end

local tried, nth, numbers, at, more = 0, 0, ARGV[4], 1, FIRST + 2 * total
for i = 1, total do
  local state, stream, attempted, signal, latency, dialect, pause, number = unpacked(NUMBERS, numbers, at)
  local entry, sequence = ARGV[FIRST + 2 * i - 2], sequences[i]
  local record, payload = '', ''
  if state == S_DELIVERED then
    nth = nth + 1
    delivered[nth] = sequence
  else
    record, payload = ARGV[more], ARGV[more + 1]
    more = more + 2
  end
  local stored = fetch(sequence)
  -- It may have ended since its host was looked for: one delivery can be among them twice.
  local name = is_record(stored) and names[i]
  local was, message, place
  if name then was, message, place = string.byte(stored), unpacked('>I8I8', stored, 11) end
  -- Its record names the entry by which it is in flight. One that makes no sense names none.
  if landed_already[entry] or (place ~= number or was ~= S_READY) and not (name and in_flight(stream, entry)) then
    if not name then drop(stream, entry) end
    result[#result + 1] = i - 1
  else
    drop(stream, entry)
    if stream == WOKEN then count('woken:' .. priority_of(stored), -1) end
    tried = tried + attempted
    if state == S_DELIVERED and signal == WELL and dialect + pause == 0 and calm_landed(name, latency) then
      conclude_delivered(nth, sequence, stored, message)
    else
      landed_already[entry] = true -- what was delivered is no record any more
      closely(at, record, payload, nth, name, sequence, stored, state, attempted, signal, latency, dialect, pause)
    end
  end
  at = at + NUMBERS_SIZE
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
