-- How deliveries end, and what their end lets go on; for scripts that end some by themselves.
--
-- Deliveries that share an ordering key and a host go one after the other (those of one message together).
-- What must wait is held back in the list `held:<group>:<host>`; whatever it waits for is marked FOLLOWED and
-- counted in the hash `followed`. When the last of these has ended, the next are let go. Order belongs to
-- deliveries, not to workers, so that nothing a worker does or fails to do can break it.

local R_MAX_AGE, R_EXPIRED, R_CANCELLED, R_SUPERSEDED = 34, 35, 36, 37
local FOLLOWED = P .. ':followed'
local rang = false

local function chain(group, name) return group .. ':' .. name end

-- Let a delivery go on that was held back. Times before which it is not to be sent are still observed.
local function let_go(sequence, record)
  local not_before = place_of(record)
  count('parked', -1)
  if not_before > NOW_MS then
    store(sequence, moved(record, S_SCHEDULED, 0))
    call('ZADD', RETRY, text(not_before), sequence)
    count('scheduled', 1)
  else
    to_ready(sequence, record)
    rang = true
  end
end

-- One of those that others wait for in an order has ended.
local function let_go_on(name)
  if call('HINCRBY', FOLLOWED, name, -1) > 0 then return end
  call('HDEL', FOLLOWED, name)
  local key = P .. ':held:' .. name
  local gone, message = {}, nil
  while true do
    local sequence = call('LINDEX', key, 0)
    if not sequence then break end
    local held = fetch(sequence)
    if is_record(held) and string.byte(held, 1) == S_PARKED and place_of(held) ~= IN_LANE then
      if message and message_of(held) ~= message then break end
      message = message_of(held)
      gone[#gone + 1] = { sequence, held }
    end
    call('LPOP', key)
  end
  local more = call('EXISTS', key) == 1
  for _, item in ipairs(gone) do
    let_go(item[1], more and flagged(item[2], FLAG_FOLLOWED) or item[2])
  end
  if more then call('HINCRBY', FOLLOWED, name, #gone) end
end
local function let_others_go(record)
  local group = call('HGET', P .. ':message:' .. text(message_of(record)), 'g')
  if group and group ~= '' then let_go_on(chain(group, host_of(record))) end
end

-- What becomes known of a delivery that a script ends, as far as its message is here: see outcome.py for the order of
-- parts. `origin` stands for that of the message, if it is given; `history` is a list of attempts as they are packed.
local function packed_outcome(record, reason, inbox, name, origin, status, history)
  local fields = call('HGET', P .. ':message:' .. text(message_of(record)), 'm')
  local read, m = pcall(cjson.decode, fields or '')
  if not read then m = {} end
  local function quoted(value) return cjson.encode(type(value) == 'string' and value or '') end
  return '[' .. table.concat({
    quoted(m[1]), quoted(m[2]), quoted(m[3]), quoted(inbox), quoted(name), quoted(origin or m[6]),
    quoted(m[4]), priority_of(record), string.byte(record, 5), reason, status, '""', 0,
    has(record, FLAG_EXPIRES) and text(deadline_ms(record)) or '0', quoted(m[8]), quoted(m[10]),
    '[' .. table.concat(history, ',') .. ']',
  }, ',') .. ']'
end
local function payload_of(sequence, record, reason)
  local inbox = inbox_of(record)
  local accepted, history, status = math.floor(tonumber(sequence) / 1000), {}, 0
  for at = INBOX_AT + #inbox, #record - 8, 9 do
    local offset, latency, code, why = struct.unpack('>I4I2I2B', record, at)
    history[#history + 1] = '[' .. table.concat({ text(accepted + offset), latency, code, why }, ',') .. ']'
    status = code
  end
  return packed_outcome(record, reason, inbox, host_at(record, HOST_AT), nil, status, history)
end

-- End a pending delivery that is nowhere any more but in `deliveries`.
local function conclude(sequence, record, state, payload)
  local number = allocate(1)
  finish(sequence, state, payload, number)
  -- What was stored says whose it is: a worker may have been unable to read it. A dead letter is not pending.
  if state ~= S_PURGED then owe(origin_of(message_of(fetch(sequence))), -1) end
  if state == S_DEAD then
    -- Its message stays: a dead letter can be replayed.
    store(sequence, unflagged(moved(record, S_DEAD, number), FLAG_FOLLOWED))
    call('XADD', DEAD, text(number) .. '-0', 'd', sequence, 'o', payload)
    tally('f', 1)
  else
    store(sequence, struct.pack('>BI8', state, number))
    if state == S_DELIVERED then tally('d', 1) end
  end
  if has(record, FLAG_FOLLOWED) then let_others_go(record) end
  if state ~= S_DEAD then release(message_of(record)) end
end

-- Take a pending delivery out of where it waits. False if it is in flight: then it stays there.
-- What it leaves in a lane, in a line or behind others for its order is passed over there.
local function withdraw(sequence, record)
  local state = string.byte(record, 1)
  if state == S_READY and place_of(record) == IN_LINE then
    count('line:' .. priority_of(record), -1)
  elseif state == S_READY then
    local entry = text(place_of(record)) .. '-0'
    local stream = priority_of(record)
    if in_flight(stream, entry) or in_flight(WOKEN, entry) then return false end
    call('XDEL', STREAM[stream], entry)
  elseif state == S_PARKED then
    if place_of(record) == SPILLED then return false end -- it is ended when it comes back
    count('parked', -1)
  else
    call('ZREM', RETRY, sequence)
    if state == S_SCHEDULED then count('scheduled', -1) else waiting(record, -1) end
  end
  return true
end

-- End a delivery whose time is over, if no worker has it.
local function lapse(sequence, record)
  if not withdraw(sequence, record) then return false end
  local expired = has(record, FLAG_EXPIRES)
  conclude(sequence, record, expired and S_EXPIRED or S_DEAD,
    payload_of(sequence, record, expired and R_EXPIRED or R_MAX_AGE))
  return true
end

-- End a delivery because somebody wants it no more. False if it is in flight or in SQL: then it is not tried
-- again.
local function recall(sequence, record, state)
  if not withdraw(sequence, record) then
    local flag = state == S_CANCELLED and FLAG_CANCEL or FLAG_SUPERSEDE
    store(sequence, flagged(record, flag))
    return false
  end
  local reason = state == S_CANCELLED and R_CANCELLED or R_SUPERSEDED
  conclude(sequence, record, state, payload_of(sequence, record, reason))
  return true
end
