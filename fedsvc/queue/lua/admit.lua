-- admit: hand deliveries that are ready to a worker. They stay in the stream, in flight, until settled.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  the worker
-- ARGV[2]  how long its lease lasts from now, ms
-- ARGV[3]  how many at most
-- ARGV[4], ARGV[5], ARGV[6]  of these, shares of urgent, normal and bulk; what one does not use, others get
--
-- Result: flat list of priority, entry number, sequence, record, times delivered (1) for each.

call('ZADD', CONSUMERS, text(NOW_MS + tonumber(ARGV[2])), ARGV[1])
local left = tonumber(ARGV[3])
local result = {}

local function read(priority, number)
  if number <= 0 then return 0 end
  local key = READY[priority]
  local reply = redis.pcall('XREADGROUP', 'GROUP', GROUP, ARGV[1], 'COUNT', number, 'STREAMS', key, '>')
  if reply and reply.err then
    if not string.find(reply.err, 'NOGROUP', 1, true) then return reply end
    -- First use, or Redis came back empty.
    call('XGROUP', 'CREATE', key, GROUP, '0', 'MKSTREAM')
    reply = call('XREADGROUP', 'GROUP', GROUP, ARGV[1], 'COUNT', number, 'STREAMS', key, '>')
  end
  if not reply then return 0 end
  local entries = reply[1][2]
  for _, entry in ipairs(entries) do
    local number_of = string.match(entry[1], '^(%d+)-')
    local sequence = entry[2] and entry[2][2]
    local record = sequence and call('HGET', DELIVERIES, sequence)
    if is_record(record) and string.byte(record, 1) == S_READY then
      result[#result + 1] = priority
      result[#result + 1] = number_of
      result[#result + 1] = sequence
      result[#result + 1] = record
      result[#result + 1] = 1
    else
      -- Not one of ours, or of a delivery that has gone on: nothing is owed for it.
      call('XACK', key, GROUP, entry[1])
      call('XDEL', key, entry[1])
      count('strays', 1)
    end
  end
  left = left - #entries
  return #entries
end

local short = {}
for priority = 1, 3 do
  local share = math.min(tonumber(ARGV[3 + priority]), left)
  local got = read(priority, share)
  if type(got) == 'table' then return got end
  short[priority] = got < share or share <= 0 and left <= 0
end
for priority = 1, 3 do
  if left > 0 and not short[priority] then
    local got = read(priority, left)
    if type(got) == 'table' then return got end
  end
end
flush()
return result
