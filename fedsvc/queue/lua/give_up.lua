-- give_up: end deliveries that wait in batches which SQL does not have: those of which the archive knows that they have
-- ended, as before Redis was restored to an earlier state; those that nobody wants any more; and those whose time is
-- over. The others may still be sent, should SQL have them again.
-- uses: hosts, endings, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2...] for each: sequence, batch, state in which it has ended as the archive knows; 0 if it does not
--
-- Result: how many ended.

local R_BODY_MISSING = 30
read_terms(ARGV[1])

-- Whose order a delivery keeps is not known here if its message is not: it is looked for in the orders at its host in
-- which others wait.
local function chain_of(sequence, stub, name)
  local group = call('HGET', P .. ':message:' .. text(message_of(stub)), 'g')
  if group and group ~= '' then return chain(group, name) end
  for _, order in ipairs(call('HKEYS', FOLLOWED)) do
    local key, where = string.match(order, '^([^:]*):(.*)$')
    local index, at = where == name and call('GET', P .. ':group:' .. key) or '', 5 -- see groups.lua
    while at < #index do
      local base, n = struct.unpack('>I8I4', index, at)
      if sequence >= base and sequence < base + n then return order end
      at = at + 12 + 8 * n
    end
  end
end

-- How it ends now, and why; nil if it does not.
local function ending(stub, batch)
  if has(stub, FLAG_CANCEL) or batch.dropped[inbox_of(stub)] then return S_CANCELLED, R_CANCELLED end
  if has(stub, FLAG_SUPERSEDE) then return S_SUPERSEDED, R_SUPERSEDED end
  if deadline_ms(stub) > NOW_MS then return nil end
  if has(stub, FLAG_EXPIRES) then return S_EXPIRED, R_EXPIRED end
  return S_DEAD, R_BODY_MISSING
end

-- A dead letter, which names no message, and of its inbox no more than the host.
local function bury_here(sequence, stub, batch, number, payload)
  local ip6 = string.find(batch.host, ':', 1, true)
  local inbox = ip6 and 'https://[' .. batch.host .. ']/' or 'https://' .. batch.host .. '/'
  local head = string.sub(moved(stub, S_DEAD, number), 1, 10) .. struct.pack('>I8I8', 0, number)
  store(sequence, unflagged(head .. struct.pack('>I2BB', #inbox, ip6 and 9 or 8, #batch.host) .. inbox, FLAG_FOLLOWED))
  call('XADD', DEAD, text(number) .. '-0', 'd', sequence, 'o', payload)
  tally('f', 1)
end

local batches, ended = {}, 0
for i = 2, #ARGV, 3 do
  local sequence, number, known = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local told = not batches[number] and call('HGET', SPILLS, number)
  if told then batches[number] = read_batch(number, told) end
  local batch, stub = batches[number], fetch(sequence)
  if batch and is_stub(stub) and batch_of(stub) == number then
    local state, reason = known, nil
    if known == 0 then state, reason = ending(stub, batch) end
    if state then
      local origin = inbox_of(stub)
      if known ~= 0 then
        -- The archive says all. A dead letter that Redis does not have is as if it were purged.
        count(COUNTER_OF[known == S_DEAD and S_PURGED or known], 1)
        call('HDEL', DELIVERIES, sequence)
        records[sequence] = false
      else
        local outcome, payload = allocate(1), packed_outcome(stub, reason, '', batch.host, origin, 0, {})
        finish(sequence, state, payload, outcome)
        if state == S_DEAD then
          bury_here(sequence, stub, batch, outcome, payload)
        else
          store(sequence, struct.pack('>BI8', state, outcome))
        end
      end
      owe(origin, -1)
      count('parked', -1)
      count('spilled', -1)
      leave_batch(batch, origin)
      ended = ended + 1
      local order = has(stub, FLAG_FOLLOWED) and chain_of(tonumber(sequence), stub, batch.host)
      if order then let_go_on(order) end
    end
  end
end
for _, batch in pairs(batches) do
  if batch.changed then
    save_batch(batch)
    set_barrier(host(batch.host))
  end
end
save_hosts()
flush()
if woken > 0 or rang then ring() end
return ended
