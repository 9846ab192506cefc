-- The state of destination hosts, for scripts that admit, settle or steer. Loaded once a script, saved by
-- save_hosts(), which also says when each host's lane is to be looked at again.
--
-- A host is packed in the hash `hosts`; one that is not there has never been tried. It begins with a 1 if it is calm,
-- and what is needed of one that is: see calm.lua. `terms` are the limits that all hosts share, as hosts.py packs them.

local HOSTS, POLICIES, WAKE = P .. ':hosts', P .. ':policies', P .. ':wake'
-- Of each host the attempts that failed last, newest first: sequence u64, then 9 bytes as in a record.
local RECENT, RECENT_SIZE, RECENT_MOST = P .. ':recent', 17, 16
local HOST = '<BI2fffddBfdBBBI2I2I4I4I4dddddddd'
local HOST_SIZE = 1 * 5 + 2 * 3 + 4 * 3 + 4 * 4 + 8 * 11
local LANE = { 'lane1', 'lane2', 'lane3' }
local CLOSED, OPEN, HALF_OPEN = 0, 1, 2
local H_PAUSED, H_GONE, H_DOWN, H_POLICY = 1, 2, 4, 8
local NEVER = math.huge
-- How answers bear on a host, bits of a signal: it answered, it failed, it asked us to slow down, it took what
-- we sent, its inbox is gone, it does not take a key's signatures, its name does not exist.
local ANSWERED, FAILED, SLOWED, TOOK, GONE_INBOX, KEY_REJECTED, NO_NAME = 1, 2, 4, 8, 16, 32, 64
-- Once a second at most is a limit cut down, for what is in flight fails together.
local CUT_EVERY_MS = 1000

local function has_bit(signal, bit) return signal % (2 * bit) >= bit end

local terms = {}
local function read_terms(packed)
  terms.limit, terms.start, terms.failures, terms.window, terms.rate, terms.burst, terms.first, terms.longest,
    terms.down_after, terms.ramp_rate, terms.ramp_ms, terms.longest_pause, terms.dialect_ms, terms.grace =
    struct.unpack('>I2I2I2I2dddddddddd', packed)
end

local hosts, woken = {}, 0

local function lanes(h) return h.lane1 + h.lane2 + h.lane3 end
-- Those of them that wait because the host is down.
local function shut(h) return h.circuit ~= CLOSED and lanes(h) or 0 end

