-- node, life.
if not member(ARGV[2], ARGV[3]) then return 'GONE' end
redis.call('HINCRBY', P..'beats', ARGV[2], 1)
local now = redis.call('TIME')
return 'OK '..redis.call('HGET', meta, 'version')..' '..now[1]..' '..now[2]
