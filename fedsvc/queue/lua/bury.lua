-- bury: dead letters that are older than a time go for good.
-- uses: hosts, endings
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  how long dead letters stay, ms
-- ARGV[2]  how many at most
--
-- Result: how many went.

local R_PURGED = 38
local until_us = NOW_US - tonumber(ARGV[1]) * 1000
if until_us <= 0 then return 0 end
local entries = call('XRANGE', DEAD, '-', text(until_us) .. '-0', 'COUNT', ARGV[2])
for _, entry in ipairs(entries) do
  local sequence = entry[2][2]
  local record = fetch(sequence)
  call('XDEL', DEAD, entry[1])
  if is_record(record) and string.byte(record, 1) == S_DEAD and text(place_of(record)) .. '-0' == entry[1] then
    count('dead', -1)
    conclude(sequence, record, S_PURGED, payload_of(sequence, record, R_PURGED))
  end
end
flush()
return #entries
