-- unspill: bring a batch back from SQL to its place in its lane. Those whose time is over end here: in the lane they
-- would go to SQL again, if memory is short, before anybody has looked at them, and come back at once.
-- uses: hosts, endings, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  batch
-- ARGV[3]  how many messages
-- ARGV[4...] for each message: number, body, packed fields, identity, group or '', name of the registered key
--          that it needs or '', origin; then for each delivery, the oldest first: sequence, record
--
-- Result: how many came back, 0 if that was done before.

read_terms(ARGV[1])
local told = call('HGET', SPILLS, ARGV[2])
if not told then return 0 end
local batch = read_batch(ARGV[2], told)
local lane, h = batch.lane, host(batch.host)
local key = lane_key(h, lane)
local at = 4
local created = {}
for _ = 1, tonumber(ARGV[3]) do
  local message = P .. ':message:' .. ARGV[at]
  if call('EXISTS', message) == 0 then
    call('HSET', message, 'b', ARGV[at + 1], 'm', ARGV[at + 2], 'i', ARGV[at + 3], 'o', ARGV[at + 6],
      'n', 0)
    if ARGV[at + 4] ~= '' then call('HSET', message, 'g', ARGV[at + 4]) end
    if ARGV[at + 5] ~= '' then
      call('HSET', message, 'k', ARGV[at + 5])
      use_key(ARGV[at + 5], 1)
    end
    created[#created + 1] = message
  end
  if ARGV[at + 5] ~= '' then use_key(ARGV[at + 5], -1) end
  at = at + 7
end

local function cancelled(record)
  return has(record, FLAG_CANCEL) or batch.dropped[origin_of(message_of(record)) or ''] ~= nil
end

local back, ended, late = {}, {}, {}
for i = at, #ARGV, 2 do
  local sequence, record = ARGV[i], ARGV[i + 1]
  local stub = fetch(sequence)
  if is_stub(stub) and batch_of(stub) == ARGV[2] then
    -- Others may have marked it while it was away.
    record = string.sub(record, 1, 1) .. string.sub(stub, 2, 2) .. string.sub(record, 3)
    call('HINCRBY', P .. ':message:' .. text(message_of(record)), 'n', 1)
    store(sequence, moved(record, S_PARKED, IN_LANE))
    if cancelled(record) or has(record, FLAG_SUPERSEDE) then
      ended[#ended + 1] = { sequence, moved(record, S_PARKED, IN_LANE) }
    elseif deadline_ms(record) <= NOW_MS then
      late[#late + 1] = sequence
    else
      back[#back + 1] = sequence
    end
    if has(record, FLAG_EXPIRES) then call('ZADD', P .. ':expiry', text(deadline_ms(record)), sequence) end
  end
end
-- What was left behind to be probed with, and what came back before, is older than all of them.
local older = {}
for _, sequence in ipairs(back[1] and call('LRANGE', key, 0, 2000) or {}) do
  if tonumber(sequence) > tonumber(back[1]) then break end
  older[#older + 1] = sequence
end
if #older > 0 then call('LTRIM', key, #older, -1) end
for i = #back, 1, -1 do call('LPUSH', key, back[i]) end
for i = #older, 1, -1 do call('LPUSH', key, older[i]) end
h[LANE[lane]] = h[LANE[lane]] + #back

call('HDEL', SPILLS, ARGV[2])
call('SADD', SPENT, ARGV[2])
set_barrier(h)
count('spilled', -(#back + #ended + #late))
for _, item in ipairs(ended) do
  recall(item[1], item[2], cancelled(item[2]) and S_CANCELLED or S_SUPERSEDED)
end
for _, sequence in ipairs(late) do lapse(sequence, fetch(sequence)) end
for _, message in ipairs(created) do
  if call('HGET', message, 'n') == '0' then forget_message(message) end
end
save_hosts()
flush()
if woken > 0 or rang then ring() end
return #back + #ended + #late
