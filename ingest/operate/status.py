"""The state of the whole system as Redis shows it: readers, queues, breakers, parked batches.

`collect` is what `replays-ingest status` and `top` print. `Watch` is the reader's own thread that looks at the
same places every heartbeat and turns them into metrics, so that one scrape tells what the fleet has to do.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import structlog
from redis import Redis
from redis.exceptions import RedisError

from celeryconfig import CONTROL_QUEUE, configuration, flush_queue
from ingest.observe.metrics import Metrics
from ingest.observe.snapshot import Snapshot
from ingest.settings import Settings
from tasks.breaker import read_states
from tasks.observe.watch import sinks_key
from tasks.staging import Staging, connect, shortened

log = structlog.get_logger(__name__)

BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}
SILENT_HEARTBEATS_MAX = 3  # after so many a reader is shown as silent


class ReaderStatus(msgspec.Struct, frozen=True):
    """One reader by its last heartbeat, which came `silent_seconds` ago. Rates are per second."""

    reader: str
    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    silent_seconds: float = 0.0
    silent: bool = False
    topic: str = ""
    group: str = ""
    http: str = ""
    messages_per_second: float = 0.0
    bytes_per_second: float = 0.0
    end_to_end_p50_seconds: float | None = None
    end_to_end_p99_seconds: float | None = None
    rejects: dict[str, int] = {}
    snapshot: Snapshot = Snapshot(now=0.0)


class SinkStatus(msgspec.Struct, frozen=True):
    """One sink. `queue_depth`: tasks that wait. Seconds are of recent runs, None when there were none."""

    sink: str
    switched_on: bool
    queue_depth: int = 0
    breaker: str = "closed"
    failures: int = 0
    probe_in_seconds: float = 0.0
    flush_p50_seconds: float | None = None
    flush_max_seconds: float | None = None


class ParkedStatus(msgspec.Struct, frozen=True):
    """One parked batch: unix seconds, and the error of its last attempt."""

    batch_id: str
    stage: str
    attempt: int
    messages: int
    size_bytes: int
    parked_at: float
    retry_at: float
    reader: str
    error: str


class RedisStatus(msgspec.Struct, frozen=True):
    """What Redis says about itself. `max_bytes` 0: unbounded."""

    used_bytes: int
    max_bytes: int
    policy: str
    unacknowledged_tasks: int
    control_queue_depth: int


class Status(msgspec.Struct, frozen=True):
    """Everything at one moment (`at`, unix seconds). `rejects`: by reason, since the readers started."""

    at: float
    readers: tuple[ReaderStatus, ...]
    sinks: tuple[SinkStatus, ...]
    parked: tuple[ParkedStatus, ...]
    redis: RedisStatus
    rejects: dict[str, int]

    @property
    def lag_messages(self) -> int:
        """Of all partitions of all readers that are heard of."""
        return sum(p.lag_messages for r in self.readers if not r.silent for p in r.snapshot.partitions)


def collect(settings: Settings, client: Redis[bytes] | None = None) -> Status:
    """Asks Redis, nothing else; a handful of commands. Raises redis.exceptions.RedisError."""
    client = client or connect(settings)
    depths = queue_depths(settings, client)
    breakers = read_states(client, settings.key_prefix, settings.sinks)
    seen = _json_hash(client, sinks_key(settings))
    staging = Staging(client, settings)
    readers = tuple(
        msgspec.convert(
            {**about, "reader": name, "silent": _is_silent(about, settings)}, type=ReaderStatus, strict=False
        )
        for name, about in staging.readers().items()
    )
    rejects: dict[str, int] = {}
    for reader in readers:
        for reason, messages in reader.rejects.items():
            rejects[reason] = rejects.get(reason, 0) + messages
    return Status(
        at=time.time(),
        readers=readers,
        sinks=tuple(
            SinkStatus(
                sink=sink,
                switched_on=sink in settings.sinks,
                queue_depth=depths.get(flush_queue(sink), 0),
                breaker=state.state,
                failures=state.failures,
                probe_in_seconds=round(state.cool_seconds, 1),
                flush_p50_seconds=seen.get(sink, {}).get("p50_seconds"),
                flush_max_seconds=seen.get(sink, {}).get("max_seconds"),
            )
            for sink, state in breakers.items()
        ),
        parked=tuple(
            msgspec.convert(about, type=ParkedStatus, strict=False) for about in staging.parked().values()
        ),
        redis=_redis(settings, client, depths),
        rejects=rejects,
    )


def _is_silent(about: dict[str, Any], settings: Settings) -> bool:
    return bool(about["silent_seconds"] > SILENT_HEARTBEATS_MAX * settings.heartbeat_seconds)


def _redis(settings: Settings, client: Any, depths: dict[str, int]) -> RedisStatus:
    memory = client.info("memory")
    return RedisStatus(
        used_bytes=int(memory.get("used_memory", 0)),
        max_bytes=int(memory.get("maxmemory", 0)),
        policy=str(memory.get("maxmemory_policy", "")),
        unacknowledged_tasks=int(client.hlen(_broker_prefix(settings) + "unacked")),
        control_queue_depth=depths.get(CONTROL_QUEUE, 0),
    )


def queue_depths(settings: Settings, client: Any) -> dict[str, int]:
    """Tasks that wait, by queue. Raises redis.exceptions.RedisError."""
    queues = [*(flush_queue(sink) for sink in settings.sinks), CONTROL_QUEUE]
    pipe = client.pipeline(transaction=False)
    for queue in queues:
        pipe.llen(_broker_prefix(settings) + queue)
    return dict(zip(queues, pipe.execute(), strict=True))


def _broker_prefix(settings: Settings) -> str:
    return str(configuration(settings)["broker_transport_options"]["global_keyprefix"])


def _json_hash(client: Any, key: str) -> dict[str, Any]:
    return {name.decode(): msgspec.json.decode(text) for name, text in client.hgetall(key).items()}


class About:
    """What a reader says of itself with each heartbeat: its snapshot, and its rates since the last one."""

    def __init__(self, settings: Settings, metrics: Metrics, http: str = "") -> None:
        self.http = http  # where its probes listen, once they do
        self._metrics = metrics
        self._fixed = {"topic": settings.kafka_topic, "group": settings.kafka_group}
        self._at = time.monotonic()
        self._messages = self._bytes = 0.0

    def __call__(self) -> dict[str, Any]:
        metrics, now = self._metrics, time.monotonic()
        messages = metrics.total("replays.reader.messages_consumed")
        size_bytes = metrics.total("replays.reader.bytes_consumed")
        elapsed = max(now - self._at, 1e-9)
        rates = {
            "messages_per_second": round((messages - self._messages) / elapsed, 1),
            "bytes_per_second": round((size_bytes - self._bytes) / elapsed),
        }
        self._at, self._messages, self._bytes = now, messages, size_bytes
        return {
            **self._fixed,
            **rates,
            "http": self.http,
            "end_to_end_p50_seconds": metrics.quantile("replays.reader.end_to_end_seconds", 0.5),
            "end_to_end_p99_seconds": metrics.quantile("replays.reader.end_to_end_seconds", 0.99),
            "rejects": {k: int(v) for k, v in metrics.by_label("replays.reader.rejects").items() if v},
            "snapshot": msgspec.to_builtins(metrics.snapshot),
        }


class Watch:
    """Looks at Redis every heartbeat, for the metrics and for /readyz; never raises, never blocks the loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._client: Any = connect(settings, retries=0)
        self._trouble = "not asked yet"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, within a time-out of Redis."""
        self._stopped.set()
        self._thread.join(timeout=self._settings.redis_timeout_seconds)

    def dependencies(self) -> dict[str, str]:
        """What is wrong with Redis, "" when it answered the last time."""
        return {"redis": self._trouble}

    def look(self) -> None:
        """Once."""
        meters = self._metrics.meters
        try:
            for queue, depth in queue_depths(self._settings, self._client).items():
                meters.set("replays.reader.queue_depth", depth, queue)
            states = read_states(self._client, self._settings.key_prefix, self._settings.sinks)
            for sink, state in states.items():
                meters.set("replays.reader.breaker_state", BREAKER_STATES[state.state], sink)
            memory = self._client.info("memory")
            meters.set("replays.reader.redis_used_bytes", int(memory.get("used_memory", 0)))
            meters.set("replays.reader.redis_max_bytes", int(memory.get("maxmemory", 0)))
            self._trouble = ""
        except (RedisError, OSError) as error:
            self._trouble = shortened(f"{type(error).__name__}: {error}")
        meters.set("replays.reader.redis_up", not self._trouble)
        if self._metrics.snapshot.paused:
            self._metrics.look_at_log(cached=False)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # metrics must not end because one of them could not be read
                log.exception("watch_broken")
            if self._stopped.wait(self._settings.heartbeat_seconds):
                return
