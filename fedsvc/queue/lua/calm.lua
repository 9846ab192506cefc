-- The short way for a calm host, for scripts that hand out or settle many deliveries: its circuit is closed, it
-- does not fail, nothing waits for it or is in SQL, nobody has paused it or given it limits of its own, and it does
-- not recover. Most hosts are calm most of the time. The state of one is read and written here as the bytes that
-- it is: to make a table of it, and pack that again, is a third of what a delivery costs Redis. All that is done is what
-- room, depart and landed do (hosts.lua), for this case alone; tests/integration/test_calm_hosts.py compares.

-- The beginning of HOST: 1 (it is calm), in flight, dialect, limit, latency, usual latency, tokens, filled, success,
-- cut; and where it says when the dialect was learnt.
local pack, unpacked, sub = struct.pack, struct.unpack, string.sub -- looked up once, used for each delivery
local FRONT, FRONT_SIZE, SPOKE = '>BI2Bffffddd', 44, 112

local function state_of(name)
  local packed = loaded[name]
  if packed == nil or hosts[name] then return nil end
  packed = packed or new_host()
  return #packed == HOST_SIZE and packed or nil
end

-- How many deliveries it can take now: nil if it is not calm. `spare`: whether one more than it has shown to take
-- well, if it has ever taken any. If `departs`, one that it can take is on its way, and the second result says how it
-- wants to be signed to.
local function calm_room(name, spare, departs)
  local packed = state_of(name)
  if not packed then return nil end
  local is_calm, flying, dialect, limit, latency, usual, tokens, filled, success, cut_at = unpacked(FRONT, packed)
  if is_calm ~= 1 then return nil end
  local most = limit + 0.001
  if spare and success > 0 then most = most + 1 end
  if most > terms.limit then most = terms.limit end
  local free = most - most % 1 - flying
  if free <= 0 then return 0 end
  local rate = terms.rate
  if rate > 0 then
    if NOW_MS ~= filled then
      if tokens < 0 then tokens = 0 end
      if NOW_MS > filled then tokens = tokens + rate * (NOW_MS - filled) / 1000 end
      if tokens > terms.burst then tokens = terms.burst end
      filled = NOW_MS
    end
    if tokens < 0.999 then return 0 end
    local paid = tokens + 0.001
    paid = paid - paid % 1
    if paid < free then free = paid end
  end
  if departs then
    tokens = tokens > 1 and tokens - 1 or 0
    loaded[name] = pack(FRONT, 1, flying + 1, dialect, limit, latency, usual, tokens, filled, success, cut_at)
      .. sub(packed, FRONT_SIZE + 1)
    calm[name] = true
    if dialect > 0 and math.abs(NOW_MS - struct.unpack('>d', packed, SPOKE)) >= terms.dialect_ms then dialect = 0 end
  end
  return free, dialect
end

-- It has taken a delivery. False if it is not calm, or has become slow.
local function calm_landed(name, latency)
  local packed = state_of(name)
  if not packed then return false end
  local is_calm, flying, dialect, limit, known, usual, tokens, filled, _, cut_at = unpacked(FRONT, packed)
  if is_calm ~= 1 then return false end
  if known == 0 then known = latency else known = known + (latency - known) / 5 end
  if usual == 0 then
    usual = latency
  else
    usual = usual + (latency - usual) / (latency < usual and 10 or 100)
  end
  if known > 2 * usual + 200 then return false end
  limit = limit + (cut_at == 0 and 1 or 1 / limit)
  if limit > terms.limit then limit = terms.limit end
  if flying > 0 then flying = flying - 1 end
  loaded[name] = pack(FRONT, 1, flying, dialect, limit, known, usual, tokens, filled, NOW_MS, cut_at)
    .. sub(packed, FRONT_SIZE + 1)
  calm[name] = true
  return true
end
