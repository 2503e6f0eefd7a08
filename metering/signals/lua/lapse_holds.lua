-- Has the holds of calls whose events can't be billed lapse at once: they still count, but the calls don't run.
--@include digits.lua

local function lapse_holds(key, ids, now)
    for i = 1, #ids do redis.call('ZADD', key .. ':ends', 'XX', 'LT', digits(now), ids[i]) end
end
