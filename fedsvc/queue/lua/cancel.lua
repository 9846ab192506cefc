-- cancel: end some deliveries because the application wants them no more.
-- uses: hosts, endings, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  origin whose deliveries may be cancelled; '' for any
-- ARGV[2]  host: only deliveries to it; '' for any
-- ARGV[3]  1 to cancel what of that host is in SQL as well
-- ARGV[4...] their sequences
--
-- Result: {how many were cancelled, how many are in flight or in SQL (not tried again), how many had ended
-- already, sequences that are not known}

local result = { 0, 0, 0 }
for i = 4, #ARGV do
  local sequence = ARGV[i]
  local record = fetch(sequence)
  if not record then
    result[#result + 1] = sequence
  elseif not is_record(record) or string.byte(record, 1) > S_SCHEDULED then
    result[3] = result[3] + 1
  else
    local ours = true
    if ARGV[1] ~= '' then
      local fields = call('HGET', P .. ':message:' .. text(message_of(record)), 'm')
      local read, m = pcall(cjson.decode, fields or '')
      ours = read and m[6] == ARGV[1]
    end
    if ours and (ARGV[2] == '' or host_name(inbox_of(record)) == ARGV[2]) then
      local at = recall(sequence, record, S_CANCELLED) and 1 or 2
      result[at] = result[at] + 1
    end
  end
end
if ARGV[3] == '1' then
  for _, batch in ipairs(spilled_batches()) do
    local told = call('HGET', SPILLS, batch.number)
    if batch.host == ARGV[2] and not string.match(told, ' c$') then
      call('HSET', SPILLS, batch.number, told .. ' c')
      result[2] = result[2] + batch.many
    end
  end
end
flush()
if rang then ring() end
return result
