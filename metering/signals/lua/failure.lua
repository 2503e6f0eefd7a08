-- What is wrong with an answer of `pcall`'s; nil where nothing is. `pcall` is Redis's, here and in what includes this.
local pcall, type, error = redis.pcall, type, error

local function failure(answer)
    local problem = type(answer) == 'table' and answer.err or nil
    if problem and (
        string.match(problem, '^READONLY') or string.match(problem, '^NOREPLICAS') or string.match(problem, '^MISCONF')
    ) then
        error(answer) -- nothing can be written, so it fails as a whole: the client sees the error, and leaves this server
    end
    return problem
end
