-- How long in ms the stream's oldest entry has been there, by Redis's own clock; 0 where there is none.
--
-- The id alone is looked at: the oldest event may be a large one.
--
-- KEYS: the stream.
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not oldest then return 0 end
local time = redis.call('TIME')
return math.max(math.floor(time[1] * 1000 + time[2] / 1000) - tonumber(string.match(oldest[1], '^%d+')), 0)
