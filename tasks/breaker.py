"""A circuit breaker per sink, shared by the fleet through Redis (docs/decisions/009-independent-sinks.md).

    closed ──▶ open        more than half of the window's calls failed, and at least `breaker_failures_min`
    open ──▶ half-open     the cool-down is over: one call, the probe, is allowed (it holds a lease)
    half-open ──▶ closed   the probe succeeded
    half-open ──▶ open     the probe failed: the cool-down doubles, up to `breaker_cool_seconds_max`

While the breaker is open, tasks are postponed instead of calling the sink, so that no worker process hangs.
Refused rows count as success, because the sink responded. If Redis does not respond, all calls are allowed: the
breaker is an optimization. All times are from the Redis clock. Key: `{prefix}:breaker:{sink}`, a hash.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from tasks.foreign_keys import results
from tasks.settings import Settings
from tasks.wire import SinkName

log = logging.getLogger(__name__)

_NOW = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local key = KEYS[1]
local function field(name) return tonumber(redis.call('HGET', key, name) or '0') end
local function keep(...)
  redis.call('HSET', key, ...)
  redis.call('EXPIRE', key, 3600)
end
"""

# ARGV: the probe's lease, seconds. Returns {kind, seconds to wait, last error}: "closed", "probe" or "open".
_REQUEST_SCRIPT = (
    "#!lua flags=allow-oom\n"
    + _NOW
    + """
local opened_until = field('opened_until')
if opened_until == 0 then return {'closed', '0', ''} end
local error = redis.call('HGET', key, 'error') or ''
if now < opened_until then return {'open', tostring(opened_until - now), error} end
local probe_until = field('probe_until')
if now < probe_until then return {'open', tostring(math.min(probe_until - now, field('cool'))), error} end
keep('probe_until', tostring(now + tonumber(ARGV[1])))
return {'probe', '0', ''}
"""
)

# ARGV: permit ("closed" or "probe"), "1" if it worked, window, failures_min, cool, cool_max, error. Returns the
# state.
_REPORT_SCRIPT = (
    "#!lua flags=allow-oom\n"
    + _NOW
    + """
local permit, worked = ARGV[1], ARGV[2] == '1'
local window, failures_min = tonumber(ARGV[3]), tonumber(ARGV[4])
local cool, cool_max = tonumber(ARGV[5]), tonumber(ARGV[6])
local opened_until = field('opened_until')
if not worked and ARGV[7] ~= '' then keep('error', ARGV[7]) end
if permit == 'probe' then
  if opened_until == 0 then return 'closed' end
  if worked then
    redis.call('DEL', key)
    return 'closed'
  end
  local longer = math.min(field('cool') * 2, cool_max)
  keep('cool', tostring(longer), 'opened_until', tostring(now + longer), 'probe_until', '0')
  return 'open'
end
if opened_until > 0 then return 'open' end
if now - field('window_start') > window then
  if worked then
    redis.call('DEL', key)
    return 'closed'
  end
  keep('window_start', tostring(now), 'worked', '0', 'failed', '0')
elseif worked and field('failed') == 0 then
  return 'closed'
end
redis.call('HINCRBY', key, worked and 'worked' or 'failed', 1)
local failed = field('failed')
if failed >= failures_min and failed > field('worked') then
  keep('cool', tostring(cool), 'opened_until', tostring(now + cool))
  return 'open'
end
return 'closed'
"""
)


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


class BreakerPhase(StrEnum):
    """The phase of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerState:
    """State shown to operators. `failures` in the window; `cool_seconds` until the next probe; last `error`."""

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
        # If a probe does not report because its worker died, another probe is allowed after this time.
        lease_seconds = 2 * self._settings.sink_timeout_seconds + 5
        try:
            kind, wait_seconds, error = self._request_script(keys=[self._key(sink)], args=[lease_seconds])
        except RedisError as failure:
            log.warning("breaker of %s cannot be read, allowing the call: %s", sink, failure)
            return Permit(PermitKind.CLOSED)
        return Permit(PermitKind(_text(kind)), float(wait_seconds), _text(error))

    def report(self, sink: SinkName, permit: Permit, *, worked: bool, error: str = "") -> None:
        """Records the result of a call. `worked`: the sink responded, even if it refused items; otherwise `error`
        is set.
        """
        s = self._settings
        args: list[Any] = [
            permit.kind.value,
            "1" if worked else "0",
            s.breaker_window_seconds,
            s.breaker_failures_min,
            s.breaker_cool_seconds,
            s.breaker_cool_seconds_max,
            error,
        ]
        try:
            state = _text(self._report_script(keys=[self._key(sink)], args=args))
        except RedisError as failure:
            log.warning("breaker of %s cannot be updated: %s", sink, failure)
            return
        if state == BreakerPhase.OPEN:
            log.warning("breaker of %s is open", sink)
        elif permit.kind is PermitKind.PROBE:
            log.warning("breaker of %s is closed again", sink)

    def return_permit(self, sink: SinkName, permit: Permit) -> None:
        """Returns an unused permit, so that another process can make the probe."""
        if permit.kind is PermitKind.PROBE:
            with contextlib.suppress(RedisError):  # on failure, the lease expires
                self._client.hset(self._key(sink), "probe_until", "0")

    def _key(self, sink: SinkName) -> str:
        return _key(self._settings.key_prefix, sink)


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
        """The value, or 0 if another program wrote something that is not a number."""
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
