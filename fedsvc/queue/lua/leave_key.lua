-- leave_key: a step in the deletion of a registered key.
-- uses: nothing
--
-- KEYS[1]  the key's hash
-- ARGV[1]  `mark`: no new call may use it; `gone`: nothing needs it either; `unmark`: it stays after all;
--          `delete`: forget it; `hold`: a call that has begun is to be finished, the deletion begins anew
-- ARGV[2]  stamp of this deletion, ms; every step but `mark` and `hold` is only done for the same one
-- ARGV[3]  of `mark` and `gone`: names the call; empty if nothing does
--
-- Result: stamp of the deletion under way; nothing if there is none. A key that is gone is there only for the
-- call that has deleted it, which may come again.

local leaving = redis.call('HGET', KEYS[1], 'leaving')
if ARGV[1] == 'mark' then
  local gone = redis.call('HGET', KEYS[1], 'gone')
  if redis.call('EXISTS', KEYS[1]) == 0 or gone == '' or gone and gone ~= ARGV[3] then return false end
  if not leaving then redis.call('HSET', KEYS[1], 'leaving', ARGV[2]) end
  return leaving or ARGV[2]
end
if ARGV[1] == 'hold' then
  if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HGET', KEYS[1], 'gone') then return false end
  if leaving then redis.call('HSET', KEYS[1], 'leaving', ARGV[2]) end
  return ARGV[2]
end
if leaving ~= ARGV[2] then return false end
if ARGV[1] == 'gone' then
  redis.call('HSET', KEYS[1], 'gone', ARGV[3])
elseif ARGV[1] == 'unmark' then
  redis.call('HDEL', KEYS[1], 'leaving', 'gone')
else
  redis.call('DEL', KEYS[1])
end
return leaving
