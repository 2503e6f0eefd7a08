-- A table by names, of names and values in turn.
local function by_name(listed)
    local found = {}
    for i = 1, #listed, 2 do found[listed[i]] = listed[i + 1] end
    return found
end
