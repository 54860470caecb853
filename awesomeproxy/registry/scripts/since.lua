-- version, limit: the records that were changed later, the earliest first.
local found, lines = redis.call('ZRANGEBYSCORE', P..'changes', '('..ARGV[2], '+inf', 'LIMIT', 0, ARGV[3]), {}
for i, key in ipairs(found) do
  local hash, field = string.match(key, '^(%a+)/(.*)$')
  lines[i] = key..' '..(redis.call('HGET', P..hash, field) or redis.call('ZSCORE', P..'changes', key)..' ')
end
return 'OK '..redis.call('HGET', meta, 'version')..' '..(#found == tonumber(ARGV[3]) and 'more' or 'all')..'\n'..table.concat(lines, '\n')
