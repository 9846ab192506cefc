-- end_schedule: a run is over.
-- uses: nothing
--
-- KEYS[1]  prefix of schedules
-- ARGV[1]  id
-- ARGV[2]  whoever had it
-- ARGV[3]  the run: its time, ms
-- ARGV[4]  what went wrong; empty if nothing did
--
-- Result: 1; 0 if it was not theirs.

local P = KEYS[1]
local key, due = P .. ':id:' .. ARGV[1], P .. ':due'
local found = redis.call('HMGET', key, 'running', 'owner', 'next')
if found[1] ~= ARGV[3] or found[2] ~= ARGV[2] then return 0 end
redis.call('HSET', key, 'last', ARGV[3], 'error', ARGV[4])
redis.call('HDEL', key, 'running', 'owner', 'until', 'begun')
if found[3] == '0' then redis.call('ZREM', due, ARGV[1]) else redis.call('ZADD', due, found[3], ARGV[1]) end
return 1
