-- Takes entries out of the group and out of the stream.
--
-- In one, so that an entry is either still to be finished or gone; and many entries by one command: one for each would cost
-- Redis, and its append-only file, twice as much. Where not all of them were pending, what was never delivered stays: it only
-- bears the id of one that was.
--
-- KEYS: the stream. ARGV: the group, then the entries' ids.
-- Gives: how many were pending.
--@include by_name.lua

local function parts(id)
    local ms, number = string.match(id, '^(%d+)-(%d+)$')
    return tonumber(ms), tonumber(number)
end

local function delivered(ids)
    local answer, found = redis.pcall('XINFO', 'GROUPS', KEYS[1]), {}
    for _, pairs in ipairs(answer) do
        local group = by_name(pairs)
        if group.name == ARGV[1] then
            local last_ms, last_number = parts(group['last-delivered-id'])
            for _, id in ipairs(ids) do
                local ms, number = parts(id)
                if ms < last_ms or (ms == last_ms and number <= last_number) then found[#found + 1] = id end
            end
        end
    end
    return found
end

local ids = {unpack(ARGV, 2)}
local acked = redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
if acked < #ids then ids = delivered(ids) end
if #ids > 0 then redis.call('XDEL', KEYS[1], unpack(ids)) end
return acked
