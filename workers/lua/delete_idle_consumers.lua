-- Deletes consumers that hold nothing.
--
-- Taken together, so that no entry can be given to the consumer between the look and the deletion: it would be lost to the
-- group.
--
-- KEYS: the stream.
-- ARGV: the group, a consumer that goes at once (or nothing), how long in ms the others must have been idle.
-- Gives: how many were deleted.
--@include by_name.lua

local deleted = 0
for _, pairs in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local consumer = by_name(pairs)
    if consumer.pending == 0 and (consumer.name == ARGV[2] or consumer.idle > tonumber(ARGV[3])) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
        deleted = deleted + 1
    end
end
return deleted
