-- Says signals that are there as messages.
--
-- Into the log first: nobody may hear the channel, so a failure there is none, and what is only in the log is not lost.
--
-- KEYS: the log of signals.
-- ARGV: the channel, about how many signals the log keeps, then the messages.
for i = 3, #ARGV do
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'signal', ARGV[i])
    redis.pcall('PUBLISH', ARGV[1], ARGV[i])
end
