-- recipients: in which states are some deliveries? Changes nothing.
--
-- KEYS[1]  prefix of the partition
-- ARGV     their sequences
--
-- Result: flat list of state, how many. 0 stands for those that Redis does not hold any more; a
-- delivery in flight counts as ready (1).

local seen = {}
for _, sequence in ipairs(ARGV) do
  local record = call('HGET', DELIVERIES, sequence)
  local state = record and string.byte(record, 1) or 0
  seen[state] = (seen[state] or 0) + 1
end
local result = {}
for state, number in pairs(seen) do
  result[#result + 1] = state
  result[#result + 1] = number
end
return result
