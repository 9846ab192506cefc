-- unspillable: which batches should come back from SQL now: of hosts that are fit and have little left in the
-- lane that goes before it, those that were cancelled, and those in which a deadline has passed.
-- uses: hosts, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  how few must be left in the lane that are older
--
-- Result: their numbers, at most one for each host.

read_terms(ARGV[1])
local oldest = {}
for _, batch in ipairs(spilled_batches()) do
  local known = oldest[batch.host]
  if not known or batch.first < known.first then oldest[batch.host] = batch end
end
local result = {}
for name, batch in pairs(oldest) do
  local h = host(name)
  local fit = h.circuit == CLOSED and h.pause <= NOW_MS
  if fit then
    local sequence = call('LINDEX', lane_key(h, batch.lane), tonumber(ARGV[2]) - 1)
    fit = not sequence or tonumber(sequence) > batch.first
  end
  if fit or batch.cancelled or batch.deadline <= NOW_MS then result[#result + 1] = batch.number end
end
return result