-- Load several at once; false stands for none.
local loaded = {}
-- Names of those whose state in `loaded` is newer than Redis's, as keys: see calm.lua.
local calm = {}
local function load_hosts(names)
  for from = 1, #names, MANY do
    local to = math.min(#names, from + MANY - 1)
    local found = call('HMGET', HOSTS, unpack(names, from, to))
    for i = from, to do loaded[names[i]] = found[i - from + 1] end
  end
end
local function prefetch_hosts(names)
  local missing = {}
  for i = 1, #names do
    local name = names[i]
    if loaded[name] == nil and not hosts[name] then
      loaded[name] = false
      missing[#missing + 1] = name
    end
  end
  load_hosts(missing)
end

-- Hosts of these deliveries, in order, all of them loaded, as their records are; false for what is no delivery.
local function hosts_of(sequences)
  local names, missing = {}, {}
  prefetch(sequences)
  for i = 1, #sequences do
    local record, name = records[sequences[i]], false
    if record and #record >= LEAST then
      name = host_at(record, HOST_AT)
      if loaded[name] == nil and not hosts[name] then
        loaded[name] = false
        missing[#missing + 1] = name
      end
    end
    names[i] = name
  end
  load_hosts(missing)
  return names
end

-- State of one that is not known yet: few at a time until it has answered, for a host that hangs must not hold more.
local fresh
local function new_host()
  fresh = fresh or struct.pack(HOST, 1, 0, terms.start, 0, 0, 0, 0, 0, terms.burst, NOW_MS, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0)
  return fresh
end

local function host(name)
  local h = hosts[name]
  if h then return h end
  local packed = loaded[name]
  if packed == nil then packed = call('HGET', HOSTS, name) end
  local broken = packed and #packed ~= HOST_SIZE
  if broken or not packed then packed = new_host() end
  local _, flying, limit, latency, usual, success, cut, dialect, tokens, filled, circuit, flags, turn, failures, opens,
    lane1, lane2, lane3, pause, probe, since, failure, recovered, barrier, spoke, gone = struct.unpack(HOST, packed)
  -- All at once: a table that grows field by field costs as much as all else that is done for a host.
  h = {
    name = name, changed = calm[name] or false, max = terms.limit, rate = terms.rate, burst = terms.burst,
    circuit = circuit, flags = flags, turn = turn, flying = flying, failures = failures, opens = opens,
    lane1 = lane1, lane2 = lane2, lane3 = lane3, limit = limit, latency = latency, usual = usual, tokens = tokens,
    filled = filled, pause = pause, probe = probe, since = since, success = success, failure = failure,
    recovered = recovered, cut = cut, barrier = barrier, dialect = dialect, spoke = spoke, gone = gone,
    awake = lane1 + lane2 + lane3 > 0, shut = 0,
  }
  if flags % (2 * H_POLICY) >= H_POLICY then
    local policy = call('HGET', POLICIES, name)
    if policy then
      local max, rate, burst = struct.unpack('>I2dd', policy)
      if max > 0 then h.max = max end
      if rate > 0 then h.rate = rate end
      if burst > 0 then h.burst = burst end
    end
  end
  h.shut = shut(h)
  if broken then -- what waits for it waits all the same
    for priority, lane in ipairs(LANE) do h[lane] = call('LLEN', P .. ':lane:' .. priority .. ':' .. name) end
    h.changed = true
  end
  hosts[name], calm[name] = h, nil
  return h
end

local function h_has(h, flag) return h.flags % (2 * flag) >= flag end
local function h_set(h, flag, on)
  if h_has(h, flag) ~= on then h.flags = h.flags + (on and flag or -flag) end
end

-- How it wants to be signed to, a Dialect of knock.py; 0 if nothing is remembered.
local function dialect_of(h)
  return h.dialect > 0 and math.abs(NOW_MS - h.spoke) < terms.dialect_ms and h.dialect or 0
end

local function lane_key(h, priority) return P .. ':lane:' .. priority .. ':' .. h.name end

-- Deliveries per second that it gets now: less while it recovers.
local function rate_now(h)
  if h.recovered > 0 then
    -- By a clock that was set back, it would get next to nothing until that time comes again.
    h.recovered = math.min(h.recovered, NOW_MS)
    local rate = terms.ramp_rate * 2 ^ math.min(60, (NOW_MS - h.recovered) / terms.ramp_ms)
    if rate < (h.rate > 0 and h.rate or 1000) then return rate, math.max(1, rate / 5) end
    h.recovered = 0
  end
  return h.rate, h.burst
end

-- How many deliveries it can take now; if none, when (ms) to ask again, NEVER if something in flight will tell.
-- `spare`: how many beyond what it has shown to take well, within its maximum.
local function room(h, spare)
  if h.pause > NOW_MS then return 0, h.pause end
  h.pause = 0
  if h_has(h, H_PAUSED) then
    h_set(h, H_PAUSED, false)
    h.changed = true
  end
  if h.circuit == OPEN then
    -- A clock that was set back must not put the probe off for longer than an interval.
    if h.probe > NOW_MS + terms.longest * 2 then h.probe, h.changed = NOW_MS + terms.longest, true end
    if h.probe > NOW_MS then return 0, h.probe end
    if h.flying > 0 then return 0, NEVER end
    return 1
  end
  if h.circuit == HALF_OPEN then return 0, NEVER end
  local free = math.min(h.max, math.floor(h.limit + 0.001) + (spare or 0)) - h.flying
  if free <= 0 then return 0, NEVER end
  local rate, burst = rate_now(h)
  if rate <= 0 then return free end
  if NOW_MS ~= h.filled then
    h.tokens = math.min(burst, math.max(0, h.tokens) + rate * math.max(0, NOW_MS - h.filled) / 1000)
    h.filled, h.changed = NOW_MS, true
  end
  if h.tokens < 0.999 then return 0, NOW_MS + math.ceil((1 - h.tokens) * 1000 / rate) end
  return math.min(free, math.floor(h.tokens + 0.001))
end

-- One delivery is on its way to it.
local function depart(h)
  -- One without a limit to its rate owes nothing, should it get one.
  h.flying, h.tokens, h.changed = h.flying + 1, math.max(0, h.tokens - 1), true
  if h.circuit == OPEN then
    h.circuit = HALF_OPEN
  end
end

-- Those at the end of a lane are appended together, before anybody looks at it.
local parking = {}
local function append_parked()
  for key, list in pairs(parking) do
    in_parts('RPUSH', key, list)
    parking[key] = nil
  end
end

-- A delivery waits in its lane, at the front if it was on its way before.
local function park(h, sequence, record, front)
  local priority = priority_of(record)
  store(sequence, moved(record, S_PARKED, IN_LANE))
  local key = lane_key(h, priority)
  if front then
    call('LPUSH', key, sequence)
  else
    local list = parking[key]
    if not list then
      list = {}
      parking[key] = list
    end
    list[#list + 1] = sequence
  end
  h[LANE[priority]] = h[LANE[priority]] + 1
  h.changed = true
  count('parked', 1)
  if has(record, FLAG_EXPIRES) then call('ZADD', P .. ':expiry', text(deadline_ms(record)), sequence) end
end

-- Something happened to a host that whoever watches should know.
local function tell(event, name, detail)
  append_outcome(allocate(1), '0', '0',
    cjson.encode({ event = event, host = name, time = text(NOW_MS), detail = detail or '' }))
  count('outcomes', 1)
end

local function cut(h, factor)
  if NOW_MS - h.cut >= CUT_EVERY_MS or NOW_MS < h.cut then
    h.limit, h.cut = math.max(1, h.limit * factor), NOW_MS
  end
end

-- Circuits that have opened or closed: host, and which.
local circuits = {}
local function note_circuit(h, what)
  circuits[#circuits + 1] = h.name
  circuits[#circuits + 1] = what
end

local function open(h)
  if h.circuit == CLOSED then
    count('open', 1)
    note_circuit(h, 'opened')
  end
  h.circuit = OPEN
  local wait = math.min(terms.longest, terms.first * 2 ^ math.min(h.opens, 30))
  -- Up to a tenth sooner, so that hosts that went down together are not probed together.
  h.probe = NOW_MS + math.floor(wait * (1 - (NOW_US % 1000) / 10000))
end

-- What an attempt tells of its host. The delivery that made it has landed.
local function landed(h, signal, latency, pause)
  local answered, failed = has_bit(signal, ANSWERED), has_bit(signal, FAILED)
  h.changed = true
  if h.flying > 0 then h.flying = h.flying - 1 end
  if answered then
    h.failures, h.since, h.success = 0, 0, NOW_MS
    if h.circuit ~= CLOSED then
      count('open', -1)
      note_circuit(h, 'closed')
      h.circuit, h.opens, h.recovered, h.limit, h.cut = CLOSED, 0, NOW_MS, 1, 0
      h.tokens, h.filled = 1, NOW_MS
    end
    local back = h_has(h, H_DOWN)
    h_set(h, H_DOWN, false)
    if has_bit(signal, TOOK) then
      back = back or h_has(h, H_GONE)
      h_set(h, H_GONE, false)
      h.gone = 0
    end
    if back then tell('HOST_UP', h.name) end
    h.latency = h.latency == 0 and latency or h.latency + (latency - h.latency) / 5
    h.usual = h.usual == 0 and latency or h.usual + (latency - h.usual) / (latency < h.usual and 10 or 100)
    if has_bit(signal, SLOWED) then
      cut(h, 0.5)
    elseif h.latency > 2 * h.usual + 200 then
      cut(h, 0.75)
    else
      -- Quickly up to where it was cut down first, then one more for each round of all that are on their way.
      h.limit = math.min(h.max, h.limit + (h.cut == 0 and 1 or 1 / h.limit))
    end
  elseif failed then
    h.failures, h.failure = math.min(h.failures + 1, 65535), NOW_MS
    if h.since == 0 then h.since = NOW_MS end
    cut(h, 0.5)
    if h.circuit == HALF_OPEN then
      h.opens = math.min(h.opens + 1, 65535)
      open(h)
    elseif h.circuit == CLOSED and h.failures >= terms.failures then
      h.opens = 0
      open(h)
    end
    local patience = has_bit(signal, NO_NAME) and terms.grace or terms.down_after
    if NOW_MS - h.since >= patience and not h_has(h, H_DOWN) then
      h_set(h, H_DOWN, true)
      tell('HOST_DOWN', h.name)
    end
  elseif h.circuit == HALF_OPEN and h.flying == 0 then
    h.circuit, h.probe = OPEN, NOW_MS -- its probe was not tried at all: the next one is
  end
  if pause > 0 then h.pause = math.max(h.pause, NOW_MS + math.min(pause, terms.longest_pause)) end
end

-- Its shared inbox says that it is gone. That is no reason to give the host up at once: only when it has said
-- so for long, and no inbox there has taken anything meanwhile.
local function shared_inbox_gone(h)
  if h.gone == 0 then h.gone = NOW_MS end
  if NOW_MS - h.gone >= terms.down_after and not h_has(h, H_GONE) then
    h_set(h, H_GONE, true)
    tell('HOST_DOWN', h.name)
  end
  h.changed = true
end

-- Whether older deliveries than this one of its lane are in SQL, and must come back before it goes.
-- (Urgent ones never go there.)
local function spilled_first(h, lane, sequence)
  return lane > 1 and h.barrier > 0 and tonumber(sequence) > h.barrier
end
local function all_behind_spilled(h)
  if h.barrier == 0 or h.lane1 > 0 then return false end
  for lane = 2, 3 do
    local sequence = call('LINDEX', lane_key(h, lane), 0)
    if sequence and not spilled_first(h, lane, sequence) then return false end
  end
  return true
end

-- Deadline (ms) of the oldest that waits in a lane.
local function lane_deadline(h)
  local first = NEVER
  for priority = 1, 3 do
    if h[LANE[priority]] > 0 then
      local sequence = call('LINDEX', lane_key(h, priority), 0)
      local record = sequence and fetch(sequence)
      if is_record(record) then first = math.min(first, deadline_ms(record)) else first = NOW_MS end
    end
  end
  return first
end

local function save_hosts()
  append_parked()
  local batch, n, wake, asleep = {}, 0, {}, {}
  for name, h in pairs(hosts) do
    if h.changed then
      if lanes(h) > 0 then
        local free, at = room(h)
        if free > 0 and h.circuit == CLOSED and all_behind_spilled(h) then free, at = 0, NEVER end
        if free > 0 then
          woken = woken + 1
          at = h.lane1 > 0 and 0 or NOW_MS
        elseif at > NOW_MS + 1000 then
          at = math.max(NOW_MS + 1, math.min(at, lane_deadline(h)))
        end
        if at == NEVER then
          asleep[#asleep + 1] = name
        else
          wake[#wake + 1] = text(math.ceil(at))
          wake[#wake + 1] = name
        end
        h.awake = true
      elseif h.awake then
        asleep[#asleep + 1] = name
      end
      batch[n + 1] = name
      local other = h.circuit + h.flags + h.failures + h.opens + lanes(h) + h.pause + h.since + h.recovered + h.barrier
        + h.gone
      batch[n + 2] = struct.pack(HOST, other == 0 and 1 or 0, h.flying, h.limit, h.latency, h.usual,
        h.success, h.cut, h.dialect, h.tokens, h.filled, h.circuit, h.flags, h.turn, h.failures, h.opens, h.lane1, h.lane2,
        h.lane3, h.pause, h.probe, h.since, h.failure, h.recovered, h.barrier, h.spoke, h.gone)
      n = n + 2
      if shut(h) ~= h.shut then
        count('shut', shut(h) - h.shut)
        h.shut = shut(h)
      end
      h.changed = false
    end
  end
  for name in pairs(calm) do batch[n + 1], batch[n + 2], n = name, loaded[name], n + 2 end
  in_parts('HSET', HOSTS, batch)
  in_parts('ZADD', WAKE, wake)
  in_parts('ZREM', WAKE, asleep)
end
