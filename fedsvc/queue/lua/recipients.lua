-- recipients: in which states are those deliveries that the archive does not hold? Changes nothing.
--
-- KEYS[1]  prefix of the partition
-- ARGV     their sequences
--
-- Result: flat list of state, how many. A delivery in flight counts as ready (1).

local archived = tonumber(call('GET', P .. ':archived') or '0')
local seen = {}
for _, sequence in ipairs(ARGV) do
  local record = call('HGET', DELIVERIES, sequence)
  if record then
    local state, number = string.byte(record, 1), math.huge
    if not is_record(record) then
      number = struct.unpack('>I8', record, 2)
    elseif state == S_DEAD then
      number = place_of(record)
    end
    if number > archived then seen[state] = (seen[state] or 0) + 1 end
  end
end
local result = {}
for state, number in pairs(seen) do
  result[#result + 1] = state
  result[#result + 1] = number
end
return result
