-- settle: end the flight of some deliveries, each by itself, all in one step.
--
-- KEYS[1]  prefix of the partition
-- ARGV in groups of 8, for each delivery:
--   state      what becomes of it: 4 retry, 6 delivered, 7 dead, 8 cancelled, 9 superseded, 10 expired
--   sequence
--   priority   of the ready stream that its entry is in
--   entry      number of that entry
--   attempted  1 if an attempt was made, 0 if not
--   due        for a retry: when, ms
--   record     for a retry or dead letter: the whole new record
--   payload    packed outcome, for all but a retry
--
-- An entry that is no longer in flight was settled by somebody else: it is passed over, so that each
-- delivery moves exactly once.
--
-- Result: indexes (0-based) of those passed over.

local WIDTH = 8
local result = {}
local total = #ARGV / WIDTH
local first = allocate(total)

for i = 0, total - 1 do
  local at = i * WIDTH
  local state, sequence = tonumber(ARGV[at + 1]), ARGV[at + 2]
  local priority, entry = tonumber(ARGV[at + 3]), ARGV[at + 4] .. '-0'
  local stored = false
  if call('XACK', READY[priority], GROUP, entry) == 1 then
    call('XDEL', READY[priority], entry)
    stored = call('HGET', DELIVERIES, sequence)
  end
  if not is_record(stored) then
    result[#result + 1] = i
  else
    local record, payload, number = ARGV[at + 7], ARGV[at + 8], first + i
    if ARGV[at + 5] == '1' then tally('t', 1) end
    if state == S_RETRY then
      call('HSET', DELIVERIES, sequence, record)
      call('ZADD', RETRY, ARGV[at + 6], sequence)
      waiting(record, 1)
    else
      finish(sequence, state, payload, number)
      if state == S_DEAD then
        -- Its message stays: a dead letter can be replayed.
        call('HSET', DELIVERIES, sequence, moved(record, S_DEAD, number))
        call('XADD', DEAD, text(number) .. '-0', 'd', sequence, 'o', payload)
        tally('f', 1)
      else
        call('HSET', DELIVERIES, sequence, struct.pack('>BI8', state, number))
        release(struct.unpack('>I8', stored, 10))
        if state == S_DELIVERED then tally('d', 1) end
      end
    end
  end
end
flush()
return result
