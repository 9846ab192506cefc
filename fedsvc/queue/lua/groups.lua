-- Which deliveries concern the same thing: the index of a group, `group:<hash of origin and key>`, by which a
-- newer delivery finds what it must wait for or replaces; for scripts that accept. What it may replace but keeps
-- another order stands apart, in `group:<hash>:apart`: nobody waits for it.
--
-- A string: u32 length beyond which it is tidied up, then segments: first sequence u64, how many u32, for each
-- the key of its host, 8 bytes.

local GROUP_LIMIT = 4096
local APART = ':apart'

local function group_key(group) return P .. ':group:' .. group end

-- Those of an index that go to one host, in the order in which they came.
local function of_host(index, host_key)
  local found, at, hit = {}, 5, 0
  while at < #index do
    local base, n = struct.unpack('>I8I4', index, at)
    local first, last = at + 12, at + 11 + 8 * n
    if hit and hit < first then hit = string.find(index, host_key, first, true) end
    while hit and hit <= last do
      local beyond = (hit - first) % 8
      if beyond == 0 then found[#found + 1] = text(base + (hit - first) / 8) end
      hit = string.find(index, host_key, hit + (beyond == 0 and 8 or 1), true)
    end
    at = last + 1
  end
  prefetch(found)
  return found
end

local function pending(sequence)
  local record = fetch(sequence)
  if is_record(record) and string.byte(record, 1) <= S_SCHEDULED then return record end
end

-- Whether a delivery must wait for its order: behind those that wait already, or behind those of another
-- message that are on their way to its host, which are marked. `index`: that of the group `order`, if there is one.
local function must_wait(order, index, name, host_key, message)
  if not index then return false end
  if call('EXISTS', P .. ':held:' .. chain(order, name)) == 1 then return true end
  local waits = false
  for _, sequence in ipairs(of_host(index, host_key)) do
    local record = pending(sequence)
    if record and message_of(record) ~= message then
      if not has(record, FLAG_FOLLOWED) then
        store(sequence, flagged(record, FLAG_FOLLOWED))
        call('HINCRBY', FOLLOWED, chain(order, name), 1)
      end
      waits = true
    end
  end
  return waits
end

-- The index without what has ended.
local function tidied(index)
  local parts, at = {}, 5
  while at < #index do
    local base, n = struct.unpack('>I8I4', index, at)
    at = at + 12
    local run, from = {}, 0
    for i = 0, n do
      local record = i < n and fetch(text(base + i))
      if is_record(record) and string.byte(record, 1) <= S_SCHEDULED then
        if #run == 0 then from = base + i end
        run[#run + 1] = string.sub(index, at + 8 * i, at + 8 * i + 7)
      elseif #run > 0 then
        parts[#parts + 1] = struct.pack('>I8I4', from, #run) .. table.concat(run)
        run = {}
      end
    end
    at = at + 8 * n
  end
  local rest = table.concat(parts)
  return struct.pack('>I4', math.max(GROUP_LIMIT, 2 * #rest)) .. rest
end

-- Add deliveries with consecutive sequences; kept for so many ms at least.
local function join(group, index, base, host_keys, keep)
  local segment = struct.pack('>I8I4', base, #host_keys) .. table.concat(host_keys)
  local key = group_key(group)
  if not index then
    call('SET', key, struct.pack('>I4', math.max(GROUP_LIMIT, 2 * #segment)) .. segment)
  elseif #index > struct.unpack('>I4', index) then
    call('SET', key, tidied(index) .. segment, 'KEEPTTL')
  else
    extend(key, index, segment)
  end
  if call('PTTL', key) < keep then call('PEXPIRE', key, text(keep)) end
end
