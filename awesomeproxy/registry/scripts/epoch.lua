-- What all but enter go on with.  ARGV[1]: the epoch that the caller has entered.
if redis.call('HGET', meta, 'epoch') ~= ARGV[1] then return 'EPOCH' end
