-- archived: SQL has committed all outcomes up to a number.
-- uses: logged
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  the number
-- ARGV[2]  the number past which they were read
-- ARGV[3]  how many were read
-- Result: 1, or 0 if that was known already.

local before = tonumber(call('GET', P .. ':archived') or '0')
if tonumber(ARGV[1]) <= before then return 0 end
call('SET', P .. ':archived', ARGV[1])
local new = tonumber(ARGV[3])
local last = ARGV[1] .. '-0'
if before ~= tonumber(ARGV[2]) or #call('XRANGE', OUTCOMES, last, last) == 0 then
  -- Another archiver has committed a part of them meanwhile, or Redis has lost some: only the rest is new.
  new = 0
  for _, entry in ipairs(call('XRANGE', OUTCOMES, '(' .. text(before) .. '-0', last)) do
    new = new + outcomes_in(entry)
  end
end
count('archived', new)
flush()
return 1
