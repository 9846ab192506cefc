-- trim: forget outcomes that the archive has committed and that are older than a time, with what is left
-- of their deliveries. Nothing that is not archived is ever forgotten.
-- uses: logged
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  how long outcomes stay, ms
-- ARGV[2]  how many, a few entries of the log more or less
-- Result: how many were forgotten; fewer if there are no more.

local AT_A_TIME = 16 -- entries, each of up to some hundred outcomes
local archived = tonumber(call('GET', P .. ':archived') or '0')
local until_us = math.min(archived, NOW_US - tonumber(ARGV[1]) * 1000)
if until_us <= 0 then return 0 end

local function forget(entry)
  local sequences, first = sequences_in(entry)
  local records, over = call('HMGET', DELIVERIES, unpack(sequences)), {}
  for i, sequence in ipairs(sequences) do
    local record = records[i]
    -- A dead letter that waits, or one that was replayed, keeps its record.
    if record and not is_record(record) and string.sub(record, 2) == struct.pack('>I8', first + i - 1) then
      over[#over + 1] = sequence
    end
  end
  if #over > 0 then call('HDEL', DELIVERIES, unpack(over)) end
  return #sequences
end

local forgotten, last = 0, nil
while forgotten < tonumber(ARGV[2]) do
  local entries = call('XRANGE', OUTCOMES, '-', text(until_us) .. '-0', 'COUNT', AT_A_TIME)
  if #entries == 0 then break end
  for _, entry in ipairs(entries) do forgotten = forgotten + forget(entry) end
  last = number_of(entries[#entries])
  call('XTRIM', OUTCOMES, 'MINID', text(last + 1) .. '-0')
end
-- Whoever follows the log from before this has to ask the archive.
if last then call('SET', P .. ':trimmed', text(last)) end
return forgotten
