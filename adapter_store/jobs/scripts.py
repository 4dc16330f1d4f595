"""The Lua scripts of the queue: each one is a step that happens wholly or not at all.

Two habits run through them:

- ``redis.replicate_commands()`` lets a script write after reading the clock on Redis 6.2
  (newer versions always do and ignore the call).
- Scripts that take work *out* of Redis begin with a write that a full Redis allows
  (PERSIST, XACK, XCLAIM); Redis then lets the whole script through. So a Redis that
  refuses new jobs for lack of memory still lets the accepted ones run and finish;
  what they tell on the way (UPDATE, EVENT) is refused, and a worker goes on without.
"""

from __future__ import annotations

from adapter_store.jobs.keys import DEAD_KEPT, EVENTS_KEPT, EVENTS_SECONDS, METRICS_KEPT_AFTER

_TERMINAL = """
local function terminal(status)
  return status == '"succeeded"' or status == '"failed"' or status == '"cancelled"'
end
"""

# KEYS job, stream, index, idempotency
# ARGV id, created_at, 1 if it has an idempotency key, fingerprint, job prefix, 1 to enqueue,
# then field, value, ...
# Returns {'new' or 'known', id, {field, value, ...} of that job} or {'conflict', id}.
SUBMIT = """
redis.replicate_commands()
if redis.call('EXISTS', KEYS[1]) == 1 then return {'known', ARGV[1], redis.call('HGETALL', KEYS[1])} end
if ARGV[3] == '1' then
  local holder = redis.call('GET', KEYS[4])
  local print = holder and redis.call('HGET', ARGV[5] .. holder, '_fingerprint')
  if print then
    if print ~= ARGV[4] then return {'conflict', holder} end
    return {'known', holder, redis.call('HGETALL', ARGV[5] .. holder)}
  end
end
redis.call('HSET', KEYS[1], '_fingerprint', ARGV[4], unpack(ARGV, 7))
if ARGV[6] == '1' then
  redis.call('HSET', KEYS[1], '_entry', redis.call('XADD', KEYS[2], '*', 'job', ARGV[1]))
end
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
if ARGV[3] == '1' then redis.call('SET', KEYS[4], ARGV[1]) end
return {'new', ARGV[1], redis.call('HGETALL', KEYS[1])}
"""

# KEYS stream, dead, fence, writer, buried, holder
# ARGV group, worker, lease ms, max deliveries, job prefix, events prefix, owner
# Returns {'busy', id, entry, fence, owner} of the claim that runs ({'busy'} if that is not told), {'none'} or
# {'claim', id, entry, fence}. One claim at a time per lineage: while the
# writer key lives, nothing is handed out. Entries of dead workers come first, then new ones. A job that was
# asked to stop while it ran is handed out as well: only its next worker can tell whether it had published.
CLAIM = (
    _TERMINAL
    + f"""
redis.replicate_commands()
local stream, dead, fence, writer, buried = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, worker, lease, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('EXISTS', writer) == 1 then
  local held = redis.call('HMGET', KEYS[6], 'job', 'entry', 'token', 'owner')
  if not held[3] or held[3] ~= redis.call('GET', fence) then return {{'busy'}} end
  return {{'busy', held[1], held[2], held[3], held[4]}}
end
redis.call('PERSIST', stream)
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])

local function drop(entry)
  redis.call('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
end
local function bury(entry, job, reason, fields)
  local shown = {{}}
  for i = 1, math.min(#fields, 16) do shown[i] = string.sub(fields[i], 1, 200) end
  drop(entry)
  redis.call('XADD', dead, 'MAXLEN', {DEAD_KEPT}, '*', 'entry', entry, 'job', string.sub(job or '', 1, 200),
    'reason', reason, 'payload', cjson.encode(shown))
  redis.call('INCR', buried)
end
local function fail(job, message)
  redis.call('HSET', ARGV[5] .. job, 'status', '"failed"', 'finished_at', now, 'phase', 'null',
    'estimated_finish', 'null', 'error', cjson.encode({{code = 'too_many_attempts', message = message}}))
  redis.call('XADD', ARGV[6] .. job, 'MAXLEN', {EVENTS_KEPT}, '*', 'level', 'error', 'type', 'message',
    'message', message, 'data', '{{}}')
  redis.call('EXPIRE', ARGV[6] .. job, {EVENTS_SECONDS})
end
local function next_entry()
  local late = redis.pcall('XPENDING', stream, group, 'IDLE', lease, '-', '+', 1)
  if late.err then
    if not string.find(late.err, 'NOGROUP') then return late end
    redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
    late = {{}}
  end
  if late[1] then
    local id, times = late[1][1], late[1][4]
    local found = redis.call('XCLAIM', stream, group, worker, lease, id)
    if found[1] and found[1][2] then return {{id, found[1][2], times + 1}} end
    return {{id, {{}}, times + 1}}
  end
  local fresh = redis.call('XREADGROUP', 'GROUP', group, worker, 'COUNT', 1, 'STREAMS', stream, '>')
  if not fresh then return nil end
  local entry = fresh[1][2][1]
  return {{entry[1], entry[2] or {{}}, 1}}
end

for _ = 1, 1000 do
  local found = next_entry()
  if not found then return {{'none'}} end
  if found.err then return found end
  local entry, fields, times = found[1], found[2], found[3]
  local job
  for i = 1, #fields, 2 do if fields[i] == 'job' then job = fields[i + 1] end end
  local key = job and (ARGV[5] .. job)
  local seen = key and redis.pcall('HMGET', key, 'status', '_entry', 'started_at')
  if not seen or seen.err or not seen[1] then
    bury(entry, job, 'not a job of this queue', fields)
  elseif terminal(seen[1]) or seen[2] ~= entry then
    drop(entry)
  elseif times > limit then
    local message = 'given up: ' .. limit .. ' workers ended while they ran it; see their log, and submit '
      .. 'it again if they were killed from outside'
    bury(entry, job, message, fields)
    fail(job, message)
  else
    local last = tonumber(redis.call('GET', fence) or '0')
    local token = string.format('%.0f', math.max(last + 1, time[1] * 1000 + math.floor(time[2] / 1000)))
    redis.call('SET', fence, token)
    redis.call('SET', writer, token, 'PX', lease)
    redis.call('HSET', KEYS[6], 'job', job, 'entry', entry, 'token', token, 'owner', ARGV[7])
    redis.call('HSET', key, '_fence', token, 'status', '"running"', 'attempts', times,
      'estimated_finish', 'null')
    if not seen[3] or seen[3] == 'null' then redis.call('HSET', key, 'started_at', now) end
    return {{'claim', job, entry, token}}
  end
end
return {{'none'}}
"""
)

