-- Returns what a dead worker had in hand to its queues, and forgets the worker.
--
-- KEYS: the heartbeats; then for each queue what the worker has in hand of it, the queue, and the queue's messages.
-- ARGV: the worker, and the time in ms since when it must not have been heard of.
-- Gives: how many messages went back.
local heard_ms = redis.call('zscore', KEYS[1], ARGV[1])
if not heard_ms or tonumber(heard_ms) > tonumber(ARGV[2]) then
    return 0
end
local returned = 0
for at = 2, #KEYS, 3 do
    local in_hand, queue, messages = KEYS[at], KEYS[at + 1], KEYS[at + 2]
    for _, message_id in ipairs(redis.call('smembers', in_hand)) do
        if redis.call('hexists', messages, message_id) == 1 then
            redis.call('rpush', queue, message_id)
            returned = returned + 1
        end
    end
    redis.call('del', in_hand)
end
redis.call('zrem', KEYS[1], ARGV[1])
return returned
