-- epoch seen, run it was seen under, cluster known ('' for none), a fresh id.
-- Another process of Redis begins another epoch: what follows may not follow all that was before.
redis.call('HINCRBY', meta, 'entered', 1)                 -- a replica answers READONLY right here
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local memory = redis.call('INFO', 'memory')
local policy = string.match(memory, 'maxmemory_policy:(%S+)')
if string.match(policy, '^allkeys') and string.match(memory, 'maxmemory:(%d+)') ~= '0' then return 'EVICTS '..policy end
local known = redis.call('HMGET', meta, 'schema', 'cluster', 'epoch', 'run', 'version')
if not known[1] then
  if ARGV[3] ~= '' then return 'EMPTY' end
  known = {'1', ARGV[4], '0', run, '0'}
  redis.call('HSET', meta, 'schema', '1', 'cluster', ARGV[4], 'epoch', '0', 'run', run, 'version', '0')
end
if known[1] ~= '1' then return 'SCHEMA '..known[1] end
if ARGV[3] ~= '' and ARGV[3] ~= known[2] then return 'OTHER '..known[2] end
local epoch, seen = tonumber(known[3]), tonumber(ARGV[1])
if known[4] ~= run or seen > epoch or (seen == epoch and ARGV[2] ~= '' and ARGV[2] ~= known[4]) then
  epoch = math.max(epoch, seen) + 1
  local version = math.max(tonumber(known[5]), epoch * 4294967296)
  redis.call('HSET', meta, 'epoch', text(epoch), 'run', run, 'version', text(version))
  redis.call('HSET', P..'kept', text(epoch), known[5])
  redis.call('DEL', P..'mended')
  for _, name in ipairs(redis.call('HKEYS', P..'awaited')) do redis.call('DEL', P..'drained:'..name) end   -- all report anew
  redis.call('PUBLISH', P..'changes', text(epoch)..' 0\n')   -- others on this server: enter again
end
local now = redis.call('TIME')
local answer = {'OK '..text(epoch)..' '..run..' '..(known[2])..' '..now[1]..' '..now[2]}
local kept = redis.call('HGETALL', P..'kept')
for i = 1, #kept, 2 do answer[#answer + 1] = kept[i]..' '..kept[i + 1] end
return table.concat(answer, '\n')
