-- Redis's clock, in milliseconds: when a hold ends is Redis's own affair, so that no other clock has a part in it.
local function now_ms()
    local at = redis.call('TIME')
    return at[1] * 1000 + math.floor(at[2] / 1000)
end
