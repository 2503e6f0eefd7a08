-- A gate's state, false where it has none, and its version.
--@include failure.lua
--@include version_of.lua

local function read(key)
    local held = pcall('HMGET', key, 'state', 'version')
    if held.err then -- not a hash: somebody else's doing
        failure(pcall('DEL', key))
        return false, nil
    end
    return held[1], version_of(held[2])
end
