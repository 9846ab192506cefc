-- promote: deliveries whose time has come go (back) to the ready streams, those whose time is over end.
-- uses: hosts, endings, lines
-- seldom: lapse, to_ready, waiting, flush, ring
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  how many at most
-- ARGV[2]  1 to be told how long the oldest that a worker could take now has waited for one
--
-- Result: {how many were promoted, when to come again (ms; -1 if nothing waits for a time), now (ms), 1 if
-- there is work for admit, that time (ms; 0 if it was not asked for, or nothing waits)}

local EXPIRY = P .. ':expiry'
local over = call('ZRANGEBYSCORE', EXPIRY, '-inf', text(NOW_MS), 'LIMIT', 0, ARGV[1])
for _, sequence in ipairs(over) do
  call('ZREM', EXPIRY, sequence)
  local record = fetch(sequence)
  -- One that is in flight is ended by its worker, or comes back here when it is to be tried again.
  if is_record(record) and string.byte(record, 1) <= S_SCHEDULED then lapse(sequence, record) end
end

local due = call('ZRANGEBYSCORE', RETRY, '-inf', text(NOW_MS), 'LIMIT', 0, ARGV[1])
for _, sequence in ipairs(due) do
  local record = fetch(sequence)
  call('ZREM', RETRY, sequence)
  if is_record(record) then
    if string.byte(record, 1) == S_SCHEDULED then count('scheduled', -1) else waiting(record, -1) end
    to_ready(sequence, record)
  else
    count('strays', 1)
  end
end
sweep_lines()
if #due > 0 or #over > 0 then flush() end
if #due > 0 or rang then ring() end

local next_at, awake = math.huge, 0
for _, key in ipairs({ RETRY, EXPIRY, WAKE }) do
  local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  local at = tonumber(first[2])
  if at and key == WAKE and at <= NOW_MS then awake = 1 elseif at then next_at = math.min(next_at, at) end
end
if awake == 1 then
  -- The next host that is not to be tried yet.
  local later = call('ZRANGEBYSCORE', WAKE, '(' .. text(NOW_MS), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if later[2] then next_at = math.min(next_at, tonumber(later[2])) end
end

-- Of a host with something urgent in its lane it is not written down since when it may be tried (see hosts.lua).
local NOT_KNOWN_MS = 250

-- When the oldest came that no worker has been handed, us.
local function oldest_waiting()
  local oldest = NOW_US
  for priority = 1, 3 do
    local groups = redis.pcall('XINFO', 'GROUPS', STREAM[priority])
    local after = '-'
    for _, group in ipairs(groups.err and {} or groups) do
      for field = 1, #group, 2 do
        if group[field] == 'last-delivered-id' then after = '(' .. group[field + 1] end
      end
    end
    local entry = call('XRANGE', STREAM[priority], after, '+', 'COUNT', 1)[1]
    local first = entry and string.match(entry[1], '^(%d+)-')
    if not first and in_lines(priority) > 0 then
      local origin = call('LINDEX', turns_key(priority), 0)
      first = origin and call('LINDEX', line_key(priority, origin), 0)
    end
    oldest = math.min(oldest, tonumber(first or NOW_US))
  end
  local host = call('ZRANGEBYSCORE', WAKE, '-inf', text(NOW_MS), 'WITHSCORES', 'LIMIT', 0, 1)
  local at = tonumber(host[2] or NOW_MS)
  if at <= 0 then at = NOW_MS - NOT_KNOWN_MS end
  return math.min(oldest, at * 1000)
end
local waited = ARGV[2] == '1' and math.floor((NOW_US - oldest_waiting()) / 1000) or 0
return {
  #due, next_at == math.huge and '-1' or text(next_at), text(NOW_MS), (#due > 0 or rang) and 1 or awake, waited,
}
