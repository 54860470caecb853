-- What all scripts begin with.  KEYS[1] is what our keys begin with.
-- A record is "VERSION BODY"; each change of one has a version of its own, one more than the last.
local P, meta = KEYS[1], KEYS[1]..'meta'
local said = {}
local function text(n) return string.format('%.0f', n) end
local function member(node, life) return redis.call('HGET', P..'members', node) == life end
local function body(record) return record and string.match(record, '^%d+ (.*)$') end
local function put(hash, field, new)
  local v = text(redis.call('HINCRBY', meta, 'version', 1))
  local record = v..' '..new
  if new == '' then redis.call('HDEL', P..hash, field) else redis.call('HSET', P..hash, field, record) end
  redis.call('ZADD', P..'changes', v, hash..'/'..field)
  said[#said + 1] = hash..'/'..field..' '..record
end
local function gate(field, flag, node)                       -- flag: 'hold', 'open' or '' (no placement)
  if flag == '' then return end
  redis.call('DEL', P..'drained:'..field)
  if flag == 'hold' then redis.call('HSET', P..'awaited', field, node) else redis.call('HDEL', P..'awaited', field) end
end
local function tell()
  local head = redis.call('HMGET', meta, 'epoch', 'version')
  local message = head[1]..' '..head[2]..'\n'..table.concat(said, '\n')
  if #said > 0 then redis.call('PUBLISH', P..'changes', message) end
  return message
end
local function complete(name)
  local waiting = redis.call('HGET', P..'awaited', name)
  if waiting and redis.call('HLEN', P..'drained:'..name) == redis.call('HLEN', P..'members') then
    redis.call('PUBLISH', P..'to:'..waiting, 'drained '..name)
  end
end
