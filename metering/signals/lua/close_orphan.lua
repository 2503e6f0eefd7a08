-- Closes the open gate of an org that isn't there.
--
-- Only while the gate is as it was read: an org that was made meanwhile keeps its own.
--
-- KEYS: the log of signals; the gate.
-- ARGV: as say.lua takes them; the version that was read, empty where there was none that counts.
-- Gives: the same as follow.lua.
--@include read.lua
--@include write.lua

local seen = version_of(ARGV[4])
if redis.call('EXISTS', KEYS[2]) == 1 then
    local held_state, held_version = read(KEYS[2])
    if held_version == seen and held_state ~= 'exhausted' then
        local version = string.format('%.0f', (held_version or 0) + 1)
        write(KEYS[2], held_state, '0', version, 'exhausted')
    end
end
return {written, failed, first_error, said}
