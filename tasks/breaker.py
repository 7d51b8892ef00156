"""A circuit breaker per sink, shared by the fleet through Redis (docs/decisions/009-independent-sinks.md).

    closed ──▶ open        more than half of the window's calls failed, and at least `breaker_failures_min`
    open ──▶ half-open     the cool-down is over: one call, the probe, is allowed (it holds a lease)
    half-open ──▶ closed   the probe succeeded
    half-open ──▶ open     the probe failed: the cool-down doubles, up to `breaker_cool_seconds_max`

While the breaker is open, tasks are postponed until the next probe instead of calling the sink, so that few worker
processes hang. The cool-down starts when the probe starts, not when it ends: a probe that hangs until it is
abandoned does not show whether the sink is still failing at that time. The fleet therefore starts one probe per
cool-down, which by default is four per minute for each sink. Refused rows count as success, because the sink
responded. If Redis does not respond, all calls are allowed: the breaker is an optimization. All times are from the
Redis clock.
Key: `{prefix}:breaker:{sink}`, a hash.

The scripts of `tasks.staging` that begin a task and set its done mark contain the breaker's scripts (`Part`),
because a flush task would otherwise need twice as many round trips. If the breaker's part of such a script fails,
a separate call to the breaker replaces it.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from tasks.foreign_keys import results
from tasks.settings import Settings
from tasks.wire import SinkName

log = logging.getLogger(__name__)

# The last key in KEYS is the breaker's hash.
_FIELDS = """
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local breaker = KEYS[#KEYS]
local function field(name) return tonumber(redis.call('HGET', breaker, name) or '0') end
local function keep(...)
  redis.call('HSET', breaker, ...)
  redis.call('EXPIRE', breaker, 3600)
end
"""

# `lease`: duration of the probe's lease, in seconds. Returns {kind, seconds to wait, last error}: "closed",
# "probe" or "open".
REQUEST = (
    _FIELDS
    + """
local function request(lease)
  local opened_until = field('opened_until')
  if opened_until == 0 then return {'closed', '0', ''} end
  local now, error = clock(), redis.call('HGET', breaker, 'error') or ''
  if now < opened_until then return {'open', tostring(opened_until - now), error} end
  local probe_until = field('probe_until')
  if now < probe_until then return {'open', tostring(math.min(probe_until - now, field('cool'))), error} end
  keep('probe_at', tostring(now), 'probe_until', tostring(now + tonumber(lease)))
  return {'probe', '0', ''}
end
"""
)
_REQUEST_SCRIPT = f"#!lua flags=allow-oom\n{REQUEST}return request(ARGV[1])"

# `permit`: "closed" or "probe". `worked`: "1" if the sink responded. `cool` and `cool_max` are in seconds. Returns
# the state, followed by a space and the seconds until the next probe if the state is open.
REPORT = (
    _FIELDS
    + """
local function open(seconds) return 'open ' .. tostring(math.max(seconds, 0.01)) end
local function report(permit, worked, window, failures_min, cool, cool_max, error)
  worked, window, failures_min = worked == '1', tonumber(window), tonumber(failures_min)
  cool, cool_max = tonumber(cool), tonumber(cool_max)
  local now, opened_until = clock(), field('opened_until')
  if not worked and error ~= '' then keep('error', error) end
  if permit == 'probe' then
    if opened_until == 0 then return 'closed' end
    if worked then
      redis.call('DEL', breaker)
      return 'closed'
    end
    local longer = math.min(field('cool') * 2, cool_max)
    local reopened_until = math.max(field('probe_at') + longer, now)
    keep('cool', tostring(longer), 'opened_until', tostring(reopened_until), 'probe_until', '0')
    return open(reopened_until - now)
  end
  if opened_until > 0 then return open(opened_until - now) end
  if now - field('window_start') > window then
    if worked then
      redis.call('DEL', breaker)
      return 'closed'
    end
    keep('window_start', tostring(now), 'worked', '0', 'failed', '0')
  elseif worked and field('failed') == 0 then
    return 'closed'
  end
  redis.call('HINCRBY', breaker, worked and 'worked' or 'failed', 1)
  local failed = field('failed')
  if failed >= failures_min and failed > field('worked') then
    keep('cool', tostring(cool), 'opened_until', tostring(now + cool))
    return open(cool)
  end
  return 'closed'
end
"""
)
_REPORT_SCRIPT = f"#!lua flags=allow-oom\n{REPORT}return report(unpack(ARGV))"


class PermitKind(StrEnum):
    """What the breaker decided about a call."""

    CLOSED = "closed"
    PROBE = "probe"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Permit:
    """Whether a sink may be called. If the breaker is open: seconds until the next attempt, and the sink's last
    error."""

    kind: PermitKind
    wait_seconds: float = 0.0
    error: str = ""

    @property
    def granted(self) -> bool:
        return self.kind is not PermitKind.OPEN


@dataclass(frozen=True, slots=True)
class Part:
    """A call to a breaker, made within a script of `tasks.staging`. `give_back` returns an unused permit."""

    key: str
    arguments: tuple[Any, ...]
    give_back: Callable[[Permit], None]


class BreakerPhase(StrEnum):
    """The phase of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerState:
    """The state shown to operators. `failures`: failures in the window. `cool_seconds`: time until the next probe.
    `error`: the last error.
    """

    sink: SinkName
    state: BreakerPhase
    failures: int
    cool_seconds: float
    error: str = ""


class Breaker:
    """The breakers of all sinks: queried before each sink call and updated after it. Redis errors are not
    raised."""

    def __init__(self, client: Redis[bytes], settings: Settings) -> None:
        self._settings = settings
        self._client = client
        self._request_script = client.register_script(_REQUEST_SCRIPT)
        self._report_script = client.register_script(_REPORT_SCRIPT)

    def request_permit(self, sink: SinkName) -> Permit:
        """Decides whether this sink may be called now."""
        part = self.request(sink)
        try:
            return read_permit(self._request_script(keys=[part.key], args=part.arguments))
        except RedisError as failure:
            log.warning("breaker of %s cannot be read, allowing the call: %s", sink, failure)
            return Permit(PermitKind.CLOSED)

    def request(self, sink: SinkName) -> Part:
        """Like `request_permit`, but as part of the script of `Staging.begin`."""
        # If a probe has not reported after this time, another probe is allowed, because the worker of the first
        # may have died, or its call may hang until the timeout although the sink has recovered in the meantime.
        lease_seconds = self._settings.breaker_cool_seconds_max
        return Part(self._key(sink), (lease_seconds,), partial(self.release_permit, sink))

    def report(self, sink: SinkName, permit: Permit, *, worked: bool, error: str = "") -> float:
        """Records the result of a call. `worked`: the sink responded, even if it refused items; otherwise `error`
        is set.

        Returns the seconds until the next probe if the breaker is open, otherwise 0.
        """
        part = self.result(sink, permit, worked=worked, error=error)
        try:
            state = _text(self._report_script(keys=[part.key], args=part.arguments))
        except RedisError as failure:
            log.warning("breaker of %s cannot be updated: %s", sink, failure)
            return 0.0
        log_state(sink, permit, state)
        return float(state.partition(" ")[2] or 0.0)

    def result(self, sink: SinkName, permit: Permit, *, worked: bool, error: str = "") -> Part:
        """Like `report`, but as part of the script of `Staging.mark`."""
        s = self._settings
        arguments = (
            permit.kind.value,
            "1" if worked else "0",
            s.breaker_window_seconds,
            s.breaker_failures_min,
            s.breaker_cool_seconds,
            s.breaker_cool_seconds_max,
            error,
        )
        return Part(self._key(sink), arguments, partial(self.release_permit, sink))

    def release_permit(self, sink: SinkName, permit: Permit) -> None:
        """Gives back an unused permit, so that another process can make the probe call."""
        if permit.kind is PermitKind.PROBE:
            with contextlib.suppress(RedisError):  # on failure, the lease expires
                self._client.hset(self._key(sink), "probe_until", "0")

    def _key(self, sink: SinkName) -> str:
        return _key(self._settings.key_prefix, sink)


def read_permit(answer: Sequence[Any]) -> Permit:
    """Returns the permit in the result of `request`."""
    kind, wait_seconds, error = answer
    return Permit(PermitKind(_text(kind)), float(wait_seconds), _text(error))


def log_state(sink: SinkName, permit: Permit, state: str) -> None:
    """Logs the state that a report returned, unless the breaker was closed throughout."""
    if state.startswith(BreakerPhase.OPEN):
        log.warning("breaker of %s is open", sink)
    elif permit.kind is PermitKind.PROBE:
        log.warning("breaker of %s is closed again", sink)


def read_states(client: Redis[bytes], prefix: str, sinks: Iterable[SinkName]) -> dict[SinkName, BreakerState]:
    """Reads the breakers of these sinks in one round trip. Raises redis.exceptions.RedisError."""
    sinks = list(sinks)
    pipe: Any = client.pipeline(transaction=False)
    pipe.time()
    for sink in sinks:
        pipe.hgetall(_key(prefix, sink))
    (seconds, micros), *hashes = results(pipe, {})
    return {sink: _state(sink, found, seconds + micros / 1e6) for sink, found in zip(sinks, hashes, strict=True)}


def _state(sink: SinkName, found: dict[bytes, bytes], now: float) -> BreakerState:
    def number(name: str) -> float:
        """Returns the value, or 0 if another program wrote something that is not a number."""
        try:
            parsed = float(found.get(name.encode(), b"0"))
        except ValueError:
            return 0.0
        return parsed if math.isfinite(parsed) else 0.0

    opened_until = number("opened_until")
    failures = int(number("failed"))
    error = found.get(b"error", b"").decode("utf-8", "replace")
    if not opened_until:
        return BreakerState(sink, BreakerPhase.CLOSED, failures, 0.0, error)
    phase = BreakerPhase.OPEN if now < opened_until else BreakerPhase.HALF_OPEN
    return BreakerState(sink, phase, failures, max(0.0, opened_until - now), error)


def _key(prefix: str, sink: SinkName) -> str:
    return f"{prefix}:breaker:{sink}"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
