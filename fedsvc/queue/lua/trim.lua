-- trim: forget outcomes that the archive has committed and that are older than a time, with what is left
-- of their deliveries. Nothing that is not archived is ever forgotten.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  how long outcomes stay, ms
-- ARGV[2]  how many at most
-- Result: how many were forgotten.

local archived = tonumber(call('GET', P .. ':archived') or '0')
local until_us = math.min(archived, NOW_US - tonumber(ARGV[1]) * 1000)
if until_us <= 0 then return 0 end
local entries = call('XRANGE', OUTCOMES, '-', text(until_us) .. '-0', 'COUNT', ARGV[2])
for _, entry in ipairs(entries) do
  local sequence = entry[2][2]
  local record = call('HGET', DELIVERIES, sequence)
  -- A dead letter that waits, or one that was replayed, keeps its record.
  local number = tonumber(string.match(entry[1], '^(%d+)-'))
  if record and not is_record(record) and string.sub(record, 2) == struct.pack('>I8', number) then
    call('HDEL', DELIVERIES, sequence)
  end
end
if #entries > 0 then
  local last = string.match(entries[#entries][1], '^(%d+)-')
  -- Whoever follows the log from before this has to ask the archive.
  call('SET', P .. ':trimmed', last)
  call('XTRIM', OUTCOMES, 'MINID', text(tonumber(last) + 1) .. '-0')
end
return #entries
