-- A gate's version; nil where it is missing or none that counts. Versions are compared as numbers.
local match, tonumber = string.match, tonumber

-- It and the next one are exact here, where numbers are doubles. metering/signals/gates.py has the same.
local MAX_VERSION = 2 ^ 53 - 2

local function version_of(text)
    local number = text and match(text, '^[0-9]+$') and tonumber(text)
    return number and number <= MAX_VERSION and number or nil
end
