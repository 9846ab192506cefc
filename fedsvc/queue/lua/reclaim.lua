-- reclaim: a worker takes over what was in flight with workers whose lease has ended.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  the worker that takes
-- ARGV[2]  how long its lease lasts from now, ms
-- ARGV[3]  how many at most
-- ARGV[4]  '' for workers whose lease has ended; or the worker's own name: then it is shown what is
--          in flight with itself, to find what it was handed in an answer that never arrived
-- ARGV[5]  only what has been in flight for so long, ms
--
-- After a time in which no worker came here (Redis was away, or its clock stepped) the leases say nothing:
-- everybody but who has left gets half a new one, in which to come back, so that what live workers do is not taken from them.
-- Workers that hold nothing more are forgotten.
-- Result: a text for each, as of admit.

local lease = tonumber(ARGV[2])
local left = tonumber(ARGV[3])
local result = {}
local LOOKED = P .. ':looked'
local from
if ARGV[4] == '' then
  local looked = tonumber(call('GET', LOOKED) or '0')
  local gap = NOW_MS - looked
  call('SET', LOOKED, text(NOW_MS))
  if gap > lease or gap < 0 then
    for _, consumer in ipairs(call('ZRANGEBYSCORE', CONSUMERS, '(0', '+inf')) do
      call('ZADD', CONSUMERS, text(NOW_MS + math.ceil(lease / 2)), consumer)
    end
  end
  from = call('ZRANGEBYSCORE', CONSUMERS, '-inf', text(NOW_MS))
else
  from = { ARGV[4] }
end
call('ZADD', CONSUMERS, text(NOW_MS + lease), ARGV[1])

for _, consumer in ipairs(from) do
  if consumer ~= ARGV[1] or ARGV[4] ~= '' then
    local empty = true
    for stream, key in ipairs(STREAM) do
      if left > 0 then
        local pending = redis.pcall('XPENDING', key, GROUP, 'IDLE', ARGV[5], '-', '+', left, consumer)
        if pending.err then pending = {} end -- no such group: Redis came back empty
        for _, item in ipairs(pending) do
          empty = false
          left = left - 1
          local times = item[4]
          if consumer ~= ARGV[1] then
            call('XCLAIM', key, GROUP, ARGV[1], 0, item[1])
            times = times + 1
          end
          local entry = call('XRANGE', key, item[1], item[1])[1]
          local sequence = entry and entry[2][2]
          local record = sequence and fetch(sequence)
          if is_record(record) and string.byte(record, 1) == S_READY then
            result[#result + 1] = table.concat({ stream, item[1], sequence, times, 0, record }, ' ')
          else
            drop(stream, item[1])
            count('strays', 1)
          end
        end
      else
        empty = false
      end
    end
    if empty and consumer ~= ARGV[1] then
      for _, key in ipairs(STREAM) do redis.pcall('XGROUP', 'DELCONSUMER', key, GROUP, consumer) end
      call('ZREM', CONSUMERS, consumer)
    end
  end
end
flush()
return result
