-- Brings gates to what follows from their balances, and says which changed their state.
--
-- One call for a whole batch. Its gates come in the order of their states, so that nothing needs to be said of each; and all
-- their balances and versions as one argument, because thousands cost the client more than the gates do Redis.
--
-- KEYS: the log of signals; then the gates: those to be open first, then those to be exhausted, then those to be suspended.
-- ARGV: as say.lua takes them; how many gates are to be open, and how many exhausted; then for each gate
-- "balance_cents version", with spaces between; then of those that have a limit of concurrent calls "nth limit", likewise.
-- Gives: how many gates were written, how many couldn't be, the first error, and what was said: org, type, org, type, ...
--@include read.lua
--@include write.lua

local last_open = 1 + tonumber(ARGV[4])
local last_exhausted = last_open + tonumber(ARGV[5])
local each = string.gmatch(ARGV[6], '(%S+) (%S+)')
local limits = {}
for nth, limit in string.gmatch(ARGV[7], '(%S+) (%S+)') do limits[1 + tonumber(nth)] = limit end
for i = 2, #KEYS do
    local key, balance_cents, version = KEYS[i], each()
    local held_state, held_version, held_limit = read(key)
    if not held_version or tonumber(version) > held_version then
        local state = i <= last_open and 'open' or i <= last_exhausted and 'exhausted' or 'suspended'
        local limit, problem = limits[i] or false, nil
        if limit ~= held_limit then
            problem = failure(limit and pcall('HSET', key, 'max_concurrent_calls', limit)
                or pcall('HDEL', key, 'max_concurrent_calls'))
        end
        write(key, held_state, balance_cents, version, state, problem)
    end
end
return {written, failed, first_error, said}
