-- node, life, [[name, generation]]: who has drained them; a write, for WAIT to wait for.
if not member(ARGV[2], ARGV[3]) then return 'GONE' end
local lines, missing = {}, {}
for _, asked in ipairs(cjson.decode(ARGV[4])) do
  local stored = body(redis.call('HGET', P..'placements', asked[1]))
  local placed = stored and cjson.decode(stored)
  if not placed or placed.mode ~= 'holding' or text(placed.generation) ~= asked[2] then return 'STALE' end
  redis.call('HSET', P..'awaited', asked[1], ARGV[2])
  for _, node in ipairs(redis.call('HKEYS', P..'members')) do
    local report = redis.call('HGET', P..'drained:'..asked[1], node)
    if report then lines[#lines + 1] = asked[1]..' '..node..' '..report else missing[#missing + 1] = asked[1]..' '..node end
  end
end
if #missing > 0 then return 'WAIT\n'..table.concat(missing, '\n') end
redis.call('HINCRBY', meta, 'receipts', 1)
return 'OK\n'..table.concat(lines, '\n')
