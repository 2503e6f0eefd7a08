-- Gates as they are. One call for a page: redis-py takes several times as long over a pipeline of as many.
--
-- KEYS: gates.
-- Gives: for each its state, its balance, its version and its limit of concurrent calls, as they are; false for what it hasn't.
local gates = {}
for i = 1, #KEYS do
    local held = redis.pcall('HMGET', KEYS[i], 'state', 'balance_cents', 'version', 'max_concurrent_calls')
    for field = 1, 4 do gates[#gates + 1] = not held.err and held[field] or false end
end
return gates
