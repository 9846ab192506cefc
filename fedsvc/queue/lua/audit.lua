-- audit: set right what hosts are said to have in flight, should it ever differ from what workers hold, wake those
-- that would sleep or be paused too long since the clock was set back, forget hosts that nothing was sent to for
-- long, count anew what waits for hosts that are down, and compare what origins are said to have pending with the sum
-- of all.
-- uses: hosts
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  how long a host is remembered, ms
-- ARGV[3]  how many entries in flight to look at, at most; with more nothing is set right
--
-- Result: {hosts that were set right, hosts that were forgotten, by how much all that origins have pending differs
-- from what is pending; set right if nothing is}

read_terms(ARGV[1])
local off = -tonumber(call('HGET', COUNTERS, 'accepted') or '0')
for _, name in pairs(COUNTER_OF) do off = off + tonumber(call('HGET', COUNTERS, name) or '0') end
local nothing = off == 0
for _, n in ipairs(call('HVALS', BACKLOG)) do off = off + tonumber(n) end
if off ~= 0 and nothing then call('DEL', BACKLOG) end
local held, left = {}, tonumber(ARGV[3])
for stream, key in ipairs(STREAM) do
  local pending = redis.pcall('XPENDING', key, GROUP, '-', '+', left)
  if not pending.err then
    left = left - #pending
    for _, item in ipairs(pending) do
      local entry = call('XRANGE', key, item[1], item[1])[1]
      local record = entry and fetch(entry[2][2])
      if is_record(record) then
        local name = host_of(record)
        held[name] = (held[name] or 0) + 1
      end
    end
  end
  if left <= 0 then return { 0, 0, off } end
end

local names, wrong, forgotten = call('HKEYS', HOSTS), 0, 0
local asleep, wakes = {}, call('ZRANGEBYSCORE', WAKE, '(' .. text(NOW_MS), '+inf', 'WITHSCORES')
for i = 1, #wakes, 2 do asleep[wakes[i]] = tonumber(wakes[i + 1]) end
local behind = -tonumber(call('HGET', COUNTERS, 'shut') or '0')
for _, name in ipairs(names) do
  local h = host(name)
  behind = behind + h.shut
  if h.flying ~= (held[name] or 0) then
    h.flying, h.changed, wrong = held[name] or 0, true, wrong + 1
    if h.circuit == HALF_OPEN and h.flying == 0 then h.circuit, h.probe = OPEN, NOW_MS end
  end
  -- What has been later than now, by a clock that was set back since, was now at the latest. What is left of a pause
  -- is what was left of it then, and not those hours too.
  local last = math.max(h.success, h.failure)
  if last > NOW_MS then
    if h.pause > last then h.pause = NOW_MS + (h.pause - last) end
    h.success, h.failure, h.changed = math.min(h.success, NOW_MS), math.min(h.failure, NOW_MS), true
  end
  if asleep[name] then
    local free, at = room(h)
    if free > 0 or at + 1 < asleep[name] then h.changed = true end
  end
  if h_has(h, H_PAUSED) and h.pause <= NOW_MS then -- nothing has come for it since
    h_set(h, H_PAUSED, false)
    h.changed = true
  end
  local seen = math.max(h.success, h.failure, h.filled)
  if h.circuit == CLOSED and h.flags == 0 and h.flying == 0 and lanes(h) == 0 and h.pause <= NOW_MS
    and h.barrier == 0 and NOW_MS - seen > tonumber(ARGV[2]) then
    call('HDEL', HOSTS, name)
    call('HDEL', RECENT, name)
    call('HDEL', P .. ':pauses', name)
    h.changed, forgotten = false, forgotten + 1
  end
end
count('shut', behind)
save_hosts()
flush()
if woken > 0 then ring() end
return { wrong, forgotten, off }
