-- put_schedule: note a schedule, change one, or forget it.
-- uses: nothing
--
-- KEYS[1]  prefix of schedules
-- ARGV[1]  id
-- ARGV[2]  `create` if there must be none yet, `change` if there must be one, `delete`
-- ARGV[3]  the version that is changed; 0 for any
-- ARGV[4]  when it runs next, ms; 0 if it is paused
-- ARGV[5]  how many there may be
-- ARGV[6...] fields and values
--
-- Result: 1; 0 if there is one already, or none; -1 if there are too many; -2 if it has been changed meanwhile.

local P = KEYS[1]
local key, all, due = P .. ':id:' .. ARGV[1], P .. ':all', P .. ':due'
local found = redis.call('HMGET', key, 'version', 'running', 'until', 'definition')
if (ARGV[2] == 'create') == (found[1] ~= false) then return 0 end
if ARGV[2] == 'delete' then
  redis.call('DEL', key)
  redis.call('ZREM', all, ARGV[1])
  redis.call('ZREM', due, ARGV[1])
  return 1
end
if ARGV[3] ~= '0' and found[1] ~= ARGV[3] then return -2 end
if not found[1] and redis.call('ZCARD', all) >= tonumber(ARGV[5]) then return -1 end
-- A run that has begun is finished as it began, whoever takes it up: half of it may be done.
if found[2] then redis.call('HSETNX', key, 'begun', found[4]) end
redis.call('HSET', key, 'next', ARGV[4], unpack(ARGV, 6))
redis.call('HINCRBY', key, 'version', 1)
redis.call('ZADD', all, 0, ARGV[1])
if found[2] then
  -- Who has its run in hand ends it; if nobody does any more, somebody takes it up then.
  redis.call('ZADD', due, found[3], ARGV[1])
elseif ARGV[4] == '0' then
  redis.call('ZREM', due, ARGV[1])
else
  redis.call('ZADD', due, ARGV[4], ARGV[1])
end
return 1
