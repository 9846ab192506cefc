-- stats: the figures of one partition, at one moment, in time that does not depend on the backlog.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  bucket of rates since which they are asked for
--
-- Result: {now ms, counters as a flat list, rates (number of the newest bucket, then for each metric the buckets
-- since, newest first), entries waiting for a retry or their
-- time, dead letters, when the next is due (ms, -1), how many are due, workers with a lease, number of the
-- first outcome that the archive has not committed (0 if there is none), then for each priority:
-- entries, in flight, number of the oldest that no worker has (0 if none; of those in lines only the first of
-- the first 16 lines are looked at), at last how many are in flight out of
-- lanes, and as a flat list how many are pending of each origin}

local function oldest(key)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  local after = '-'
  if not groups.err then
    for _, group in ipairs(groups) do
      local info = {}
      for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
      if info['name'] == GROUP then after = '(' .. info['last-delivered-id'] end
    end
  end
  local entry = call('XRANGE', key, after, '+', 'COUNT', 1)[1]
  return entry and string.match(entry[1], '^(%d+)-') or '0'
end

-- The oldest that waits for a worker, in the stream or in a line.
local counters = call('HGETALL', COUNTERS)
local in_lines = {}
for i = 1, #counters, 2 do in_lines[counters[i]] = tonumber(counters[i + 1]) end
local function oldest_of(priority)
  local first = oldest(STREAM[priority])
  if (in_lines['line:' .. priority] or 0) <= 0 then return first end
  for _, origin in ipairs(call('LRANGE', P .. ':lines:' .. priority, 0, 15)) do
    local sequence = call('LINDEX', P .. ':line:' .. priority .. ':' .. origin, 0)
    if sequence and (first == '0' or tonumber(sequence) < tonumber(first)) then first = sequence end
  end
  return first
end

local newest = math.floor(NOW_MS / 1000 / BUCKET_S)
local back = newest - tonumber(ARGV[1])
if back < 0 or back >= BUCKETS then back = BUCKETS - 1 end
local names = {}
for _, metric in ipairs({ 'a', 't', 'd', 'f' }) do
  for bucket = newest, newest - back, -1 do names[#names + 1] = metric .. (bucket % BUCKETS) end
end

local next_one = call('ZRANGE', RETRY, 0, 0, 'WITHSCORES')
local archived = call('GET', P .. ':archived')
local unarchived = call('XRANGE', OUTCOMES, archived and '(' .. archived .. '-0' or '-', '+', 'COUNT', 1)[1]
local result = {
  text(NOW_MS),
  counters,
  { text(newest), call('HMGET', RATES, unpack(names)) },
  call('ZCARD', RETRY),
  call('XLEN', DEAD),
  next_one[2] or '-1',
  call('ZCOUNT', RETRY, '-inf', text(NOW_MS)),
  call('ZCOUNT', CONSUMERS, text(NOW_MS), '+inf'),
  unarchived and string.match(unarchived[1], '^(%d+)-') or '0',
}
for priority = 1, 3 do
  local key = STREAM[priority]
  local flying = redis.pcall('XPENDING', key, GROUP)
  result[#result + 1] = call('XLEN', key)
  result[#result + 1] = flying.err and 0 or flying[1]
  result[#result + 1] = oldest_of(priority)
end
local flying = redis.pcall('XPENDING', STREAM[WOKEN], GROUP)
result[#result + 1] = flying.err and 0 or flying[1]
result[#result + 1] = call('HGETALL', BACKLOG)
return result
