-- An org's holds as they are.
--
-- KEYS: its holds, their ends. ARGV: a call's id, for that one alone; nothing, for all, the soonest end first.
-- Gives: the time; then for each its call's id, its end and its record. What is to be forgotten is left out.
--@include now_ms.lua
--@include day_ms.lua
--@include digits.lua

local now = now_ms()
local found = {digits(now)}
local ids = ARGV[1] and {ARGV[1], redis.call('ZSCORE', KEYS[2], ARGV[1])}
    or redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. digits(now - DAY_MS), '+inf', 'WITHSCORES')
for i = 1, #ids, 2 do
    local record = redis.call('HGET', KEYS[1], ids[i])
    local ends = ids[i + 1] and tonumber(ids[i + 1])
    if record and ends and ends > now - DAY_MS then
        found[#found + 1] = ids[i]
        found[#found + 1] = digits(ends)
        found[#found + 1] = record
    end
end
return found
