-- The key of an org's holds: the part before the org's id, the id, and the key of its gate, which differs by one word. Nil for
-- what is no org's.
local function org_parts(key)
    local before, word, org_id = string.match(key, '^(.-)(%l+):([1-9]%d*)$')
    if word ~= 'holds' then return nil end
    return before .. word .. ':', org_id, before .. 'gate' .. ':' .. org_id
end
