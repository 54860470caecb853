-- name: the fields and values of a hash.
local all, lines = redis.call('HGETALL', P..ARGV[2]), {}
for i = 1, #all, 2 do lines[#lines + 1] = all[i]..' '..all[i + 1] end
return 'OK\n'..table.concat(lines, '\n')
