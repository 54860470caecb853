-- node, life, name, generation, report: it has drained.
if not member(ARGV[2], ARGV[3]) then return 'GONE' end
local stored = body(redis.call('HGET', P..'placements', ARGV[4]))
local placed = stored and cjson.decode(stored)
if not placed or placed.mode ~= 'holding' or text(placed.generation) ~= ARGV[5] then return 'STALE' end
redis.call('HSET', P..'drained:'..ARGV[4], ARGV[2], ARGV[6]); complete(ARGV[4])
return 'OK'
