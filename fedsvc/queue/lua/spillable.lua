-- spillable: show a batch of deliveries that had better wait in SQL: of the host with most of them in a lane,
-- among those that are down or paused for long. Takes out of the lane what has ended there meanwhile, for nobody
-- else comes by while the host is down; else it changes nothing but the number that it gives the batch.
-- uses: hosts
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  for how long a host must have failed, ms
-- ARGV[3]  how many deliveries at most
-- ARGV[4]  how many must wait in a lane for it to be worth it
--
-- Result: {} if there are none, else {batch, host, lane, then sequence, record of each}

-- Which part of the longest life of a delivery is soon: an hour of two days.
local SOON = 48

read_terms(ARGV[1])
local limit, worth = tonumber(ARGV[3]), tonumber(ARGV[4])
local best, lane, most = nil, 0, worth
local all = call('HGETALL', HOSTS)
for i = 1, #all, 2 do
  local name, packed = all[i], all[i + 1]
  local normal, bulk = 0, 0
  if #packed == HOST_SIZE then normal, bulk = struct.unpack('<I4I4', packed, 56) end
  -- Little or nothing waits for nearly all of them: to make a table of each is what took time.
  if normal > most or bulk > most then
    loaded[name] = packed
    local h = host(name)
    local long = h.circuit == OPEN and h.since > 0 and NOW_MS - h.since >= tonumber(ARGV[2])
    if long or h.pause > NOW_MS + tonumber(ARGV[2]) then
      for priority = 2, 3 do
        if h[LANE[priority]] > most then best, lane, most = h, priority, h[LANE[priority]] end
      end
    end
  end
end
if not best then return {} end
local key = lane_key(best, lane)
local found, live = call('LRANGE', key, 0, limit), {}
prefetch(found)
for _, sequence in ipairs(found) do
  local record = fetch(sequence)
  if is_record(record) and string.byte(record, 1) == S_PARKED and place_of(record) == IN_LANE then
    live[#live + 1] = sequence
  end
end
if #live < #found then
  call('LTRIM', key, #found, -1)
  for i = #live, 1, -1 do call('LPUSH', key, live[i]) end
  best[LANE[lane]], best.changed = best[LANE[lane]] - (#found - #live), true
  save_hosts()
end
-- The first stays, to be probed with. So do those whose time is over soon, unless they are many: for the sake of each
-- of them all of its batch would come back, and go to SQL again.
local stay, soon = 1, NOW_MS + terms.longest_pause / SOON
local result = { text(allocate(1)), best.name, lane }
for i = 2, #live do
  local record = fetch(live[i])
  if stay < worth and deadline_ms(record) <= soon then
    stay = stay + 1
  else
    result[#result + 1] = live[i]
    result[#result + 1] = record
  end
end
flush()
return result
