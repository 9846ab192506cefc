-- The short way for a calm host, for scripts that hand out or settle many deliveries: its circuit is closed, it
-- does not fail, nothing waits for it or is in SQL, nobody has paused it or given it limits of its own, and it does
-- not recover. Most hosts are calm most of the time. The state of one is read and written here as the bytes that
-- it is: to make a table of it, and pack that again, is a third of what a delivery costs Redis. All that is done is what
-- room, depart and landed do (hosts.lua), for this case alone; tests/integration/test_calm_hosts.py compares.

-- The beginning of HOST as those who hand out read it: 1 (it is calm), in flight, limit, more, dialect, tokens, filled,
-- and all the rest as it is; and as those who settle do: 1, in flight, limit, latency, usual latency, success, cut, and
-- the rest. Then where it says when the host took something, and when the dialect was learnt. Each number that is
-- unpacked and packed again costs more than bytes that stay as they are, however many.
local pack, unpacked = struct.pack, struct.unpack -- looked up once, used for each delivery
local DEPARTS, LANDS, SUCCESS, SPOKE = '<BI2fc24Bfdc83', '<BI2fffddc96', 16, 112

-- How many deliveries it can take now: nil if it is not calm. `spare`: whether one more than it has shown to take
-- well, if it has ever taken any. If `departs`, one that it can take is on its way, and the second result says how it
-- wants to be signed to.
local function calm_room(name, spare, departs)
  local packed = loaded[name]
  if packed == nil or hosts[name] then return nil end
  if not packed then packed = new_host() end
  if #packed ~= HOST_SIZE then return nil end
  local is_calm, flying, limit, more, dialect, tokens, filled, rest = unpacked(DEPARTS, packed)
  if is_calm ~= 1 then return nil end
  local most = limit + 0.001
  if spare and unpacked('<d', packed, SUCCESS) > 0 then most = most + 1 end
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
    loaded[name] = pack(DEPARTS, 1, flying + 1, limit, more, dialect, tokens, filled, rest)
    calm[name] = true
    if dialect > 0 and math.abs(NOW_MS - unpacked('<d', packed, SPOKE)) >= terms.dialect_ms then dialect = 0 end
  end
  return free, dialect
end

-- It has taken a delivery. False if it is not calm, or has become slow.
local function calm_landed(name, latency)
  local packed = loaded[name]
  if packed == nil or hosts[name] then return false end
  if not packed then packed = new_host() end
  if #packed ~= HOST_SIZE then return false end
  local is_calm, flying, limit, known, usual, _, cut_at, rest = unpacked(LANDS, packed)
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
  loaded[name] = pack(LANDS, 1, flying, limit, known, usual, NOW_MS, cut_at, rest)
  calm[name] = true
  return true
end
