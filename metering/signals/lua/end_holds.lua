-- Ends holds of an org's calls whose events were seen, and remembers those events for a day, while the org takes holds.
--@include day_ms.lua
--@include keep.lua
--@include take_away.lua
--@include digits.lua

local IDS_AT_ONCE = 1000 -- Lua passes some thousands of arguments

local function remember(key, ids, now)
    local ended, seen = key .. ':ended', {}
    for i = 1, #ids do
        seen[2 * i - 1] = digits(now)
        seen[2 * i] = ids[i]
    end
    redis.call('ZADD', ended, unpack(seen))
    -- Twice as many as came: so what is old goes, and no call has to forget a million.
    local old = redis.call('ZRANGEBYSCORE', ended, '-inf', digits(now - DAY_MS), 'LIMIT', 0, 2 * #ids)
    if #old > 0 then redis.call('ZREM', ended, unpack(old)) end
    keep(ended, now + DAY_MS)
end

local function end_holds(key, ids, now)
    local last = redis.call('HGET', key, 'last_ms')
    if not last then return end -- it takes none
    for first = 1, #ids, IDS_AT_ONCE do
        local some = {unpack(ids, first, math.min(first + IDS_AT_ONCE - 1, #ids))}
        take_away(key, some)
        if now - tonumber(last) < DAY_MS then remember(key, some, now) end
    end
end
