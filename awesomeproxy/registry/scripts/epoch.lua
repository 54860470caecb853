if redis.call('HGET', meta, 'epoch') ~= ARGV[1] then return 'EPOCH' end
