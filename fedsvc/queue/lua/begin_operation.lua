-- begin_operation: note an operation, once.
-- uses: nothing
--
-- KEYS[1]  prefix of operations
-- ARGV[1]  id
-- ARGV[2]  when, ms
-- ARGV[3]  how many may go on at the same time
-- ARGV[4]  how many are remembered
-- ARGV[5...] fields and values
--
-- Result: fields `order` and `mark`, which are of the first who began one of this id; false if too many go on.

local P = KEYS[1]
local key, all, open = P .. ':id:' .. ARGV[1], P .. ':all', P .. ':open'
local order = redis.call('HGET', key, 'order')
if order then return { order, redis.call('HGET', key, 'mark') } end
if redis.call('SCARD', open) >= tonumber(ARGV[3]) then return false end
redis.call('HSET', key, unpack(ARGV, 5))
redis.call('SADD', open, ARGV[1])
redis.call('ZADD', all, ARGV[2], ARGV[1])
local most = tonumber(ARGV[4])
if redis.call('ZCARD', all) > most then
  -- Those that go on are among the newest, unless somebody has begun very many since.
  for _, id in ipairs(redis.call('ZRANGE', all, 0, -most - 1)) do
    if redis.call('SISMEMBER', open, id) == 0 then
      redis.call('ZREM', all, id)
      redis.call('UNLINK', P .. ':id:' .. id)
    end
  end
end
return redis.call('HMGET', key, 'order', 'mark')
