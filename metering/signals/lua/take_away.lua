--@include digits.lua

-- The cents of a record; 0 where somebody else wrote something there.
local function cents_of(record)
    return tonumber(string.match(record, '^%d+')) or 0
end

-- Takes away those of `ids` that are held; an id may stand there twice. `records` are theirs: false where nothing is held.
--
-- HDEL goes first: it needs no memory, and once a script has written, Redis lets it end where it has none left.
local function take_away(key, ids, records)
    local cents, there, counted = 0, {}, {}
    for i = 1, #ids do
        if records[i] and not counted[ids[i]] then
            counted[ids[i]] = true
            cents = cents + cents_of(records[i])
            there[#there + 1] = ids[i]
        end
    end
    if #there > 0 then
        redis.call('HDEL', key, unpack(there))
        redis.call('ZREM', key .. ':ends', unpack(there))
        if cents > 0 then redis.call('HINCRBY', key, 'cents', digits(-cents)) end
    end
end
