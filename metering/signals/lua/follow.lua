-- Brings gates to what follows from their balances, and says which changed their state.
--
-- One call for a whole batch. Its gates come in the order of their states, so that nothing needs to be said of each; and all
-- their balances and versions as one argument, because thousands cost the client more than the gates do Redis.
--
-- KEYS: the log of signals; then the gates: those to be open first, then those to be closed.
-- ARGV: as say.lua takes them; how many gates are to be open; then for each gate "balance_cents version", with spaces between.
-- Gives: how many gates were written, how many couldn't be, the first error, and what was said: org, state, org, state, ...
--@include read.lua
--@include write.lua

local last_open = 1 + tonumber(ARGV[4])
local each = string.gmatch(ARGV[5], '(%S+) (%S+)')
for i = 2, #KEYS do
    local key, balance_cents, version = KEYS[i], each()
    local held_state, held_version = read(key)
    if not held_version or tonumber(version) > held_version then
        write(key, held_state, balance_cents, version, i <= last_open and 'open' or 'exhausted')
    end
end
return {written, failed, first_error, said}
