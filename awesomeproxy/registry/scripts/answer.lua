-- node, question, who has asked, answers expected, answer.
local key = P..'answers:'..ARGV[3]
redis.call('HSET', key, ARGV[2], ARGV[6]); redis.call('EXPIRE', key, 60)
if redis.call('HLEN', key) == tonumber(ARGV[5]) then redis.call('PUBLISH', P..'to:'..ARGV[4], 'answered '..ARGV[3]) end
return 'OK'
