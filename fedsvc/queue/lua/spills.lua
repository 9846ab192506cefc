-- What went from lanes to SQL, for scripts that send it there or bring it back.
--
-- The hash `spills` names each batch, by a number that is never used again: host, lane, sequence of its first
-- delivery, how many, the first of their deadlines (ms), how many of each origin as `<origin>=<n>,...`, and the
-- origins whose deliveries were cancelled, each after a comma; separated by spaces.

local SPILLS = P .. ':spills'
-- Batches that SQL may still have, and that Redis needs no more: they came back, or never left.
local SPENT = P .. ':spent'
-- Stands for the first sequence of a batch that SQL does not have: nothing is newer.
local NEWEST = 9007199254740991

-- What stays here of a delivery that is in SQL: see prelude.lua.
local function stub_of(record, origin, inbox_key)
  return string.sub(moved(record, S_PARKED, SPILLED), 1, 26) .. struct.pack('>I2BB', #origin, 0, 0) .. origin
    .. inbox_key .. '\1'
end

local function read_batch(number, told)
  local name, lane, first, many, deadline, shares, dropped =
    string.match(told, '^(%S+) (%d) (%d+) (%d+) (%d+) (%S*) (%S*)$')
  if not name then return nil end
  local batch = {
    number = number, host = name, lane = tonumber(lane), first = tonumber(first), many = tonumber(many),
    deadline = tonumber(deadline), told = told, shares = {}, dropped = {}, cancelled = true,
  }
  for origin in string.gmatch(dropped, '[^,]+') do batch.dropped[origin] = true end
  for origin, n in string.gmatch(shares, '([^=,]+)=(%d+)') do
    batch.shares[origin] = tonumber(n)
    -- All of it, if all of its origins are.
    batch.cancelled = batch.cancelled and batch.dropped[origin] ~= nil
  end
  return batch
end

local function spilled_batches()
  local batches, all = {}, call('HGETALL', SPILLS)
  for i = 1, #all, 2 do batches[#batches + 1] = read_batch(all[i], all[i + 1]) end
  return batches
end

-- Nothing newer goes to the host before what it is oldest of has come back.
local function set_barrier(h)
  h.barrier, h.changed = 0, true
  for _, batch in ipairs(spilled_batches()) do
    if batch.host == h.name and (h.barrier == 0 or batch.first < h.barrier) then h.barrier = batch.first end
  end
end
