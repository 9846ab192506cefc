-- How outcomes stand in the log, for scripts that read it. An entry has one, or all that were delivered in one
-- script, which costs less than an entry for each: `many`, for each of them sequence u64 and size of its packed
-- outcome u32, then `o`, these outcomes without anything between them. Theirs are consecutive numbers, of which the
-- last is the entry's.

local HEAD_SIZE = 12

-- How many outcomes an entry has.
local function outcomes_in(entry)
  local fields = entry[2]
  return fields[1] == 'many' and math.max(1, math.floor(#fields[2] / HEAD_SIZE)) or 1
end

local function number_of(entry) return tonumber((string.match(entry[1], '^%d+'))) end

-- Sequences of an entry, and the number of the first.
local function sequences_in(entry)
  local fields, number, many = entry[2], number_of(entry), outcomes_in(entry)
  if fields[1] ~= 'many' then return { fields[2] }, number end
  local sequences = {}
  for at = 1, math.min(#fields[2], HEAD_SIZE * MANY) - HEAD_SIZE + 1, HEAD_SIZE do
    sequences[#sequences + 1] = text((struct.unpack('>I8', fields[2], at)))
  end
  if #sequences == 0 then sequences[1] = '' end -- not written by us
  return sequences, number - many + 1
end

-- Where each of several packed outcomes begins, and at last where they end.
local function starts_of(heads)
  local from = { 1 }
  for nth = 1, math.floor(#heads / HEAD_SIZE) do
    from[nth + 1] = from[nth] + struct.unpack('>I4', heads, HEAD_SIZE * nth - 3)
  end
  return from
end

-- The packed outcome with a number; nil if the log does not have it.
local function logged(number)
  local entry = call('XRANGE', OUTCOMES, text(number) .. '-0', '+', 'COUNT', 1)[1]
  if not entry then return nil end
  local fields = entry[2]
  if fields[1] ~= 'many' then return number_of(entry) == number and fields[6] or nil end
  local from, nth = starts_of(fields[2]), number - number_of(entry) + outcomes_in(entry)
  if nth < 1 or not from[nth + 1] or not fields[4] then return nil end
  return string.sub(fields[4], from[nth], from[nth + 1] - 1)
end
