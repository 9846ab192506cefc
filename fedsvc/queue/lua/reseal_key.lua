-- reseal_key: store a key encrypted anew, if it is still the same.
-- uses: nothing
--
-- KEYS[1]  the key's hash
-- ARGV[1]  as it is encrypted now
-- ARGV[2]  as it is to be, ARGV[3] the head of that
--
-- Result: 1 if it was stored.

if redis.call('HGET', KEYS[1], 'sealed') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'sealed', ARGV[2], 'head', ARGV[3])
return 1
