-- Writes a gate, and says so first if it changes its state: if one of the two fails, it is said twice rather than never.
--
-- A gate that fails is passed over: the others have a right to be followed. Redis answers nobody while a script runs: a state
-- that stays isn't written again, which saves a tenth. With a `problem`, which the gate had before, it fails.
--@include failure.lua
--@include say.lua
local written, failed, first_error = 0, 0, ''

local function write(key, held_state, balance_cents, version, state, problem)
    if not problem and state ~= (held_state or 'exhausted') then
        problem = say(string.match(key, '[0-9]+$'), balance_cents, version, held_state, state) -- a gate's key ends with its org
    end
    if not problem then
        if state == held_state then
            problem = failure(pcall('HSET', key, 'balance_cents', balance_cents, 'version', version))
        else
            problem = failure(pcall('HSET', key, 'state', state, 'balance_cents', balance_cents, 'version', version))
        end
    end
    if not problem then
        written = written + 1
    else
        failed = failed + 1
        if first_error == '' then first_error = problem end
    end
end
