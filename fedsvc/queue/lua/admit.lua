-- admit: hand deliveries to a worker that their hosts can take now; park the others in their hosts' lanes.
-- What is handed out stays in a stream, in flight, until settled.
-- uses: hosts, calm, endings, lines
-- seldom: from_lanes, from_lines, host, park, room, depart, dialect_of, spilled_first, all_behind_spilled, lanes, shut
-- seldom: lane_deadline, forget_message
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  the worker
-- ARGV[3]  how long its lease lasts from now, ms
-- ARGV[4]  how many at most
-- ARGV[5], ARGV[6], ARGV[7]  of these, shares of urgent, normal and bulk; what one does not use, others get
-- ARGV[8]  1 to look at the urgent stream only
-- ARGV[9]  messages that come along: 0 none, 1 all, 2 those of urgent deliveries
--
-- Result: {1 if there is more to hand out, messages of what is handed out as a flat list: number, body, packed
-- (see ARGV[9]), then for each delivery one text: stream, id of its entry or the number in it, sequence, times delivered
-- (1), how its host wants to be signed to (0: not known), record, with a space between them}. Each element of an answer
-- costs as much as the rest of handing out.

read_terms(ARGV[1])
call('ZADD', CONSUMERS, text(NOW_MS + tonumber(ARGV[3])), ARGV[2])
local worker, left = ARGV[2], tonumber(ARGV[4])
local only_urgent = ARGV[8] == '1'
local result, more = { 0, {} }, false
-- Entries that may be parked in one call: bounds how long Redis is busy with it.
local READS = 4 * left + 64
local reads = 0

