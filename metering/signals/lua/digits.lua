-- A whole number as text, never as 1e+15.
local function digits(number)
    return string.format('%.0f', number)
end
