"""System state from Redis: readers, queues, breakers, parked batches.

`replays-ingest status` and `top` print this state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from redis import Redis

from ingest.core.model import Stage
from ingest.observe.costs import NONE, OTHER, ProjectCost
from ingest.observe.fleet import RedisMemory, broker_prefix, queue_depths, redis_memory
from ingest.observe.heartbeat import Heartbeat, UnownedPartition
from ingest.settings import Settings
from tasks.breaker import BreakerPhase, read_states
from tasks.connection import connect
from tasks.coordination import UNREADABLE, Coordination
from tasks.errors import shortened
from tasks.faults import Fault
from tasks.foreign_keys import results
from tasks.names import CONTROL_QUEUE, flush_queue
from tasks.observe.presence import WorkerStatus, consumers, workers
from tasks.observe.watch import sinks_key

SILENT_HEARTBEATS_MAX = 3  # a reader counts as silent after this many missed heartbeats


class ReaderStatus(Heartbeat, frozen=True, kw_only=True):
    """One reader, from its last heartbeat, which is `silent_seconds` old."""

    reader: str
    silent_seconds: float = 0.0
    silent: bool = False


class SinkStatus(msgspec.Struct, frozen=True):
    """One sink. `queue_depth`: waiting tasks. `workers`: workers that consume the sink's queue. `error`: the
    breaker's last error.

    `flush_p50_seconds` and `flush_max_seconds` are durations of recent runs, or None if there were no runs.
    """

    sink: str
    switched_on: bool
    queue_depth: int = 0
    breaker: BreakerPhase = BreakerPhase.CLOSED
    failures: int = 0
    probe_in_seconds: float = 0.0
    flush_p50_seconds: float | None = None
    flush_max_seconds: float | None = None
    workers: int = 0
    error: str = ""


class ParkedStatus(msgspec.Struct, frozen=True):
    """One parked batch. Times are in Unix seconds, and `error` is the last error. `first_parked_at`: 0 if
    unknown."""

    batch_id: str
    stage: Stage
    attempt: int
    messages: int
    size_bytes: int
    parked_at: float
    retry_at: float
    reader: str
    error: str
    first_parked_at: float = 0.0


class RedisStatus(RedisMemory, frozen=True, kw_only=True):
    """Memory of Redis. `max_bytes` is 0 if unbounded."""

    unacknowledged_tasks: int
    control_queue_depth: int


class Status(msgspec.Struct, frozen=True):
    """The whole state at one point in time (`at`, in Unix seconds). `rejects`: number of rejects by reason, since
    the readers started.

    `unowned`: partitions without an owner when the readers last described their group. `queues_without_worker`:
    queues of enabled sinks, or `control`, that no worker consumes. `costs`: recent cost by project over all active
    readers. `faults`: servers other than Redis that this process cannot use; `collect` does not query these
    servers. `from_local_stack`: the servers are those of a running local stack, because none are configured.
    """

    at: float
    readers: tuple[ReaderStatus, ...]
    sinks: tuple[SinkStatus, ...]
    parked: tuple[ParkedStatus, ...]
    redis: RedisStatus
    rejects: dict[str, int]
    workers: tuple[WorkerStatus, ...] = ()
    unowned: tuple[UnownedPartition, ...] = ()
    queues_without_worker: tuple[str, ...] = ()
    costs: tuple[ProjectCost, ...] = ()
    faults: tuple[Fault, ...] = ()
    from_local_stack: bool = False

    @property
    def lag_messages(self) -> int | None:
        """Total lag over partitions of active readers. None until these readers have reported their partitions and
        the log end of each partition.
        """
        partitions = [p for r in self.readers if not r.silent for p in r.snapshot.partitions]
        if not partitions or any(p.high < 0 for p in partitions):
            return None
        return sum(p.lag_messages for p in partitions)


def collect(settings: Settings, client: Redis[bytes] | None = None) -> Status:
    """Reads the state from Redis only, with a few commands. Raises redis.exceptions.RedisError."""
    client = client or connect(settings)
    depths = queue_depths(settings, client)
    breakers = read_states(client, settings.key_prefix, settings.sinks)
    seen = _runs(client, sinks_key(settings))
    coordination = Coordination(client, settings)
    readers = tuple(_readers(coordination, settings))
    rejects: dict[str, int] = {}
    for reader in readers:
        for reason, messages in reader.rejects.items():
            rejects[reason] = rejects.get(reason, 0) + messages
    fleet = workers(coordination, settings)
    consumed = consumers(fleet, settings.sinks)
    return Status(
        at=coordination.now(),
        readers=readers,
        sinks=tuple(
            SinkStatus(
                sink=sink,
                switched_on=sink in settings.sinks,
                queue_depth=depths.get(flush_queue(sink), 0),
                workers=consumed.get(flush_queue(sink), 0),
                breaker=state.state,
                failures=state.failures,
                probe_in_seconds=round(state.cool_seconds, 1),
                error=shortened(state.error),
                flush_p50_seconds=seen.get(sink, NO_RUNS).p50_seconds,
                flush_max_seconds=seen.get(sink, NO_RUNS).max_seconds,
            )
            for sink, state in breakers.items()
        ),
        parked=tuple(
            msgspec.convert(entry, type=ParkedStatus, strict=False) for entry in coordination.parked().values()
        ),
        redis=_redis(settings, client, depths),
        rejects=rejects,
        workers=fleet,
        unowned=_unowned(readers),
        queues_without_worker=tuple(queue for queue, count in consumed.items() if not count),
        costs=costs(reader.costs for reader in readers if not reader.silent),
        from_local_stack=settings.from_local_stack,
    )


def costs(reader_costs: Iterable[Iterable[ProjectCost]]) -> tuple[ProjectCost, ...]:
    """Sums the costs by project: highest CPU first, then `none` and `other`.

    If a reader does not list a project, its cost remains in `other`.
    """
    found: dict[str, ProjectCost] = {}
    for cost in (cost for costs in reader_costs for cost in costs):
        so_far = found.get(cost.project, ProjectCost(cost.project))
        found[cost.project] = ProjectCost(
            cost.project,
            so_far.cpu_seconds + cost.cpu_seconds,
            so_far.bytes_per_second + cost.bytes_per_second,
            so_far.rows_per_second + cost.rows_per_second,
        )
    return tuple(
        sorted(found.values(), key=lambda cost: (cost.project == OTHER, cost.project == NONE, -cost.cpu_seconds))
    )


def _unowned(readers: Iterable[ReaderStatus]) -> tuple[UnownedPartition, ...]:
    """Merges the unowned partitions that the readers reported, without duplicates. The reports can differ, because
    readers describe their group at different times.
    """
    found = {unowned.partition: unowned for reader in readers if not reader.silent for unowned in reader.unowned}
    return tuple(found[partition] for partition in sorted(found))


def _is_silent(entry: dict[str, Any], settings: Settings) -> bool:
    return bool(entry["silent_seconds"] > SILENT_HEARTBEATS_MAX * settings.heartbeat_seconds)


def _redis(settings: Settings, client: Any, depths: dict[str, int]) -> RedisStatus:
    unacked = client.pipeline(transaction=False).hlen(broker_prefix(settings) + "unacked")
    (unacknowledged,) = results(unacked, 0)
    return RedisStatus(
        **msgspec.structs.asdict(redis_memory(client)),
        unacknowledged_tasks=int(unacknowledged),
        control_queue_depth=depths.get(CONTROL_QUEUE, 0),
    )


class _Runs(msgspec.Struct, frozen=True):
    """Durations of recent runs of one sink, as written by the reader."""

    p50_seconds: float | None = None
    max_seconds: float | None = None


NO_RUNS = _Runs()


def _runs(client: Any, key: str) -> dict[str, _Runs]:
    """Returns the durations by sink. Invalid entries are ignored, so that valid entries are still shown."""
    found: dict[str, _Runs] = {}
    (texts,) = results(client.pipeline(transaction=False).hgetall(key), {})
    for name, text in texts.items():
        with contextlib.suppress(*UNREADABLE):
            found[name.decode()] = msgspec.json.decode(text, type=_Runs)
    return found


def _readers(coordination: Coordination, settings: Settings) -> Iterator[ReaderStatus]:
    """Yields the readers as of their last heartbeats. Invalid entries are ignored."""
    for name, entry in coordination.readers().items():
        fields = {**entry, "reader": name, "silent": _is_silent(entry, settings)}
        with contextlib.suppress(msgspec.ValidationError):
            yield msgspec.convert(fields, type=ReaderStatus, strict=False)
