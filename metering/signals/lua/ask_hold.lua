-- Starts, renews, extends or cancels a call's hold, for a program of the product's own: with terms, and all that is known of the
-- hold.
--
-- KEYS: the org's holds, their ends. ARGV: `start`, `renew`, `extend` or `cancel`; the call's id; its cents, TTL in seconds and
-- terms.
-- Gives: as hold_call.lua says.
--@include hold_call.lua

-- As renew, but never to less, nor for shorter: a renewal may reach Redis late, after a longer one that was answered meanwhile.
local function extend(key, id, cents, ttl_seconds, terms, notes)
    local before = look_up(key, id, now_ms())
    if before.record and tonumber(cents) < cents_of(before.record) then
        cents, terms = digits(cents_of(before.record)), string.match(before.record, '^%d+ %d+ %-?%d+ (.*)$') or ''
    end
    local told = renew(key, id, cents, ttl_seconds, terms, notes)
    if told[1] == 'granted' and before.ends and tonumber(told[8]) < before.ends then
        redis.call('ZADD', key .. ':ends', digits(before.ends), id)
        told[8] = digits(before.ends)
    end
    return told
end

local work = ({start = start, renew = renew, extend = extend, cancel = cancel})[ARGV[1]]
local wrong = problem(KEYS, {unpack(ARGV, 2, 4)}, #ARGV == 2 and 1 or 3)
if wrong then return redis.error_reply('ERR ' .. wrong) end
return work(KEYS[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], false)
