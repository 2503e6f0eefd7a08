-- Takes away notes of refusals that are as they were read.
--
-- KEYS: the refusals. ARGV: org, note, org, note, ...
for i = 1, #ARGV, 2 do
    if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
