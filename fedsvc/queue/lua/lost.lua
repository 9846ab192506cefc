-- lost: show deliveries that wait in batches which SQL does not have. Changes nothing.
-- uses: spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  cursor: 0, then what the result before began with, until that is 0 again
-- ARGV[2]  how many deliveries to look at, about
-- ARGV[3...] the batches
--
-- Result: next cursor, then sequence, batch of each. One may come twice.

local wanted = {}
for i = 3, #ARGV do wanted[ARGV[i]] = true end
local cursor, found = unpack(call('HSCAN', DELIVERIES, ARGV[1], 'COUNT', ARGV[2]))
local result = { cursor }
for i = 1, #found, 2 do
  if is_stub(found[i + 1]) and wanted[batch_of(found[i + 1])] then
    result[#result + 1] = found[i]
    result[#result + 1] = batch_of(found[i + 1])
  end
end
return result