# KEYS job, stream, fence, writer   ARGV group, worker, entry, token, lease ms
# XCLAIM to oneself with IDLE 0 restarts the entry's idle time; JUSTID leaves its delivery count alone.
HEARTBEAT = """
redis.replicate_commands()
if redis.call('GET', KEYS[3]) ~= ARGV[4] or redis.call('HGET', KEYS[1], '_fence') ~= ARGV[4] then return 0 end
if redis.call('HGET', KEYS[1], 'status') ~= '"running"' then return 0 end
local mine = redis.call('XCLAIM', KEYS[2], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', 0, 'JUSTID')
if #mine == 0 then return 0 end
redis.call('SET', KEYS[4], ARGV[4], 'PX', ARGV[5])
return 1
"""

# KEYS job, fence   ARGV token, then field, value, ...
UPDATE = (
    _TERMINAL
    + """
local latest, holder = redis.call('GET', KEYS[2]), redis.call('HGET', KEYS[1], '_fence')
if latest ~= ARGV[1] or holder ~= ARGV[1] then return 'lost' end
if terminal(redis.call('HGET', KEYS[1], 'status')) then return 'lost' end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 'ok'
"""
)

# KEYS job, fence, events   ARGV token, level, type, message, data
EVENT = f"""
redis.replicate_commands()
local latest, holder = redis.call('GET', KEYS[2]), redis.call('HGET', KEYS[1], '_fence')
if latest ~= ARGV[1] or holder ~= ARGV[1] then return 'lost' end
local id = redis.call('XADD', KEYS[3], 'MAXLEN', {EVENTS_KEPT}, '*', 'level', ARGV[2], 'type', ARGV[3],
  'message', ARGV[4], 'data', ARGV[5])
redis.call('EXPIRE', KEYS[3], {EVENTS_SECONDS})
return id
"""

# KEYS job, stream, fence, writer   ARGV group, entry, token, then field, value, ...
# A repeat after a lost answer finds the job terminal under its own token: 'ok' again, nothing written.
FINISH = (
    _TERMINAL
    + """
redis.replicate_commands()
if redis.call('HGET', KEYS[1], '_fence') ~= ARGV[3] then return 'lost' end
if terminal(redis.call('HGET', KEYS[1], 'status')) then return 'ok' end
if redis.call('GET', KEYS[3]) ~= ARGV[3] then return 'lost' end
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
return 'ok'
"""
)

# KEYS job, stream, fence, writer   ARGV group, worker, entry, token, lease ms
# The entry looks idle for a whole lease again, with one delivery less, so the next claim takes it at once.
RELEASE = """
redis.replicate_commands()
if redis.call('GET', KEYS[3]) ~= ARGV[4] or redis.call('HGET', KEYS[1], '_fence') ~= ARGV[4] then return 0 end
local seen = redis.call('XPENDING', KEYS[2], ARGV[1], ARGV[3], ARGV[3], 1)
if not seen[1] then return 0 end
local times = math.max(seen[1][4] - 1, 0)
redis.call('XCLAIM', KEYS[2], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', ARGV[5], 'RETRYCOUNT', times, 'JUSTID')
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[1], 'status', '"queued"', 'phase', 'null', 'estimated_finish', 'null',
  'attempts', times, '_fence', '0')
return 1
"""

