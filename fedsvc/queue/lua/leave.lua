-- leave: a worker that stops gives up its lease, so that others take over at once what it did not finish.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  the worker
-- Result: 1 if it leaves deliveries in flight, else 0.

local held = 0
for _, key in ipairs(STREAM) do
  local pending = redis.pcall('XPENDING', key, GROUP, '-', '+', 1, ARGV[1])
  if not pending.err then held = math.max(held, #pending) end
end
if held == 0 then
  for _, key in ipairs(STREAM) do redis.pcall('XGROUP', 'DELCONSUMER', key, GROUP, ARGV[1]) end
  call('ZREM', CONSUMERS, ARGV[1])
else
  call('ZADD', CONSUMERS, 0, ARGV[1])
  ring()
end
return held
