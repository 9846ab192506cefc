-- cancel: end some deliveries because the application wants them no more.
-- uses: hosts, endings
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  origin whose deliveries may be cancelled; '' for any
-- ARGV[2]  host: only deliveries to it; '' for any
-- ARGV[3...] their sequences
--
-- Result: {how many were cancelled, how many are in flight (not tried again if they fail), how many had ended
-- already, sequences that are not known}

local result = { 0, 0, 0 }
for i = 3, #ARGV do
  local sequence = ARGV[i]
  local record = call('HGET', DELIVERIES, sequence)
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
flush()
if rang then ring() end
return result
