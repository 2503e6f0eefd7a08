-- Says that an org's gate changes its state, and notes it in `said`; gives the error if it couldn't be logged.
--
-- KEYS[1]: the log of signals. ARGV[1] to ARGV[3]: the channel, the time, about how many signals the log keeps.
--
-- Nobody may hear the channel, so a failure there is none. Balances are only passed on, so that no double rounds them; whether
-- they close a gate is decided in Python. metering/rules/gates.py has the same names for the changes.
--@include failure.lua
local log, channel, at, log_length = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local said = {}

local function change(held_state, state)
    if state == 'suspended' then return 'org.suspended' end
    if held_state == 'suspended' then return 'org.resumed' end
    return state == 'open' and 'balance.restored' or 'balance.exhausted'
end

local function say(org_id, balance_cents, version, held_state, state)
    local name = change(held_state, state)
    local message = string.format(
        '{"type":"%s","org_id":%s,"state":"%s","balance_cents":%s,"version":%s,"at":"%s"}',
        name, org_id, state, balance_cents, version, at)
    local problem = failure(pcall('XADD', log, 'MAXLEN', '~', log_length, '*', 'signal', message))
    if not problem then
        pcall('PUBLISH', channel, message)
        said[#said + 1] = org_id
        said[#said + 1] = name
    end
    return problem
end
