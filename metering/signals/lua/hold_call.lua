-- Starting, renewing and cancelling the hold of one call (docs/reference/holds.md has what is promised).
--
-- holds:ORG is a hash of call id -> "cents since_ms available_cents terms", and of `cents` (all holds together), `last_ms` (when
-- the org last took one), `looked_ms` (up to when lapsed ones were told of) and `ended_until_ms`. holds:ORG:ends has when each
-- ends, holds:ORG:ended when the event of a call was seen. An end that is to come: the call runs. One that is past: the hold is
-- lapsed, and counts for a day.
-- Records, ids and times are text; cents and milliseconds are exact as numbers, which are doubles, up to 2^53.
--
-- While a function library is loaded, Redis hasn't given it `string` and `redis.call` yet, so locals here can't hold them.
--
-- Each gives: what came of it, then of the org, after that, what is available and held in cents and how many calls run; then
-- whether the hold is new, the time, and the call's record and end, false where it isn't held.
--@include now_ms.lua
--@include forget_lapsed.lua
--@include keep.lua
--@include org_parts.lua

local MAX_EXACT = 2 ^ 53 - 1
local MAX_CALL_ID = '9223372036854775807'
local MAX_TTL_SECONDS = 691200 -- eight days: no event tells of a call of more than seven

local function whole(value, lowest, highest)
    local number = string.match(value, '^%d+$') and #value <= 16 and tonumber(value)
    return number and number >= lowest and number <= highest and number or nil
end

-- What is wrong with what was asked; nil where nothing is.
local function problem(keys, args, expected)
    if #keys ~= 2 or not org_parts(keys[1]) or keys[2] ~= keys[1] .. ':ends' then
        return 'the keys must be 2 holds:ORG_ID holds:ORG_ID:ends'
    end
    if #args ~= expected then
        return expected == 1 and 'the argument must be CALL_ID' or 'the arguments must be CALL_ID CENTS TTL_SECONDS'
    end
    local id = args[1]
    if not string.match(id, '^[1-9]%d*$') or #id > #MAX_CALL_ID or (#id == #MAX_CALL_ID and id > MAX_CALL_ID) then
        return 'CALL_ID must be an integer from 1 to ' .. MAX_CALL_ID
    end
    if expected == 1 then return nil end
    if not whole(args[2], 0, MAX_EXACT) then return 'CENTS must be an integer from 0 to ' .. digits(MAX_EXACT) end
    if not whole(args[3], 1, MAX_TTL_SECONDS) then
        return 'TTL_SECONDS must be an integer from 1 to ' .. digits(MAX_TTL_SECONDS)
    end
end

-- The org's gate, and what its calls hold. A balance that no number here can be exact for counts as the nearest that can.
local function look_up(key, id, now)
    forget_lapsed(key, now)
    local _, _, gate = org_parts(key)
    local asked = redis.call('HMGET', gate, 'state', 'balance_cents', 'max_concurrent_calls')
    local held = redis.call('HMGET', key, id, 'cents', 'last_ms')
    local ends = tonumber(redis.call('ZSCORE', key .. ':ends', id) or nil)
    local record = held[1]
    if record and (not ends or ends <= now - DAY_MS) then -- there were more to forget than one call does
        take_away(key, {id}, {record})
        return look_up(key, id, now)
    end
    local balance = string.match(asked[2] or '', '^-?%d+$') and tonumber(asked[2]) or 0
    return {
        now = now, id = id, record = record, ends = record and ends, is_new_org = not held[3],
        state = asked[1], most = asked[3] and (tonumber(asked[3]) or 0),
        balance = math.max(-MAX_EXACT, math.min(MAX_EXACT, balance)),
        held = tonumber(held[2] or nil) or 0,
        running = redis.call('ZCOUNT', key .. ':ends', '(' .. digits(now), '+inf'),
    }
end

local function answer(org, outcome, is_new)
    return {
        outcome, org.balance - org.held, org.held, org.running,
        is_new and 1 or 0, org.now, org.record or false, org.ends and digits(org.ends) or false,
    }
end

-- An event seen a day ago is seen no more, be it still there.
local function has_ended(key, org)
    local seen = redis.call('ZSCORE', key .. ':ended', org.id)
    return seen and tonumber(seen) > org.now - DAY_MS
end

local function count(key, what)
    redis.call('HINCRBY', org_parts(key) .. 'counts', what, 1)
end

local function refuse(key, org, outcome, cents, notes)
    count(key, outcome)
    if notes and outcome == 'insufficient' then
        local all, org_id = org_parts(key)
        redis.call('HSETNX', all .. 'refused', org_id, digits(org.now) .. ' ' .. org.id .. ' ' .. cents)
    end
    return answer(org, outcome)
end

local function grant(key, org, cents, ttl_seconds, terms)
    local is_new = not org.record
    local before = is_new and 0 or cents_of(org.record)
    if is_new or org.ends <= org.now then org.running = org.running + 1 end
    org.held = org.held - before + tonumber(cents)
    -- When it was first held, and what was available after that: what a repeat of the first asking is told.
    local first = not is_new and string.match(org.record, '^%d+ (%d+ %-?%d+)')
        or digits(org.now) .. ' ' .. digits(org.balance - org.held)
    org.record = digits(tonumber(cents)) .. ' ' .. first .. ' ' .. terms
    org.ends = org.now + tonumber(ttl_seconds) * 1000
    redis.call('HSET', key, org.id, org.record, 'cents', digits(org.held), 'last_ms', digits(org.now))
    redis.call('ZADD', key .. ':ends', digits(org.ends), org.id)
    keep(key, org.ends + DAY_MS)
    keep(key .. ':ends', org.ends + DAY_MS)
    if org.is_new_org then
        local all, org_id = org_parts(key)
        redis.call('SADD', all .. 'orgs', org_id)
    end
    if is_new then count(key, 'started') end
    return answer(org, 'granted', is_new)
end

-- `notes`: whether a refusal for want of money is left for the jobs.
local function start(key, id, cents, ttl_seconds, terms, notes)
    local org = look_up(key, id, now_ms())
    if org.record then return answer(org, 'granted') end
    if has_ended(key, org) then return refuse(key, org, 'ended') end
    if org.state == 'suspended' then return refuse(key, org, 'suspended') end
    if org.state ~= 'open' then return refuse(key, org, 'exhausted') end
    if org.most and org.running >= org.most then return refuse(key, org, 'too_many_calls') end
    if tonumber(cents) > org.balance - org.held then return refuse(key, org, 'insufficient', cents, notes) end
    return grant(key, org, cents, ttl_seconds, terms)
end

-- What takes no more than is held takes nothing. A call that isn't known (Redis was emptied) is held anew.
local function renew(key, id, cents, ttl_seconds, terms, notes)
    local org = look_up(key, id, now_ms())
    local before = 0
    if org.record then
        before = cents_of(org.record)
        if tonumber(cents) <= before then return grant(key, org, cents, ttl_seconds, terms) end
    else
        if has_ended(key, org) then return refuse(key, org, 'ended') end
        if org.state == 'suspended' then return refuse(key, org, 'suspended') end
        if not org.state then return refuse(key, org, 'exhausted') end
    end
    if tonumber(cents) - before > org.balance - org.held then return refuse(key, org, 'insufficient', cents, notes) end
    return grant(key, org, cents, ttl_seconds, terms)
end

local function cancel(key, id)
    take_away(key, {id}, redis.call('HMGET', key, id))
    return answer(look_up(key, id, now_ms()), 'ended')
end