# KEYS job, stream, fence, writer   ARGV group, worker, entry, token, lease ms
# Lets the lease of a worker that has ended run out now; the delivery counts, as if it had run out by itself.
LAPSE = """
redis.replicate_commands()
if redis.call('GET', KEYS[3]) ~= ARGV[4] or redis.call('HGET', KEYS[1], '_fence') ~= ARGV[4] then return 0 end
redis.call('XCLAIM', KEYS[2], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', ARGV[5], 'JUSTID')
redis.call('DEL', KEYS[4])
return 1
"""

# KEYS job, stream   ARGV group, now
CANCEL = (
    _TERMINAL
    + """
redis.replicate_commands()
local seen = redis.call('HMGET', KEYS[1], 'status', '_entry')
if not seen[1] then return 'missing' end
if terminal(seen[1]) then return 'terminal' end
redis.call('PERSIST', KEYS[1])
if seen[1] == '"running"' then
  redis.call('HSET', KEYS[1], '_cancel', '1')
  return 'flagged'
end
if seen[2] then
  redis.call('XACK', KEYS[2], ARGV[1], seen[2])
  redis.call('XDEL', KEYS[2], seen[2])
end
redis.call('HSET', KEYS[1], '_cancel', '1', 'status', '"cancelled"', 'finished_at', ARGV[2])
return 'cancelled'
"""
)

# KEYS job, events, idempotency   ARGV id, when its keys end in seconds since 1970
# What tells how many samples are prepared comes once a second, too, and counts as metrics.
# Memory comes back only from a stream that is written anew, not from one whose entries are deleted.
RETIRE = (
    _TERMINAL
    + f"""
redis.replicate_commands()
if not terminal(redis.call('HGET', KEYS[1], 'status')) then return 0 end
redis.call('EXPIREAT', KEYS[1], ARGV[2])
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('EXPIREAT', KEYS[3], ARGV[2]) end
local function is_metrics(fields)
  local found = {{}}
  for i = 1, #fields, 2 do found[fields[i]] = fields[i + 1] end
  return found.type == 'metrics' or string.find(found.data or '', '{{"prepared":', 1, true) == 1
end
local entries, metrics = redis.call('XRANGE', KEYS[2], '-', '+'), 0
for _, entry in ipairs(entries) do if is_metrics(entry[2]) then metrics = metrics + 1 end end
if metrics > {METRICS_KEPT_AFTER} then
  local every = math.ceil(metrics / {METRICS_KEPT_AFTER})
  redis.call('DEL', KEYS[2])
  for _, entry in ipairs(entries) do
    if is_metrics(entry[2]) then metrics = metrics - 1 end
    if not is_metrics(entry[2]) or metrics % every == 0 then
      redis.call('XADD', KEYS[2], entry[1], unpack(entry[2]))
    end
  end
end
redis.call('EXPIREAT', KEYS[2], ARGV[2])
return 1
"""
)

# KEYS index   ARGV job prefix, then job ids: those whose record has ended leave the index
PRUNE = """
for i = 2, #ARGV do
  if redis.call('EXISTS', ARGV[1] .. ARGV[i]) == 0 then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
"""

# KEYS events, job   ARGV '(' and the event before, or '', count, 1 for the newest first
# Returns the entries as one JSON text, or 'missing'. As an answer of Redis' own they are nine texts an event,
# and redis-py reads those ten times slower than the json module reads one.
EVENTS = """
local entries
if ARGV[3] == '1' then
  entries = redis.call('XREVRANGE', KEYS[1], ARGV[1] ~= '' and ARGV[1] or '+', '-', 'COUNT', ARGV[2])
else
  entries = redis.call('XRANGE', KEYS[1], ARGV[1] ~= '' and ARGV[1] or '-', '+', 'COUNT', ARGV[2])
end
if #entries > 0 then return cjson.encode(entries) end
if redis.call('EXISTS', KEYS[2]) == 0 then return 'missing' end
return '[]'
"""

# KEYS stream, writer   ARGV group
# Returns {how many entries wait, id of the first of them or ''}. While the writer key lives, the entry that
# was taken or renewed last is the one that runs; what dead or stopped workers left pending waits as well.
WAITING = """
local total = redis.call('XLEN', KEYS[1])
local running = ''
if redis.call('EXISTS', KEYS[2]) == 1 then
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 100)
  local least = math.huge
  for _, entry in ipairs(held.err and {} or held) do
    if entry[3] < least then running, least = entry[1], entry[3] end
  end
end
if running ~= '' and #redis.call('XRANGE', KEYS[1], running, running) == 1 then total = total - 1 end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 2)) do
  if entry[1] ~= running then return {total, entry[1]} end
end
return {total, ''}
"""
