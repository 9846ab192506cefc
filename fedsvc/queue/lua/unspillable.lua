-- unspillable: which batches should come back from SQL now: of hosts that are fit and have little left in the
-- lane that goes before it, or that have nothing left to be probed with; those that were cancelled, and those in
-- which a deadline has passed.
-- uses: hosts, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  how few must be left in the lane that are older
--
-- Result: their numbers; of those that come back for their host's sake, one for each host, of others a few, and a few
-- that SQL did not have, which must not stand in their way.

read_terms(ARGV[1])
local oldest, result = {}, {}
local FEW = 8
local ready, missing = 0, 0
for _, batch in ipairs(spilled_batches()) do
  local known = oldest[batch.host]
  if batch.cancelled or batch.deadline <= NOW_MS then
    local lost = batch.first == NEWEST
    if (lost and missing or ready) < FEW then
      result[#result + 1] = batch.number
      if lost then missing = missing + 1 else ready = ready + 1 end
    end
  elseif not known or batch.first < known.first then
    oldest[batch.host] = batch
  end
end
for name, batch in pairs(oldest) do
  local h = host(name)
  local fit = h.circuit == OPEN and lanes(h) == 0
  if h.circuit == CLOSED and h.pause <= NOW_MS then
    local key = lane_key(h, batch.lane)
    local first, sequence = call('LINDEX', key, 0), call('LINDEX', key, tonumber(ARGV[2]) - 1)
    -- A lane is not sorted: older ones may stand behind the first that must wait for the batch.
    fit = not sequence or tonumber(sequence) > batch.first or tonumber(first) > batch.first
  end
  if fit then result[#result + 1] = batch.number end
end
return result
