-- adopt: SQL has a batch that Redis does not know of, as after Redis has lost all or some of what it had. Those of its
-- deliveries of which nothing is known here wait in SQL again, as ones that are accepted now, and come back with their
-- host; those that wait here in a batch that SQL does not have wait in this one. None does if Redis has all of them: what
-- would have moved the batch broke off.
-- uses: hosts, groups, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  batch
-- ARGV[3]  host
-- ARGV[4]  key of the host (8 bytes)
-- ARGV[5]  how long to keep the indexes, ms
-- ARGV[6]  batches that SQL does not have, separated by spaces
-- ARGV[7]  how many messages
-- ARGV[8...] for each message of the batch: number, origin, name of the registered key that it needs or '', group or '',
--          key of the activity id (hex), key of the origin (8 bytes); then for each delivery that has not ended, the
--          oldest first: sequence, record, key of its inbox (8 bytes)
--
-- Result: how many wait in it now.

if call('HEXISTS', SPILLS, ARGV[2]) == 1 or call('SISMEMBER', SPENT, ARGV[2]) == 1 then return 0 end
read_terms(ARGV[1])
local messages, at = {}, 8
for _ = 1, tonumber(ARGV[7]) do
  messages[ARGV[at]] = {
    origin = ARGV[at + 1], key = ARGV[at + 2], group = ARGV[at + 3], activity = ARGV[at + 4], origin_key = ARGV[at + 5],
  }
  at = at + 6
end
local keep = tonumber(ARGV[5])

-- A duplicate of it is one again, and it is among the recipients of its activity: see enqueue.lua.
local function list(message, number, sequence, inbox_key)
  local key = P .. ':activity:' .. message.activity
  local present = call('GET', key) or struct.pack('>I8', number)
  extend(key, present, struct.pack('>I8I4', tonumber(sequence), 1) .. message.origin_key .. inbox_key)
  if call('PTTL', key) < keep then call('PEXPIRE', key, text(keep)) end
end

local sequences = {}
for i = at, #ARGV, 3 do sequences[#sequences + 1] = ARGV[i] end
prefetch(sequences)

local lost = {}
for number in string.gmatch(ARGV[6], '%d+') do
  local told = call('HGET', SPILLS, number)
  lost[number] = told and read_batch(number, told)
end

local first, lane, number, moving, deadline, shares = nil, nil, 0, 0, math.huge, {}
for i = at, #ARGV, 3 do
  local sequence, record = ARGV[i], ARGV[i + 1]
  local message = messages[text(message_of(record))]
  local stub = fetch(sequence)
  local from = is_stub(stub) and lost[batch_of(stub)]
  if message and (from or not stub) then
    local origin = message.origin
    first, lane = first or sequence, lane or priority_of(record)
    deadline = math.min(deadline, deadline_ms(record))
    shares[origin] = (shares[origin] or 0) + 1
    if from then
      moving = moving + 1
      -- As it was marked here meanwhile.
      record = string.sub(record, 1, 1) .. string.sub(stub, 2, 2) .. string.sub(record, 3)
      if from.dropped[origin] then record = flagged(record, FLAG_CANCEL) end
      leave_batch(from, origin)
    else
      number = number + 1
      owe(origin, 1)
      -- Those that waited behind it for their order are not here any more; who comes now finds it, and waits.
      record = unflagged(record, FLAG_FOLLOWED)
    end
    store(sequence, stub_of(record, origin, ARGV[i + 2], ARGV[2]))
  end
  if message and not stub then
    list(message, message_of(record), sequence, ARGV[i + 2])
    if message.group ~= '' then
      join(message.group, call('GET', group_key(message.group)), tonumber(sequence), { ARGV[4] }, keep)
    end
  end
end
if number + moving == 0 then
  call('SADD', SPENT, ARGV[2])
  return 0
end

local keys = {}
for _, message in pairs(messages) do
  if message.key ~= '' then
    use_key(message.key, 1)
    keys[message.key] = (keys[message.key] or 0) + 1
  end
end
for _, batch in pairs(lost) do
  if batch and batch.changed then save_batch(batch) end
end
call('HSET', SPILLS, ARGV[2], told_of({
  host = ARGV[3], lane = lane, first = tonumber(first), many = number + moving, deadline = deadline, shares = shares,
  keys = keys, dropped = {},
}))
set_barrier(host(ARGV[3]))
count('accepted', number)
count('parked', number)
count('spilled', number)
save_hosts()
flush()
return number + moving
