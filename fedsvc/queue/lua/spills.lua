-- What went from lanes to SQL, for scripts that send it there or bring it back.
--
-- The hash `spills` names each batch, by a number that is never used again: host, lane, sequence of its first
-- delivery, how many, the first of their deadlines (ms), and `c` if all of them were cancelled, separated by
-- spaces.

local SPILLS = P .. ':spills'

local function spilled_batches()
  local batches, all = {}, call('HGETALL', SPILLS)
  for i = 1, #all, 2 do
    local name, lane, first, many, deadline = string.match(all[i + 1], '^(%S+) (%d) (%d+) (%d+) (%d+)')
    if name then
      batches[#batches + 1] = {
        number = all[i], host = name, lane = tonumber(lane), first = tonumber(first), many = tonumber(many),
        deadline = tonumber(deadline), cancelled = string.match(all[i + 1], ' c$') ~= nil,
      }
    end
  end
  return batches
end

-- Nothing newer goes to the host before what it is oldest of has come back.
local function set_barrier(h)
  h.barrier, h.changed = 0, true
  for _, batch in ipairs(spilled_batches()) do
    if batch.host == h.name and (h.barrier == 0 or batch.first < h.barrier) then h.barrier = batch.first end
  end
end
