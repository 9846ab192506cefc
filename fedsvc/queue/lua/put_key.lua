-- put_key: register a key, or replace one.
-- uses: nothing
--
-- KEYS[1]  the key's hash
-- ARGV[1]  `rotate` if there must be one already, else `put`: then it is wanted again if it was to be deleted
-- ARGV[2]  now, ms
-- ARGV[3...] fields and values
--
-- Result: {when it was registered first (ms), 1 if it is to be deleted}; nothing if there is none to replace.

local created = redis.call('HGET', KEYS[1], 'created')
if ARGV[1] == 'rotate' then
  if not created or redis.call('HGET', KEYS[1], 'gone') then return false end
else
  redis.call('HDEL', KEYS[1], 'leaving', 'gone')
end
redis.call('HSET', KEYS[1], 'created', created or ARGV[2], unpack(ARGV, 3))
return { created or ARGV[2], redis.call('HEXISTS', KEYS[1], 'leaving') }
