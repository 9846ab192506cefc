-- follow: read the log of outcomes and events from a place on.
-- uses: logged
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  number past which to read; -1 to learn only where the log ends now
-- ARGV[2]  how many outcomes; the last entry may have more
-- Result: {number up to which the log is only in SQL (0: all is here), number of its last entry, entries}.

local trimmed = call('GET', P .. ':trimmed') or '0'
local last = call('XREVRANGE', OUTCOMES, '+', '-', 'COUNT', 1)[1]
last = last and string.match(last[1], '^(%d+)-') or trimmed
if ARGV[1] == '-1' then return { trimmed, last, {} } end
if tonumber(trimmed) > tonumber(ARGV[1]) then return { trimmed, last, {} } end

-- No entry more than it takes: whoever asked holds all that is in them. Where one had several outcomes the next is
-- read alone.
local entries, found, from, at_a_time = {}, 0, ARGV[1] .. '-0', 1
while found < tonumber(ARGV[2]) do
  local some = call('XRANGE', OUTCOMES, '(' .. from, '+', 'COUNT', at_a_time)
  if #some == 0 then break end
  for _, entry in ipairs(some) do
    local many = outcomes_in(entry)
    entries[#entries + 1], from = entry, entry[1]
    found, at_a_time = found + many, many > 1 and 1 or 16
    if found >= tonumber(ARGV[2]) then break end
  end
end
return { '0', last, entries }
