-- steer: look at a host, or change how it is treated.
-- uses: hosts, spills
--
-- KEYS[1]  prefix of the partition
-- ARGV[1]  packed terms of all hosts
-- ARGV[2]  host
-- ARGV[3]  what: look, pause, resume, policy, seen
-- ARGV[4]  pause: how long, ms; policy: packed most in flight u16, rate f64, burst f64; 0 for the default
-- ARGV[5]  pause: why
--
-- seen: the application has heard from the host; if it is down, it is probed now.
-- Result: {1 if that changed anything, packed host as in `hosts` or '', why it is paused, packed policy or '',
-- now (ms), when its lane is tried again (ms) or '', how many of its deliveries wait in SQL}

read_terms(ARGV[1])
local h, what, changed = host(ARGV[2]), ARGV[3], 0
if what == 'pause' then
  h_set(h, H_PAUSED, true)
  h.pause, h.changed, changed = NOW_MS + tonumber(ARGV[4]), true, 1
  call('HSET', P .. ':pauses', h.name, ARGV[5])
elseif what == 'resume' then
  changed = (h.pause > NOW_MS or h.circuit ~= CLOSED) and 1 or 0
  h_set(h, H_PAUSED, false)
  h.pause, h.changed = 0, true
  if h.circuit == OPEN then h.probe = NOW_MS end
  call('HDEL', P .. ':pauses', h.name)
elseif what == 'policy' then
  local max, rate, burst = struct.unpack('>I2dd', ARGV[4])
  local own = max > 0 or rate > 0 or burst > 0
  h_set(h, H_POLICY, own)
  if own then call('HSET', POLICIES, h.name, ARGV[4]) else call('HDEL', POLICIES, h.name) end
  h.max = max > 0 and max or terms.limit
  h.rate = rate > 0 and rate or terms.rate
  h.burst = burst > 0 and burst or math.max(1, rate > 0 and rate or terms.burst)
  h.limit, h.tokens = math.min(h.limit, h.max), math.min(h.tokens, h.burst)
  h.changed, changed = true, 1
elseif what == 'seen' then
  if h.circuit == OPEN and h.probe > NOW_MS then
    h.probe, h.changed, changed = NOW_MS, true, 1
  end
end
if what ~= 'look' then
  save_hosts()
  flush()
  if woken > 0 then ring() end
end
local spilled = 0
if h.barrier > 0 then
  for _, batch in ipairs(spilled_batches()) do
    if batch.host == h.name then spilled = spilled + batch.many end
  end
end
return {
  changed, call('HGET', HOSTS, h.name) or '', call('HGET', P .. ':pauses', h.name) or '',
  call('HGET', POLICIES, h.name) or '', text(NOW_MS), call('ZSCORE', WAKE, h.name) or '',
  spilled,
}
