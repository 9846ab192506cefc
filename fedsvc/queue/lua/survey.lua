-- survey: some of the hosts of a partition as they are. Changes nothing.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  cursor: 0, then what the result before began with, until that is 0 again
-- ARGV[2]  how many hosts, about
--
-- Result: {next cursor, now (ms), hosts and their packed states as a flat list, likewise why hosts are paused, likewise
-- packed policies, and with the first cursor only: what is in SQL, as spills.lua tells of it}. A host may come twice.

local PAUSED, POLICY = 1, 8
local FLAGS = 46 -- where HOST has them, see hosts.lua
local function has_flag(packed, flag) return math.floor(string.byte(packed, FLAGS) / flag) % 2 == 1 end

local cursor, found = unpack(call('HSCAN', P .. ':hosts', ARGV[1], 'COUNT', ARGV[2]))
local pauses, policies = {}, {}
local function add(list, key, name)
  local value = call('HGET', P .. key, name)
  if value then
    list[#list + 1] = name
    list[#list + 1] = value
  end
end
for i = 1, #found, 2 do
  if #found[i + 1] >= FLAGS then
    if has_flag(found[i + 1], PAUSED) then add(pauses, ':pauses', found[i]) end
    if has_flag(found[i + 1], POLICY) then add(policies, ':policies', found[i]) end
  end
end
local spills = ARGV[1] == '0' and call('HVALS', P .. ':spills') or {}
return { cursor, text(NOW_MS), found, pauses, policies, spills }
