-- GCRA on the clock of Redis, in whole microseconds. The key holds the instant at which the budget is full again.
-- KEYS[1]: whose budget. ARGV: microseconds of one request; requests of a full budget.
-- Answers: 1 if allowed, else 0; microseconds until the budget is full; microseconds until the next is allowed.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local interval = tonumber(ARGV[1])
local capacity = interval * tonumber(ARGV[2])
local full = tonumber(redis.call('GET', KEYS[1]) or now)
-- Never more than a whole budget ahead, even if the clock was set back or the budget made smaller.
local ahead = math.min(math.max(full - now, 0), capacity)
local wait = ahead + interval - capacity
if wait > 0 then
    return { 0, ahead, wait }
end
ahead = ahead + interval
-- Kept a second longer than needed: keys expire in milliseconds.
redis.call('SET', KEYS[1], string.format('%.0f', now + ahead), 'PX', string.format('%.0f', ahead / 1000 + 1000))
return { 1, ahead, 0 }
