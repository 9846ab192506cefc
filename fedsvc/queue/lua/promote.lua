-- promote: deliveries whose time has come go (back) to the ready streams.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  how many at most
--
-- Result: {how many were promoted, when the next one is due (ms; -1 if none waits), now (ms)}

local due = call('ZRANGEBYSCORE', RETRY, '-inf', text(NOW_MS), 'LIMIT', 0, ARGV[1])
if #due > 0 then
  local first = allocate(#due)
  for i, sequence in ipairs(due) do
    local record = call('HGET', DELIVERIES, sequence)
    call('ZREM', RETRY, sequence)
    if is_record(record) then
      if string.byte(record, 1) == S_SCHEDULED then count('scheduled', -1) else waiting(record, -1) end
      local place = first + i - 1
      call('HSET', DELIVERIES, sequence, moved(record, S_READY, place))
      to_ready(string.byte(record, 3), place, sequence)
    else
      count('strays', 1)
    end
  end
  flush()
end
local next_one = call('ZRANGE', RETRY, 0, 0, 'WITHSCORES')
return { #due, next_one[2] or '-1', text(NOW_MS) }
