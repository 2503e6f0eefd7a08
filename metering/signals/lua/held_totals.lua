-- What the calls of orgs hold.
--
-- KEYS: orgs' holds. Gives: for each the cents held, how many calls run, and how many holds are lapsed.
--@include now_ms.lua
--@include forget_lapsed.lua

local now, totals = now_ms(), {}
for i = 1, #KEYS do
    forget_lapsed(KEYS[i], now)
    local ends = KEYS[i] .. ':ends'
    totals[#totals + 1] = redis.call('HGET', KEYS[i], 'cents') or '0'
    totals[#totals + 1] = redis.call('ZCOUNT', ends, '(' .. digits(now), '+inf')
    totals[#totals + 1] = redis.call('ZCOUNT', ends, '-inf', digits(now))
end
return totals
