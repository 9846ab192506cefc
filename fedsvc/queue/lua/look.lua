-- look: show some deliveries as they are now. Changes nothing.
-- uses: hosts, logged
--
-- KEYS[1]  prefix of the partition
-- ARGV     their sequences
--
-- Result, for each: false if unknown, else {record, 1 if in flight, due time or '', outcome's payload
-- or '', packed fields of its message or ''}

-- When what waits in a lane is tried next (ms), if it is known and before its time is over; else ''. Of a host that
-- has as much in flight as it can take, an answer will tell.
local function next_try(record)
  local name = host_of(record)
  prefetch_hosts({ name })
  if not loaded[name] or #loaded[name] ~= HOST_SIZE then return '' end
  local h = host(name)
  local at = h.pause > NOW_MS and h.pause or h.circuit == OPEN and h.probe or NEVER
  return at < deadline_ms(record) and text(at) or ''
end

local result = {}
for i, sequence in ipairs(ARGV) do
  local record = call('HGET', DELIVERIES, sequence)
  if not record then
    result[i] = false
  else
    local state = string.byte(record, 1)
    local flying, due, payload, message = 0, '', '', ''
    if is_record(record) then
      local m, place = message_of(record), place_of(record)
      message = call('HGET', P .. ':message:' .. text(m), 'm') or ''
      if state == S_READY and place ~= IN_LINE then
        local entry = text(place) .. '-0'
        if in_flight(priority_of(record), entry) or in_flight(WOKEN, entry) then flying = 1 end
      elseif state == S_PARKED and place == IN_LANE then
        due = next_try(record)
      elseif state == S_RETRY or state == S_SCHEDULED then
        due = call('ZSCORE', RETRY, sequence) or ''
      elseif state == S_DEAD then
        local entry = call('XRANGE', DEAD, text(place) .. '-0', text(place) .. '-0')[1]
        if entry then payload = entry[2][4] end
      end
    else
      payload = logged((struct.unpack('>I8', record, 2))) or ''
    end
    result[i] = { record, flying, due, payload, message }
  end
end
return result
