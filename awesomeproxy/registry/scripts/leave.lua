-- node, life, beat ('' for any), record: barriers wait for it no more.
if not member(ARGV[2], ARGV[3]) then return 'STALE' end
if ARGV[4] ~= '' and redis.call('HGET', P..'beats', ARGV[2]) ~= ARGV[4] then return 'STALE' end
redis.call('HDEL', P..'members', ARGV[2]); redis.call('HDEL', P..'beats', ARGV[2])
put('nodes', ARGV[2], ARGV[5]); tell()
for _, name in ipairs(redis.call('HKEYS', P..'awaited')) do redis.call('HDEL', P..'drained:'..name, ARGV[2]); complete(name) end
return 'OK'
