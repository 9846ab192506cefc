-- cancel: end some deliveries because the application wants them no more.
-- uses: hosts, endings, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  origins whose deliveries may be cancelled, separated by spaces; * for all
-- ARGV[2]  host: only deliveries to it; '' for any
-- ARGV[3]  1 to cancel what of that host is in SQL as well
-- ARGV[4...] their sequences
--
-- Result: {how many were cancelled, how many are in flight or in SQL (not tried again), how many had ended
-- already, sequences that are not known, or are of other origins}

local all, ours = ARGV[1] == '*', {}
for origin in string.gmatch(ARGV[1], '%S+') do ours[origin] = true end

local function is_ours(record)
  if all then return true end
  local spilled = string.byte(record, 1) == S_PARKED and place_of(record) == SPILLED
  return ours[spilled and inbox_of(record) or origin_of(message_of(record)) or ''] ~= nil
end

local result = { 0, 0, 0 }
for i = 4, #ARGV do
  local sequence = ARGV[i]
  local record = fetch(sequence)
  if not record or is_record(record) and ARGV[2] == '' and not is_ours(record) then
    result[#result + 1] = sequence
  elseif not is_record(record) then
    -- Of one that has ended neither host nor origin are here: who asks for some must not learn of others.
    if all or ARGV[2] == '' then result[3] = result[3] + 1 end
  elseif ARGV[2] == '' or host_of(record) == ARGV[2] and is_ours(record) then
    local at = 3
    if string.byte(record, 1) <= S_SCHEDULED then at = recall(sequence, record, S_CANCELLED) and 1 or 2 end
    result[at] = result[at] + 1
  end
end
if ARGV[3] == '1' then
  for _, batch in ipairs(spilled_batches()) do
    local told = batch.told
    for origin, n in pairs(batch.shares) do
      if batch.host == ARGV[2] and (all or ours[origin]) and not batch.dropped[origin] then
        told = told .. ',' .. origin
        result[2] = result[2] + n
      end
    end
    if told ~= batch.told then call('HSET', SPILLS, batch.number, told) end
  end
end
flush()
if rang then ring() end
return result
