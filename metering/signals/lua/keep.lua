--@include digits.lua

local HOUR_MS = 3600000

-- Has Redis forget the key by itself, later than anything in it counts. Written once an hour, not each time.
local function keep(key, until_ms)
    if redis.call('PEXPIRETIME', key) < until_ms then redis.call('PEXPIREAT', key, digits(until_ms + HOUR_MS)) end
end
