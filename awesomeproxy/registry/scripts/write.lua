-- node, life ('' for none), {checks: [[hash, field, version]], puts: [[hash, field, body, flag]],
-- trim?, finished?}: all of it, if what it was made of is still so.
if ARGV[3] ~= '' and not member(ARGV[2], ARGV[3]) then return 'GONE' end
local asked = cjson.decode(ARGV[4])
for _, c in ipairs(asked.checks) do
  local record = redis.call('HGET', P..c[1], c[2])
  if (record and string.match(record, '^%d+') or '0') ~= c[3] then return 'STALE' end
end
for _, p in ipairs(asked.puts) do put(p[1], p[2], p[3]); gate(p[2], p[4], ARGV[2]) end
if asked.trim then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P..'finished', '-inf', asked.trim)) do
    redis.call('HDEL', P..'journal', id); redis.call('ZREM', P..'changes', 'journal/'..id); redis.call('ZREM', P..'finished', id)
  end
end
if asked.finished then redis.call('ZADD', P..'finished', asked.finished, asked.finished) end
return 'OK '..tell()
