-- hold_operation: take an operation in hand, keep it, and write down how far it is.
-- uses: nothing
--
-- KEYS[1]  prefix of operations
-- ARGV[1]  id
-- ARGV[2]  whoever wants it
-- ARGV[3]  for how long, ms; 0 to let go of it
-- ARGV[4]  `1` if it has ended
-- ARGV[5...] fields and values to write
--
-- Result: until when (ms, by Redis's clock) it is theirs; 0 if it is somebody else's, or has ended.

local P = KEYS[1]
local key = P .. ':id:' .. ARGV[1]
local found = redis.call('HMGET', key, 'order', 'owner', 'until', 'ended')
if not found[1] or found[4] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if found[2] and found[2] ~= ARGV[2] and tonumber(found[3]) > now then return 0 end
local ends = now + tonumber(ARGV[3])
redis.call('HSET', key, 'owner', ARGV[2], 'until', ends, unpack(ARGV, 5))
if ARGV[4] == '1' then
  redis.call('HSET', key, 'ended', now)
  redis.call('SREM', P .. ':open', ARGV[1])
end
return ends
