-- adopt: SQL has a batch that Redis does not know of, as after Redis has lost all or some of what it had. Those of its
-- deliveries of which nothing is known here wait in SQL again, as ones that are accepted now, and come back with their
-- host. None does if Redis has all of them: what would have moved the batch broke off.
-- uses: hosts, groups, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  batch
-- ARGV[3]  host
-- ARGV[4]  key of the host (8 bytes)
-- ARGV[5]  how long to keep the indexes, ms
-- ARGV[6]  how many messages
-- ARGV[7...] for each message of the batch: number, origin, name of the registered key that it needs or '', group or '',
--          key of the activity id (hex), key of the origin (8 bytes); then for each delivery that has not ended, the
--          oldest first: sequence, record, key of its inbox (8 bytes)
--
-- Result: how many were not known.

if call('HEXISTS', SPILLS, ARGV[2]) == 1 or call('SISMEMBER', SPENT, ARGV[2]) == 1 then return 0 end
read_terms(ARGV[1])
local messages, at = {}, 7
for _ = 1, tonumber(ARGV[6]) do
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

local first, lane, number, deadline, shares = nil, nil, 0, math.huge, {}
for i = at, #ARGV, 3 do
  local sequence, record = ARGV[i], ARGV[i + 1]
  local message = messages[text(message_of(record))]
  if not fetch(sequence) and message then
    local origin = message.origin
    first, lane, number = first or sequence, lane or priority_of(record), number + 1
    deadline = math.min(deadline, deadline_ms(record))
    shares[origin] = (shares[origin] or 0) + 1
    -- Those that waited behind it for their order are not here any more; who comes now finds it, and waits.
    store(sequence, stub_of(unflagged(record, FLAG_FOLLOWED), origin, ARGV[i + 2]))
    list(message, message_of(record), sequence, ARGV[i + 2])
    if message.group ~= '' then
      join(message.group, call('GET', group_key(message.group)), tonumber(sequence), { ARGV[4] }, keep)
    end
  end
end
if number == 0 then
  call('SADD', SPENT, ARGV[2])
  return 0
end

for _, message in pairs(messages) do
  if message.key ~= '' then use_key(message.key, 1) end
end
local listed = {}
for origin, n in pairs(shares) do
  listed[#listed + 1] = origin .. '=' .. n
  owe(origin, n)
end
call('HSET', SPILLS, ARGV[2], table.concat({
  ARGV[3], lane, first, number, text(deadline), table.concat(listed, ','), '',
}, ' '))
set_barrier(host(ARGV[3]))
count('accepted', number)
count('parked', number)
count('spilled', number)
save_hosts()
flush()
return number
