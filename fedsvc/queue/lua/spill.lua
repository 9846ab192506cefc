-- spill: SQL has a batch of deliveries; they leave their lane, all or none. Others stay in front of them and between.
-- uses: hosts, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  batch
-- ARGV[3]  host
-- ARGV[4]  lane
-- ARGV[5...] pairs: their sequences, as `spillable` showed them, and the keys of their inboxes (8 bytes)
--
-- Result: 1, or 0 if something has changed meanwhile.

read_terms(ARGV[1])
local h, lane, number = host(ARGV[3]), tonumber(ARGV[4]), (#ARGV - 4) / 2
local function sequence_at(i) return ARGV[3 + 2 * i] end
local function inbox_key_at(i) return ARGV[4 + 2 * i] end
local key = lane_key(h, lane)
-- One at least stays in front, to be probed with.
local before, last = call('LPOS', key, sequence_at(1)), call('LPOS', key, sequence_at(number))
if not before or before == 0 or not last then return 0 end
local found, staying = 0, {}
for _, sequence in ipairs(call('LRANGE', key, before, last)) do
  if sequence == sequence_at(found + 1) then found = found + 1 else staying[#staying + 1] = sequence end
end
if found ~= number then return 0 end
local records, deadline = {}, math.huge
for i = 1, number do
  local record = fetch(sequence_at(i))
  if is_record(record) and string.byte(record, 1) == S_PARKED and place_of(record) == IN_LANE then
    records[i] = record
    deadline = math.min(deadline, deadline_ms(record))
  else
    return 0
  end
end

local needed, shares, keys = {}, {}, {}
local front = call('LPOP', key, before)
call('LTRIM', key, last - before + 1, -1)
for i = #staying, 1, -1 do call('LPUSH', key, staying[i]) end
for i = before, 1, -1 do call('LPUSH', key, front[i]) end
for i = 1, number do
  local message = message_of(records[i])
  local origin = origin_of(message) or '?'
  store(sequence_at(i), stub_of(records[i], origin, inbox_key_at(i), ARGV[2]))
  shares[origin] = (shares[origin] or 0) + 1
  if not needed[message] then
    needed[message] = true
    -- In SQL it still needs its key.
    local name = call('HGET', P .. ':message:' .. text(message), 'k')
    if name then
      use_key(name, 1)
      keys[name] = (keys[name] or 0) + 1
    end
  end
  release(message)
end
h[LANE[lane]] = h[LANE[lane]] - number
call('HSET', SPILLS, ARGV[2], told_of({
  host = h.name, lane = lane, first = tonumber(ARGV[5]), many = number, deadline = deadline, shares = shares,
  keys = keys, dropped = {},
}))
set_barrier(h)
count('spilled', number)
save_hosts()
flush()
return 1
