-- Ends holds of an org's calls whose events were seen, and remembers those events for a day, while the org takes holds.
--
-- This is done for every event of an org that takes holds, so it asks Redis for little: `ended_until_ms`, up to when Redis keeps
-- what is remembered, is beside the holds; and what is a day old is looked for in one of some milliseconds, more of it then.
--@include day_ms.lua
--@include take_away.lua

local IDS_AT_ONCE = 1000 -- Lua passes some thousands of arguments
local LOOK_EVERY_MS = 8
local HOUR_LATER_MS = 3600000

local function remember(key, ids, ended_until, now)
    local ended, seen, at = key .. ':ended', {}, digits(now)
    for i = 1, #ids do
        seen[2 * i - 1] = at
        seen[2 * i] = ids[i]
    end
    redis.call('ZADD', ended, unpack(seen))
    if (tonumber(ended_until or nil) or 0) < now + DAY_MS then
        local until_ms = digits(now + DAY_MS + HOUR_LATER_MS)
        redis.call('PEXPIREAT', ended, until_ms)
        redis.call('HSET', key, 'ended_until_ms', until_ms)
    end
    if now % LOOK_EVERY_MS == 0 then
        -- More than came meanwhile: so what is old goes, and no call has to forget a million.
        local most = math.min(2 * LOOK_EVERY_MS * #ids, IDS_AT_ONCE)
        local old = redis.call('ZRANGEBYSCORE', ended, '-inf', digits(now - DAY_MS), 'LIMIT', 0, most)
        if #old > 0 then redis.call('ZREM', ended, unpack(old)) end
    end
end

local function end_holds(key, ids, now)
    for first = 1, #ids, IDS_AT_ONCE do
        local some = {unpack(ids, first, math.min(first + IDS_AT_ONCE - 1, #ids))}
        local asked = {unpack(some)}
        asked[#asked + 1] = 'last_ms'
        asked[#asked + 1] = 'ended_until_ms'
        local records = redis.call('HMGET', key, unpack(asked))
        local last, ended_until = records[#some + 1], records[#some + 2]
        if not last then return end -- it takes none
        take_away(key, some, records)
        if now - tonumber(last) < DAY_MS then remember(key, some, ended_until, now) end
    end
end
