-- pass_over: SQL does not have a batch: newer deliveries to its host wait for it no more. Should SQL have it again,
-- it comes back to the front of its lane all the same.
-- uses: hosts, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  batch
--
-- Result: 1, or 0 if that was known, or the batch has come back.

read_terms(ARGV[1])
local told = call('HGET', SPILLS, ARGV[2])
local batch = told and read_batch(ARGV[2], told)
if not batch or batch.first == NEWEST then return 0 end
call('HSET', SPILLS, ARGV[2], (string.gsub(told, '^(%S+ %d) %d+', '%1 ' .. text(NEWEST))))
set_barrier(host(batch.host))
save_hosts()
flush()
if woken > 0 then ring() end
return 1
