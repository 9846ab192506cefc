-- leave: a worker that stops gives up its lease, so that others take over at once what it did not finish.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  the worker
-- ARGV[2]  partition's number
-- Result: how many deliveries it leaves in flight.

local held = 0
for priority = 1, 3 do
  local pending = redis.pcall('XPENDING', READY[priority], GROUP, '-', '+', 1, ARGV[1])
  if not pending.err then held = held + #pending end
end
if held == 0 then
  for priority = 1, 3 do redis.pcall('XGROUP', 'DELCONSUMER', READY[priority], GROUP, ARGV[1]) end
  call('ZREM', CONSUMERS, ARGV[1])
else
  call('ZADD', CONSUMERS, 0, ARGV[1])
  ring(ARGV[2])
end
return held
