-- Brings gates to what follows from their balances, says which changed their state, and ends the holds of calls that were seen.
--
-- One call for a whole batch. Its gates come in the order of their states, so that nothing needs to be said of each; and all
-- their balances and versions as one argument, because thousands cost the client more than the gates do Redis. In one, so that
-- nobody finds a call's money neither spent nor held: where a gate can't follow, its org's holds stay.
--
-- KEYS: the log of signals; then the gates: those to be open first, then those to be exhausted, then those to be suspended.
-- ARGV: as say.lua takes them; how many gates are to be open, and how many exhausted; then for each gate
-- "balance_cents version", with spaces between; then of those that have a limit of concurrent calls "nth limit", likewise; then
-- the calls that have ended, "org=call,call org=call"; then those whose events can't be billed, likewise. The first of these
-- two is `?` where nobody was known to have holds: if somebody has, nothing is done. Last the key of the orgs that have holds: no
-- key of holds is among KEYS, because a user that has no right to those may still have gates follow.
-- Gives: how many gates were written, how many couldn't be, or have holds that couldn't be ended, the first error, and what was
-- said: org, type, org, type, ...; then whether somebody has holds, 1 or 0, or why that can't be asked.
--@include now_ms.lua
--@include end_holds.lua
--@include lapse_holds.lua
local protected = pcall -- Lua's own: from here on the name is Redis's
--@include read.lua
--@include write.lua

local said_calls = ARGV[8] ~= '' or ARGV[9] ~= ''
local somebody_holds = said_calls and pcall('EXISTS', ARGV[10]) or 0
if somebody_holds == 1 and ARGV[8] == '?' then return {0, 0, '', {}, 1} end

local last_open = 1 + tonumber(ARGV[4])
local last_exhausted = last_open + tonumber(ARGV[5])
local each = string.gmatch(ARGV[6], '(%S+) (%S+)')
local limits, not_followed = {}, {}
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
        local failed_before = failed
        write(key, held_state, balance_cents, version, state, problem)
        if failed > failed_before then not_followed[string.match(key, '[0-9]+$')] = true end
    end
end

-- What isn't of its kind is somebody else's doing: it goes, and nothing is left to be ended.
local holds = string.gsub(ARGV[10], '%l+$', '')
local function change_holds(work, orgs, now)
    for org_id, listed in string.gmatch(orgs, '(%d+)=([%d,]+)') do
        local key, ids = holds .. org_id, {}
        for id in string.gmatch(listed, '%d+') do ids[#ids + 1] = id end
        local done, problem = true, nil
        if not not_followed[org_id] then done, problem = protected(work, key, ids, now) end
        if not done then
            problem = type(problem) == 'table' and problem.err or tostring(problem)
            if string.match(problem, 'WRONGTYPE') then
                redis.call('DEL', key, key .. ':ends', key .. ':ended')
            else
                failure({err = problem})
                failed = failed + 1
                if first_error == '' then first_error = problem end
            end
        end
    end
end

if somebody_holds == 1 then
    local now = now_ms()
    change_holds(end_holds, ARGV[8], now)
    change_holds(lapse_holds, ARGV[9], now)
end
return {written, failed, first_error, said, type(somebody_holds) == 'table' and somebody_holds.err or somebody_holds}
