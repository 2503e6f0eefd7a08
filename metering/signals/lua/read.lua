-- A gate's state, false where it has none, its version, and its limit of concurrent calls, false where it has none.
--@include failure.lua
--@include version_of.lua

local function read(key)
    local held = pcall('HMGET', key, 'state', 'version', 'max_concurrent_calls')
    if held.err then -- not a hash: somebody else's doing
        failure(pcall('DEL', key))
        return false, nil, false
    end
    return held[1], version_of(held[2]), held[3]
end
