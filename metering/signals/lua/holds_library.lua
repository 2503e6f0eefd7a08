#!lua name=metering
-- The functions that telephony calls (docs/reference/holds.md#functions): FUNCTION LOAD takes this as one text.
--
-- metering/signals/hold_library.py loads it, in place of an older one only: a change here or in a part is a higher VERSION.
--@include hold_call.lua
local VERSION = 2

local function checked(work, expected)
    return function(keys, args)
        local wrong = problem(keys, args, expected)
        if wrong then return redis.error_reply('ERR ' .. wrong) end
        local told = work(keys[1], args[1], args[2], args[3], '', true)
        return {told[1], told[2], told[3], told[4]}
    end
end

redis.register_function('call_start', checked(start, 3))
redis.register_function('call_renew', checked(renew, 3))
-- It gives memory back, so it may run where none is left.
redis.register_function{function_name = 'call_cancel', callback = checked(cancel, 1), flags = {'allow-oom'}}
redis.register_function{
    function_name = 'metering_version', callback = function() return VERSION end, flags = {'no-writes', 'allow-stale'},
}
