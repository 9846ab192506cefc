-- enqueue: accept one message for some inboxes of this partition, all or none.
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  partition's number
-- ARGV[2]  priority (1, 2, 3)
-- ARGV[3]  code of the activity's type
-- ARGV[4]  flags of the records
-- ARGV[5]  not before, ms; 0 for now
-- ARGV[6]  expires at, s; 0 for never
-- ARGV[7]  key of the activity id, hex
-- ARGV[8]  identity of the message, 16 bytes
-- ARGV[9]  packed fields of the message
-- ARGV[10] body
-- ARGV[11] request id; '' for none
-- ARGV[12] fingerprint of the request, 8 bytes
-- ARGV[13] how long to remember the request id, ms
-- ARGV[14] how long to keep the activity's index, ms
-- ARGV[15] within which time the same activity to the same inbox is a duplicate, us; 0 for never
-- ARGV[16] how long a delivery lives at most, from its acceptance or from `not before`, s
-- ARGV[17...] pairs: inbox, its key (8 bytes)
--
-- Result: {first sequence of those accepted, index of a duplicate, its sequence, ...}: inboxes that
-- are no duplicates have consecutive sequences, in order. Indexes are 0-based.
-- Error REUSED: the request id belongs to another call.

local FIRST_PAIR = 17
local inboxes = (#ARGV - FIRST_PAIR + 1) / 2
local request = ARGV[11]
local request_key = P .. ':request:' .. request

if request ~= '' then
  local answer = call('GET', request_key)
  if answer then
    if string.sub(answer, 1, 8) ~= ARGV[12] then return redis.error_reply('REUSED request id') end
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

-- Which of them does this activity have already?
local activity_key = P .. ':activity:' .. ARGV[7]
local index = call('GET', activity_key)
local window = tonumber(ARGV[15])
local known = {}
if index and window > 0 then
  local wanted = nil
  if inboxes <= 8 then
    wanted = false
    for i = 0, inboxes - 1 do
      if string.find(index, ARGV[FIRST_PAIR + 2 * i + 1], 9, true) then wanted = true end
    end
  end
  if wanted ~= false then
    local at = 9
    while at < #index do
      local base, n = struct.unpack('>I8I4', index, at)
      at = at + 12
      if NOW_US - base <= window then
        for i = 0, n - 1 do known[string.sub(index, at + 8 * i, at + 8 * i + 7)] = base + i end
      end
      at = at + 8 * n
    end
  end
end

local fresh, result = {}, { '0' }
local remembered = {}
for i = 0, inboxes - 1 do
  local duplicate = known[ARGV[FIRST_PAIR + 2 * i + 1]]
  if duplicate then
    result[#result + 1] = i
    result[#result + 1] = text(duplicate)
    remembered[#remembered + 1] = struct.pack('>I4I8', i, duplicate)
  else
    fresh[#fresh + 1] = i
  end
end

local base = 0
if #fresh > 0 then
  -- The body is stored once: with the message of the same identity, if it is still there.
  local message, found = nil, false
  if index then
    message = struct.unpack('>I8', index)
    found = call('HGET', P .. ':message:' .. text(message), 'i') == ARGV[8]
  end
  local first = allocate(#fresh + 1)
  base = first + 1
  if found then
    call('HINCRBY', P .. ':message:' .. text(message), 'n', #fresh)
  else
    message = first
    call('HSET', P .. ':message:' .. text(message), 'b', ARGV[10], 'm', ARGV[9], 'i', ARGV[8], 'n', #fresh)
  end

  local priority, not_before = tonumber(ARGV[2]), tonumber(ARGV[5])
  local scheduled = not_before > NOW_MS
  local state = scheduled and S_SCHEDULED or S_READY
  local flags, expire = tonumber(ARGV[4]), tonumber(ARGV[6])
  local deadline = math.ceil(math.max(NOW_MS, not_before) / 1000) + tonumber(ARGV[16])
  if expire > 0 and expire < deadline then flags, deadline = flags + FLAG_EXPIRES, expire end
  local head = struct.pack('>BBBBBI4I8', state, flags, priority, tonumber(ARGV[3]), 0, deadline, message)
  local hashes, batch = {}, {}
  for k, i in ipairs(fresh) do
    local sequence = base + k - 1
    local name = text(sequence)
    local inbox = ARGV[FIRST_PAIR + 2 * i]
    batch[#batch + 1] = name
    batch[#batch + 1] = head .. struct.pack('>I8I2', sequence, #inbox) .. inbox
    if #batch >= 1000 then
      call('HSET', DELIVERIES, unpack(batch))
      batch = {}
    end
    if scheduled then
      call('ZADD', RETRY, not_before, name)
    else
      to_ready(priority, sequence, name)
    end
    hashes[k] = ARGV[FIRST_PAIR + 2 * i + 1]
  end
  if #batch > 0 then call('HSET', DELIVERIES, unpack(batch)) end

  local segment = struct.pack('>I8I4', base, #fresh) .. table.concat(hashes)
  if index then
    call('SETRANGE', activity_key, 0, struct.pack('>I8', message))
    call('APPEND', activity_key, segment)
  else
    call('SET', activity_key, struct.pack('>I8', message) .. segment)
  end
  local keep = tonumber(ARGV[14])
  if scheduled then keep = keep + not_before - NOW_MS end
  if call('PTTL', activity_key) < keep then call('PEXPIRE', activity_key, text(keep)) end

  count('accepted', #fresh)
  if scheduled then count('scheduled', #fresh) end
  tally('a', #fresh)
  flush()
  ring(ARGV[1])
  result[1] = text(base)
end

if request ~= '' then
  call('SET', request_key, ARGV[12] .. struct.pack('>I8', base) .. table.concat(remembered), 'PX', ARGV[13])
end
return result
