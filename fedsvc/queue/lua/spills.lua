-- What went from lanes to SQL, for scripts that send it there or bring it back.
--
-- The hash `spills` names each batch, by a number that is never used again: host, lane, sequence of its first
-- delivery, how many, the first of their deadlines (ms), how many of each origin as `<origin>=<n>,...`, how many of
-- its messages need each registered key, likewise by the key's name, and the origins whose deliveries were cancelled,
-- each after a comma; separated by spaces.

local SPILLS = P .. ':spills'
-- Batches that SQL may still have, and that Redis needs no more: they came back, or never left.
local SPENT = P .. ':spent'
-- Stands for the first sequence of a batch that SQL does not have: nothing is newer.
local NEWEST = 9007199254740991

-- What stays here of a delivery that is in SQL: see prelude.lua.
local function stub_of(record, origin, inbox_key, batch)
  return string.sub(moved(record, S_PARKED, SPILLED), 1, 26) .. struct.pack('>I2BB', #origin, 0, 0) .. origin
    .. inbox_key .. struct.pack('>I8', tonumber(batch)) .. '\1'
end
local function is_stub(record)
  return is_record(record) and string.byte(record, 1) == S_PARKED and place_of(record) == SPILLED
end
-- The batch that a stub is of, as text.
local function batch_of(stub) return text((struct.unpack('>I8', stub, #stub - 8))) end

local function listed(numbers)
  local list = {}
  for name, n in pairs(numbers) do list[#list + 1] = name .. '=' .. text(n) end
  return table.concat(list, ',')
end
local function told_of(batch)
  local dropped = ''
  for origin in pairs(batch.dropped) do dropped = dropped .. ',' .. origin end
  return table.concat({
    batch.host, batch.lane, text(batch.first), text(batch.many), text(batch.deadline), listed(batch.shares),
    listed(batch.keys), dropped,
  }, ' ')
end

local function read_batch(number, told)
  local name, lane, first, many, deadline, shares, keys, dropped =
    string.match(told, '^(%S+) (%d) (%d+) (%d+) (%d+) (%S*) (%S*) (%S*)$')
  if not name then return nil end
  local batch = {
    number = number, host = name, lane = tonumber(lane), first = tonumber(first), many = tonumber(many),
    deadline = tonumber(deadline), told = told, shares = {}, keys = {}, dropped = {}, cancelled = true,
  }
  for key, n in string.gmatch(keys, '([^=,]+)=(%d+)') do batch.keys[key] = tonumber(n) end
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

-- A delivery leaves a batch that SQL does not have, and the last one takes it along. The caller sees to the barrier.
local function leave_batch(batch, origin)
  batch.many, batch.changed = batch.many - 1, true
  batch.shares[origin] = (batch.shares[origin] or 1) - 1
  if batch.shares[origin] == 0 then batch.shares[origin], batch.dropped[origin] = nil, nil end
end
local function save_batch(batch)
  if batch.many > 0 then
    call('HSET', SPILLS, batch.number, told_of(batch))
  else
    call('HDEL', SPILLS, batch.number)
    for name, n in pairs(batch.keys) do use_key(name, -n) end
  end
end
