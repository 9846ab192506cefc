-- follow: read the log of outcomes and events from a place on.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  number past which to read; -1 to learn only where the log ends now
-- ARGV[2]  how many at most
-- Result: {number up to which the log is only in SQL (0: all is here), number of its last entry, entries}.

local trimmed = call('GET', P .. ':trimmed') or '0'
local last = call('XREVRANGE', OUTCOMES, '+', '-', 'COUNT', 1)[1]
last = last and string.match(last[1], '^(%d+)-') or trimmed
if ARGV[1] == '-1' then return { trimmed, last, {} } end
if tonumber(trimmed) > tonumber(ARGV[1]) then return { trimmed, last, {} } end
return { '0', last, call('XRANGE', OUTCOMES, '(' .. ARGV[1] .. '-0', '+', 'COUNT', ARGV[2]) }
