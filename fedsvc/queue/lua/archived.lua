-- archived: SQL has committed all outcomes up to a number.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  the number
-- ARGV[2]  how many outcomes that were not archived before
-- Result: 1, or 0 if that was known already.

local before = tonumber(call('GET', P .. ':archived') or '0')
if tonumber(ARGV[1]) <= before then return 0 end
call('SET', P .. ':archived', ARGV[1])
count('archived', tonumber(ARGV[2]))
flush()
return 1
