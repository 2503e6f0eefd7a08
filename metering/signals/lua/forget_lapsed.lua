-- Forgets holds that have been lapsed for a day, a few at a time: nobody waits for more.
--@include day_ms.lua
--@include take_away.lua

local LAPSED_AT_ONCE = 100

local function forget_lapsed(key, now)
    local old = redis.call('ZRANGEBYSCORE', key .. ':ends', '-inf', digits(now - DAY_MS), 'LIMIT', 0, LAPSED_AT_ONCE)
    if #old > 0 then take_away(key, old, redis.call('HMGET', key, unpack(old))) end
end
