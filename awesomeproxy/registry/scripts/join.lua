-- node, record: be one that barriers wait for, with a life of its own, which is added to the record.
local life = text(redis.call('HINCRBY', P..'lives', ARGV[2], 1))
redis.call('HSET', P..'members', ARGV[2], life); redis.call('HSET', P..'beats', ARGV[2], '0')
for _, name in ipairs(redis.call('HKEYS', P..'awaited')) do redis.call('HDEL', P..'drained:'..name, ARGV[2]) end
put('nodes', ARGV[2], '{"life":'..life..','..string.sub(ARGV[3], 2)); tell()
return 'OK '..life
