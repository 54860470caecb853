-- [[hash, field, version, body, flag]]: what a fail-over has lost, and a node remembers.
for _, p in ipairs(cjson.decode(ARGV[2])) do
  local score = redis.call('ZSCORE', P..'changes', p[1]..'/'..p[2])
  if not score or tonumber(score) < tonumber(p[3]) then put(p[1], p[2], p[4]); gate(p[2], p[5], '') end
end
return 'OK '..tell()
