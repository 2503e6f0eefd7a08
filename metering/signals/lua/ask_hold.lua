-- Starts, renews or cancels a call's hold, for a program of the product's own: with terms, and all that is known of the hold.
--
-- KEYS: the org's holds, their ends. ARGV: `start`, `renew` or `cancel`; the call's id; its cents, TTL in seconds and terms.
-- Gives: as hold_call.lua says.
--@include hold_call.lua

local work = ARGV[1] == 'start' and start or ARGV[1] == 'renew' and renew or cancel
local wrong = problem(KEYS, {unpack(ARGV, 2, 4)}, #ARGV == 2 and 1 or 3)
if wrong then return redis.error_reply('ERR ' .. wrong) end
return work(KEYS[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], false)
