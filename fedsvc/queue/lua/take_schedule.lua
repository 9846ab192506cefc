-- take_schedule: begin a run, take up one that somebody has left, keep one in hand, or leave one out.
-- uses: nothing
--
-- KEYS[1]  prefix of schedules
-- ARGV[1]  id
-- ARGV[2]  its version, as it was looked at
-- ARGV[3]  whoever wants it
-- ARGV[4]  for how long, ms
-- ARGV[5]  the run: its time, ms
-- ARGV[6]  the time of the run after it, ms; 0 if it is being taken up or kept
-- ARGV[7]  why the run is left out; empty if it is not
--
-- Result: 1 if it is theirs (or was left out); 0 if not.

local P = KEYS[1]
local key, due = P .. ':id:' .. ARGV[1], P .. ':due'
local found = redis.call('HMGET', key, 'version', 'running', 'until', 'owner', 'next')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if found[2] then
  if found[2] ~= ARGV[5] or ARGV[6] ~= '0' then return 0 end
  if found[4] ~= ARGV[3] and tonumber(found[3]) > now then return 0 end
else
  if found[1] ~= ARGV[2] or ARGV[6] == '0' then return 0 end
  if found[5] == '0' or tonumber(found[5]) > tonumber(ARGV[5]) then return 0 end
  redis.call('HSET', key, 'next', ARGV[6])
  redis.call('HINCRBY', key, 'version', 1)
  if ARGV[7] ~= '' then
    redis.call('HSET', key, 'error', ARGV[7])
    redis.call('ZADD', due, ARGV[6], ARGV[1])
    return 1
  end
  redis.call('HSET', key, 'running', ARGV[5])
end
local ends = now + tonumber(ARGV[4])
redis.call('HSET', key, 'owner', ARGV[3], 'until', ends)
redis.call('ZADD', due, ends, ARGV[1])
return 1
