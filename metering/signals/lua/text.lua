-- A whole number as text, never as 1e+15.
local function text(number)
    return string.format('%.0f', number)
end
