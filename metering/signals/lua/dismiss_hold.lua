-- Takes away a hold that is lapsed.
--
-- KEYS: the org's holds, their ends. ARGV: the call's id.
-- Gives: the hold's record and end; nothing where none is lapsed.
--@include now_ms.lua
--@include take_away.lua

local ends = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not ends or tonumber(ends) > now_ms() then return {} end
local record = redis.call('HGET', KEYS[1], ARGV[1])
take_away(KEYS[1], {ARGV[1]}, {record})
return record and {record, digits(tonumber(ends))} or {}
