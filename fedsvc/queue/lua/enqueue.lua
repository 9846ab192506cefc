-- enqueue: accept one message for some inboxes of this partition, all or none.
-- uses: hosts, endings, groups, lines
-- seldom: supersede, undo, must_wait, conclude, payload_of, line_up, forget_message, join, use_key
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed numbers: priority u8, type u8, flags of the records u8, rule u8 (what it supersedes: see
--          below), not before u64 (ms; 0 for now), expires at u32 (s; 0 for never), how long to remember the
--          request id u64 (ms), how long to keep the indexes u64 (ms), within which time the same activity to
--          the same inbox is a duplicate u64 (us; 0 for never), how long a delivery lives at most, from its
--          acceptance or from `not before` u32 (s), up to how many that no worker has a ready stream is filled
--          directly u16
-- ARGV[2]  key of the activity id, hex
-- ARGV[3]  identity of the message, 16 bytes
-- ARGV[4]  packed fields of the message
-- ARGV[5]  body
-- ARGV[6]  request id; '' for none
-- ARGV[7]  fingerprint of the request, 8 bytes
-- ARGV[8]  group whose order it keeps, hex; '' for none
-- ARGV[9]  group in which it is superseded or supersedes, hex; '' for none
-- ARGV[10] for the rule UNDO: key of the undone activity's id, hex, else ''
-- ARGV[11] origin
-- ARGV[12] name of the registered key that the message needs; '' if the call brought its own
-- ARGV[13] key of the origin, 8 bytes
-- ARGV[14...] triples: inbox, as of the two bytes of a record that say where its host is; its key (8 bytes), key of its
--          host (8 bytes)
--
-- Rules: 0 none; 1 an explicit key: every unsent delivery of the group with an explicit key, to the same inbox;
-- 2 Update: unsent Updates; 3 Delete: unsent Creates and Updates; 4 Undo: the undone activity, and if that was
-- never tried, the Undo itself. What is for later takes nothing back by rules 2 to 4 that may be sent before.
--
-- Result: {first sequence of those accepted, index of a duplicate, its sequence, ...}: inboxes that
-- are no duplicates have consecutive sequences, in order. Indexes are 0-based.
-- Error REUSED: the request id belongs to another call.