local STREAM_IS, AND_DIALECT = { '1 ', '2 ', '3 ', '4 ' }, { [0] = ' 1 0 ' } -- numbers take long to become text
local handed, wanted = 2, ARGV[9]
-- Numbers of the messages that come along, each once.
local numbers, asked = {}, {}
local function hand(stream, entry, sequence, record, dialect)
  local times = AND_DIALECT[dialect]
  if not times then
    times = ' 1 ' .. dialect .. ' '
    AND_DIALECT[dialect] = times
  end
  handed = handed + 1
  result[handed] = STREAM_IS[stream] .. entry .. ' ' .. sequence .. times .. record
  left = left - 1
  if wanted == '1' or wanted == '2' and (stream == 1 or stream == WOKEN and string.byte(record, 3) == 1) then
    local number = message_of(record)
    if not asked[number] then
      asked[number] = true
      numbers[#numbers + 1] = text(number)
    end
  end
end

-- Whether a delivery goes to its host now, and how that wants to be signed to; if not, it waits in the host's lane.
local function goes(stream, sequence, record, name)
  local free, dialect = calm_room(name, stream == 1, true)
  if not free then
    -- Who came before goes first. A host that answers gets one urgent more than it has shown to take: it does not
    -- wait for the rest to end.
    local h, lane = host(name), priority_of(record)
    local spare = stream == 1 and h.success > 0 and 1 or 0
    free = h[LANE[lane]] == 0 and not spilled_first(h, lane, sequence) and room(h, spare) or 0
    if free > 0 then
      depart(h)
      dialect = dialect_of(h)
    end
  end
  if free > 0 then return true, dialect end
  park(host(name), sequence, record, false)
  return false
end

-- Up to `share` deliveries out of lines, if the ready stream has no others; how many they are, and whether there are no
-- more.
local function from_lines(stream, share)
  local most = math.min(4 * share, READS - reads)
  local entries, sequences, their_records, dialects, ended, looked =
    refill(stream, share, most, terms.window, hosts_of, goes)
  reads = reads + looked -- also at those that were parked
  if #entries == 0 then return 0, ended end
  hand_over(stream, worker, entries) -- nothing else is in the stream but what is in flight
  for i = 1, #entries do hand(stream, entries[i], sequences[i], their_records[i], dialects[i]) end
  return #entries, ended
end

-- Up to `share` deliveries off a ready stream, which is filled from lines when it runs dry; how many it gave, and
-- whether it has no more.
local function from_stream(stream, share)
  local given = 0
  while share > given and reads < READS do
    local wanted = math.min(share - given, READS - reads)
    local entries = take(stream, worker, wanted)
    reads = reads + #entries
    local sequences = {}
    for i = 1, #entries do
      local fields = entries[i][2]
      sequences[i] = fields and fields[2] or ''
    end
    local names = hosts_of(sequences)
    for i = 1, #entries do
      local sequence, entry = sequences[i], entries[i][1]
      local record = fetch(sequence)
      if not names[i] or string.byte(record) ~= S_READY then
        -- Not one of ours, or of a delivery that has gone on: nothing is owed for it.
        drop(stream, entry)
        count('strays', 1)
      else
        local so, dialect = goes(stream, sequence, record, names[i])
        if so then
          hand(stream, entry, sequence, record, dialect)
          given = given + 1
        else
          drop(stream, entry)
        end
      end
    end
    if #entries < wanted then
      if in_lines(stream) <= 0 then return given, true end
      local more_given, ended = from_lines(stream, wanted - #entries)
      given = given + more_given
      if more_given == 0 then return given, ended end
    end
  end
  return given, false
end

-- From which of a host's lanes the next is taken: of ten, six urgent, three normal, one bulk, where they wait.
local TURNS = { 1, 2, 1, 1, 2, 1, 3, 1, 2, 1 }
local function next_lane(h)
  h.turn = (h.turn + 1) % 10
  local lane = TURNS[h.turn + 1]
  if h[LANE[lane]] > 0 then return lane end
  for other = 1, 3 do
    if h[LANE[other]] > 0 then return other end
  end
end

-- Lanes are read some at a time, and cut off at the end where reading stopped.
local lane_reads = {}
local function peek(h, lane, most)
  local key = lane_key(h, lane)
  local read = lane_reads[key]
  if not read or read.at > #read.items and not read.ended then
    if read then call('LTRIM', key, read.at - 1, -1) end
    read = { items = call('LRANGE', key, 0, most - 1), at = 1, h = h }
    read.ended = #read.items < most
    prefetch(read.items)
    lane_reads[key] = read
  end
  return read.items[read.at], read
end
local function cut_lanes()
  for key, read in pairs(lane_reads) do
    if read.at > 1 then call('LTRIM', key, read.at - 1, -1) end
  end
  lane_reads = {}
end

-- Up to `share` deliveries out of the lanes of these hosts, which may be tried again.
local function from_lanes(names, share)
  append_parked()
  prefetch_hosts(names)
  local out = {}
  local function depart_with(h, sequence, record)
    count('parked', -1)
    depart(h)
    out[#out + 1] = { sequence, record, h }
  end
  local function waits_in_lane(record)
    return is_record(record) and string.byte(record, 1) == S_PARKED and place_of(record) == IN_LANE
  end
  for _, name in ipairs(names) do
    local h = host(name)
    h.changed = true
    -- A host that is down is probed with its oldest; now and then with its newest, lest one bad delivery keep
    -- it down.
    if h.circuit == OPEN and h.opens % 4 == 3 and room(h) > 0 then
      local lane = next_lane(h)
      local sequence = lane and call('RPOP', lane_key(h, lane))
      if sequence then
        h[LANE[lane]] = h[LANE[lane]] - 1
        local record = fetch(sequence)
        if waits_in_lane(record) then depart_with(h, sequence, record) end
      end
    end
    while #out < share and reads < READS and lanes(h) > 0 do
      local free = room(h)
      local lane = next_lane(h)
      local probing = h.circuit == OPEN
      local sequence, read = peek(h, lane, math.max(1, math.min(share, free)))
      if not sequence then
        h[LANE[lane]] = 0 -- it was counted wrong
      else
        local record = fetch(sequence)
        local waits = waits_in_lane(record)
        local late = waits and deadline_ms(record) <= NOW_MS
        if waits and not late and (free <= 0 or not probing and spilled_first(h, lane, sequence)) then break end
        reads = reads + 1
        read.at = read.at + 1
        h[LANE[lane]] = h[LANE[lane]] - 1
        if late then
          lapse(sequence, record)
        elseif waits then
          depart_with(h, sequence, record)
        end
      end
    end
    if #out >= share then break end
  end
  cut_lanes()
  if #out > 0 then
    local first, entries = allocate(#out), {}
    for i, item in ipairs(out) do
      local sequence, record = item[1], moved(item[2], S_READY, first + i - 1)
      entries[i] = append(WOKEN, first + i - 1, sequence)
      store(sequence, record)
      count('woken:' .. priority_of(record), 1)
      hand(WOKEN, entries[i], sequence, record, dialect_of(item[3]))
    end
    hand_over(WOKEN, worker, entries) -- nothing else is in that stream but what is in flight
  end
end

local dry = {}
local shares = { tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]) }
if only_urgent then
  local _, ended = from_stream(1, left)
  more = not ended
else
  -- Each stream gets its share, and what those before it leave of theirs if none of them has more: each look at a
  -- stream costs as much as some deliveries.
  local function from_streams(share_of)
    local unused, first = 0, true
    for stream = 1, 3 do
      local share, given = math.min(left, share_of(stream) + unused), 0
      if share > 0 and not dry[stream] then
        given, dry[stream] = from_stream(stream, share)
        shares[stream] = math.max(0, shares[stream] - given)
      end
      first = first and dry[stream]
      unused = first and share - given or 0
    end
  end
  -- If hosts' lanes may give something, new deliveries get half of what there is, so that hosts with a backlog do
  -- not keep others waiting; then the rest of their shares, then what nobody else uses.
  local due = call('ZRANGEBYSCORE', WAKE, '-inf', text(NOW_MS), 'LIMIT', 0, left)
  if #due > 0 then
    from_streams(function(stream) return math.ceil(shares[stream] / 2) end)
    if left > 0 then from_lanes(due, left) end
  end
  from_streams(function(stream) return shares[stream] end)
  from_streams(function() return left end)
  more = not (dry[1] and dry[2] and dry[3])
end
save_hosts()
flush()
for _, number in ipairs(numbers) do
  local message = call('HMGET', P .. ':message:' .. number, 'b', 'm')
  if message[1] and message[2] then
    local messages = result[2]
    local n = #messages
    messages[n + 1], messages[n + 2], messages[n + 3] = number, message[1], message[2]
  end
end
if woken > 0 or more then result[1] = 1 end
return result
