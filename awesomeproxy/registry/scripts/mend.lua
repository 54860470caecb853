-- [[hash, field, version, body, flag]]: what a fail-over has lost, and a node remembers.  Another may have given
-- back what was earlier: of what is still as it was given back, 'mended' has the version that it had before.
for _, p in ipairs(cjson.decode(ARGV[2])) do
  local key = p[1]..'/'..p[2]
  local has = tonumber(redis.call('ZSCORE', P..'changes', key) or 0)
  local was, given = string.match(redis.call('HGET', P..'mended', key) or '', '^(%d+) (%d+)$')
  if tonumber(given) == has then has = tonumber(was) end
  if has < tonumber(p[3]) then
    put(p[1], p[2], p[4])
    redis.call('HSET', P..'mended', key, p[3]..' '..redis.call('HGET', meta, 'version'))
    if p[5] == 'finished' then redis.call('ZADD', P..'finished', p[2], p[2]) else gate(p[2], p[5], '') end
  end
end
return 'OK '..tell()