local FIRST, STEP = 14, 3
local inboxes = (#ARGV - FIRST + 1) / STEP
local priority, type_code, flags, rule, not_before, expire, request_ttl, index_ttl, window, lifetime,
  short = struct.unpack('>BBBBI8I4I8I8I8I4I2', ARGV[1])
local request = ARGV[6]
local request_key = P .. ':request:' .. request
local CREATE, UPDATE = 1, 2
local EXPLICIT, BY_UPDATE, BY_DELETE, BY_UNDO = 1, 2, 3, 4

if request ~= '' then
  local answer = call('GET', request_key)
  if answer then
    if string.sub(answer, 1, 8) ~= ARGV[7] then return redis.error_reply('REUSED request id') end
    local result, at = {}, 17
    result[1] = text(struct.unpack('>I8', answer, 9))
    while at < #answer do
      local index, sequence = struct.unpack('>I4I8', answer, at)
      result[#result + 1] = index
      result[#result + 1] = text(sequence)
      at = at + 12
    end
    return result
  end
end

local function placed_inbox_at(i) return ARGV[FIRST + STEP * i] end
local function key_at(i) return ARGV[FIRST + STEP * i + 1] end
local function host_key_at(i) return ARGV[FIRST + STEP * i + 2] end

-- The index of an activity: the latest message's number u64, then a segment for each call: first sequence u64,
-- how many u32, key of the origin, 8 bytes, and for each the key of its inbox, 8 bytes. Instances may name the same
-- activity, as when both announce it; what one has sent is no duplicate of another's.
local ORIGIN = ARGV[13]

-- Deliveries of an activity by inbox: those of this origin to the inboxes of this call, not older than `within`; of
-- several to one inbox the last. The others go to `earlier`, if it is given.
local function known_of(index, within, earlier)
  local known = {}
  if not index then return known end
  if inboxes <= 8 then
    local some = false
    for i = 0, inboxes - 1 do some = some or string.find(index, key_at(i), 9, true) end
    if not some then return known end
  end
  local at = 9
  while at < #index do
    local base, n, origin = struct.unpack('>I8I4c8', index, at)
    at = at + 20
    if NOW_US - base <= within and origin == ORIGIN then
      for i = 0, n - 1 do
        local key = string.sub(index, at + 8 * i, at + 8 * i + 7)
        if earlier and known[key] then
          earlier[key] = earlier[key] or {}
          table.insert(earlier[key], known[key])
        end
        known[key] = base + i
      end
    end
    at = at + 8 * n
  end
  return known
end

local activity_key = P .. ':activity:' .. ARGV[2]
local index = call('GET', activity_key)
local known = window > 0 and known_of(index, window) or {}
local fresh, result, remembered = {}, { '0' }, {}
for i = 0, inboxes - 1 do
  local duplicate = known[key_at(i)]
  if duplicate then
    result[#result + 1] = i
    result[#result + 1] = text(duplicate)
    remembered[#remembered + 1] = struct.pack('>I4I8', i, duplicate)
  else
    fresh[#fresh + 1] = i
  end
end

local order, family = ARGV[8], ARGV[9]
local order_index = order ~= '' and call('GET', group_key(order))
local family_index = family ~= '' and (family == order and order_index or call('GET', group_key(family)))
local apart_index = family ~= '' and call('GET', group_key(family .. APART))

-- How an inbox is named: by itself, or by its key where no more of it is here, as the delivery is in SQL.
local function inbox_name(record)
  if string.byte(record, 1) ~= S_PARKED or place_of(record) ~= SPILLED then return inbox_of(record) end
  local at = INBOX_AT + struct.unpack('>I2', record, 27)
  return string.sub(record, at, at + 7)
end

-- What is pending of the family at a host, by inbox: looked for once, however many inboxes of it the call has.
local families = {}
local function family_at(host_key)
  local by_inbox = families[host_key]
  if by_inbox then return by_inbox end
  by_inbox = {}
  for part, index in ipairs({ family_index or '', apart_index or '' }) do
    for _, sequence in ipairs(of_host(index, host_key)) do
      local record = pending(sequence)
      -- The order of this name may have others in it, that are superseded elsewhere.
      if record and not (part == 1 and has(record, FLAG_APART)) then
        local inbox = inbox_name(record)
        by_inbox[inbox] = by_inbox[inbox] or {}
        table.insert(by_inbox[inbox], sequence)
      end
    end
  end
  families[host_key] = by_inbox
  return by_inbox
end

-- Whether a pending delivery may be sent before these, which are for later: then they do not make it pointless.
local scheduled = not_before > NOW_MS
local function precedes(sequence, record)
  if not scheduled then return false end
  local state, from = string.byte(record, 1), 0
  if state == S_SCHEDULED then
    from = tonumber(call('ZSCORE', RETRY, sequence) or '0')
  elseif state == S_PARKED then
    from = place_of(record) -- in a lane or in SQL: no time at all
  end
  return from < not_before
end

-- Take back what this delivery to one of the inboxes makes pointless, the newest first.
local function supersede(i)
  local family_here = family_at(host_key_at(i))
  for _, inbox in ipairs({ string.sub(placed_inbox_at(i), 3), key_at(i) }) do
    local found = family_here[inbox] or {}
    for k = #found, 1, -1 do
      local record = pending(found[k])
      local kind = record and string.byte(record, 4)
      if record and (rule == EXPLICIT and has(record, FLAG_REPLACED)
        or (rule == BY_UPDATE and kind == UPDATE or rule == BY_DELETE and (kind == CREATE or kind == UPDATE))
        and not precedes(found[k], record)) then
        recall(found[k], record, S_SUPERSEDED)
      end
    end
  end
end

-- Take back the activity that this one undoes, however often it was sent to that inbox. True if nobody ever heard of
-- it there.
local earlier, undone = {}, {}
if rule == BY_UNDO and ARGV[10] ~= '' then
  undone = known_of(call('GET', P .. ':activity:' .. ARGV[10]), NOW_US, earlier)
end
local function undo(i)
  local last = undone[key_at(i)]
  if not last then return false end
  local sent, unheard = earlier[key_at(i)] or {}, true
  sent[#sent + 1] = last
  for k = #sent, 1, -1 do
    local sequence = text(sent[k])
    local record = pending(sequence)
    if record and not precedes(sequence, record) then
      local untried = string.byte(record, 5) == 0
      unheard = recall(sequence, record, S_SUPERSEDED) and untried and unheard
    else
      unheard = false
    end
  end
  return unheard
end

local base = 0
if #fresh > 0 then
  local pointless = {}
  for k, i in ipairs(fresh) do
    if family ~= '' and rule > 0 and rule < BY_UNDO then
      supersede(i)
    elseif rule == BY_UNDO then
      pointless[k] = undo(i)
    end
  end

  -- The body is stored once: with the message of the same identity, if it is still there.
  local message, found = nil, false
  if index then
    message = struct.unpack('>I8', index)
    found = call('HGET', P .. ':message:' .. text(message), 'i') == ARGV[3]
  end
  local first = allocate(#fresh + 1)
  base = first + 1
  if found then
    call('HINCRBY', P .. ':message:' .. text(message), 'n', #fresh)
  else
    message = first
    local key = P .. ':message:' .. text(message)
    call('HSET', key, 'b', ARGV[5], 'm', ARGV[4], 'i', ARGV[3], 'o', ARGV[11], 'n', #fresh)
    if order ~= '' then call('HSET', key, 'g', order) end
    if ARGV[12] ~= '' then
      call('HSET', key, 'k', ARGV[12])
      use_key(ARGV[12], 1)
    end
  end

  local deadline = math.ceil(math.max(NOW_MS, not_before) / 1000) + lifetime
  -- One that would get too old before is none that expires: what ends where it waits, without having expired, would
  -- be there twice when it is replayed.
  local expires = expire > 0 and expire < deadline
  if expires then flags, deadline = flags + FLAG_EXPIRES, expire end
  if rule == EXPLICIT then flags = flags + FLAG_REPLACED end
  if order ~= '' and family ~= order then flags = flags + FLAG_APART end
  local head = struct.pack('>BBBBBI4I8', flags, priority, type_code, 0, 0, deadline, message)
  local keys, host_keys, batch, ready, undelivered = {}, {}, {}, {}, {}
  local held, lined_up, waits = 0, {}, {}
  local straight = scheduled and 0 or stream_room(priority, short, #fresh)
  for k, i in ipairs(fresh) do
    local sequence, inbox, host_key = base + k - 1, placed_inbox_at(i), host_key_at(i)
    local name = text(sequence)
    local state, place = scheduled and S_SCHEDULED or S_READY, sequence
    if pointless[k] then
      undelivered[#undelivered + 1] = k
    elseif order ~= '' then
      local host_of_it = host_at(inbox, 1)
      if waits[host_key] == nil then
        waits[host_key] = must_wait(order, order_index, host_of_it, host_key, message)
      end
      if waits[host_key] then
        state, place = S_PARKED, scheduled and not_before or 0
        call('RPUSH', P .. ':held:' .. chain(order, host_of_it), name)
        held = held + 1
      end
    end
    if state == S_READY and not pointless[k] then
      if straight > 0 then
        straight = straight - 1
      else
        place = IN_LINE
        lined_up[#lined_up + 1] = name
      end
    end
    batch[#batch + 1] = name
    batch[#batch + 1] = string.char(state) .. head .. struct.pack('>I8I2', place, #inbox - 2) .. inbox
    if #batch >= 1000 then
      call('HSET', DELIVERIES, unpack(batch))
      batch = {}
    end
    if not pointless[k] then
      if state == S_SCHEDULED then
        call('ZADD', RETRY, text(not_before), name)
      elseif place == sequence then
        append(priority, sequence, name)
      end
      if expires then call('ZADD', P .. ':expiry', text(deadline * 1000), name) end
    end
    keys[k], host_keys[k] = key_at(i), host_key
  end
  if #batch > 0 then call('HSET', DELIVERIES, unpack(batch)) end

  if #lined_up > 0 then line_up(priority, ARGV[11], lined_up) end

  count('accepted', #fresh)
  owe(ARGV[11], #fresh)
  if held > 0 then count('parked', held) end
  if scheduled then count('scheduled', #fresh - held - #undelivered) end
  tally('a', #fresh)
  for _, k in ipairs(undelivered) do
    local sequence = text(base + k - 1)
    local record = fetch(sequence)
    conclude(sequence, record, S_SUPERSEDED, payload_of(sequence, record, R_SUPERSEDED))
  end

  local keep = index_ttl
  if scheduled then keep = keep + not_before - NOW_MS end
  local segment = struct.pack('>I8I4', base, #fresh) .. ORIGIN .. table.concat(keys)
  if index then
    local named = struct.pack('>I8', message)
    if string.sub(index, 1, 8) ~= named then
      call('SETRANGE', activity_key, 0, named)
      index = named .. string.sub(index, 9)
    end
    extend(activity_key, index, segment)
    if call('PTTL', activity_key) < keep then call('PEXPIRE', activity_key, text(keep)) end
  else
    call('SET', activity_key, struct.pack('>I8', message) .. segment, 'PX', text(keep))
  end
  if order ~= '' then join(order, order_index, base, host_keys, keep) end
  if family ~= '' and family ~= order then join(family .. APART, apart_index, base, host_keys, keep) end

  flush()
  if not scheduled or rang then ring(priority == 1) end
  result[1] = text(base)
end

if request ~= '' then
  call('SET', request_key, ARGV[7] .. struct.pack('>I8', base) .. table.concat(remembered), 'PX', text(request_ttl))
end
return result
