-- Looks at what orgs hold: forgets what has been lapsed for a day, and tells which holds have lapsed since the last look.
--
-- A look covers only the milliseconds that are over, because another hold may yet lapse within this one. It is kept up to when,
-- where something was told: so each is told once, whoever looks.
--
-- KEYS: the orgs that have holds. ARGV: orgs.
-- Gives: for each org the cents held, how many calls run, how many holds are lapsed, how many have lapsed since the last look,
-- and some of these calls. Of an org that has no holds false; it is taken from the list.
--@include now_ms.lua
--@include forget_lapsed.lua

local CALLS_TOLD = 20

local function is_kind(key, kind)
    local found = redis.call('TYPE', key).ok
    return found == kind or found == 'none'
end

local function look(key, now)
    local ends = key .. ':ends'
    if not is_kind(key, 'hash') or not is_kind(ends, 'zset') then -- somebody else's doing
        redis.call('DEL', key, ends)
    end
    if redis.call('EXISTS', key) == 0 then return false end
    forget_lapsed(key, now)
    local from = '(' .. (redis.call('HGET', key, 'looked_ms') or '0')
    local lapsed = redis.call('ZCOUNT', ends, from, '(' .. digits(now))
    local calls = {}
    if lapsed > 0 then
        calls = redis.call('ZRANGEBYSCORE', ends, from, '(' .. digits(now), 'LIMIT', 0, CALLS_TOLD)
        redis.call('HSET', key, 'looked_ms', digits(now - 1))
    end
    return {
        redis.call('HGET', key, 'cents') or '0', redis.call('ZCOUNT', ends, '(' .. digits(now), '+inf'),
        redis.call('ZCOUNT', ends, '-inf', digits(now)), lapsed, calls,
    }
end

local now, found, lapsed = now_ms(), {}, 0
for i = 1, #ARGV do
    found[i] = look((string.gsub(KEYS[1], '%l+$', ARGV[i])), now)
    if not found[i] then
        redis.call('SREM', KEYS[1], ARGV[i])
    else
        lapsed = lapsed + found[i][4]
    end
end
if lapsed > 0 then redis.call('HINCRBY', (string.gsub(KEYS[1], '%l+$', 'counts')), 'lapsed', lapsed) end
return found
