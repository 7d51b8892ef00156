"""Finds, in Redis, the batch of a message and the sinks that have stored the batch.

Done marks of a settled batch are kept for about an hour. After that, the committed offset still shows that every
message before it is durable in every sink.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import msgspec
from redis.exceptions import RedisError

from ingest.observe.heartbeat import Heartbeat
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.settings import Settings
from tasks.staging import Staging
from tasks.wire import Incompatible, batch_key

SCAN_SECONDS_MAX = 3.0
SCAN_COUNT = 2000


@dataclass(frozen=True, slots=True)
class Journey:
    """One batch in Redis. `sinks`: (number of finished flush tasks, number of all flush tasks) by sink.

    `tasks`: ids of the flush tasks in the latest chords, for Flower. `parked`: the error; "" if the batch is not
    parked.
    """

    batch_id: str
    partition: int
    start: int
    stop: int
    sinks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    parked: str = ""

    def holds(self, partition: int, offset: int) -> bool:
        return self.partition == partition and self.start <= offset < self.stop

    @property
    def durable(self) -> bool:
        """True if all flush tasks of the batch are done."""
        return bool(self.sinks) and all(done == total for done, total in self.sinks.values())


@dataclass(frozen=True, slots=True)
class Journeys:
    """The batches that contain the requested messages. `committed`: committed offset by partition. `error`: why
    the batches could not be read.
    """

    batches: tuple[Journey, ...] = ()
    committed: Mapping[int, int] = field(default_factory=dict)
    error: str = ""

    def of(self, partition: int, offset: int) -> Journey | None:
        """Returns the batch of this message. If several batches contain the message, returns the most complete
        batch."""
        held = [batch for batch in self.batches if batch.holds(partition, offset)]
        return max(held, key=lambda batch: (batch.durable, len(batch.sinks)), default=None)


def journeys(settings: Settings, places: Sequence[tuple[int, int]]) -> Journeys:
    """Returns the batches of the messages at these (partition, offset) pairs. Never raises."""
    client: Any = connect(settings, retries=0)
    try:
        coordination = Coordination(client, settings)
        committed = _committed(coordination)
        keys: set[bytes] = set()
        for partition in sorted({partition for partition, _ in places}):
            keys |= _keys(client, settings, partition, [o for p, o in places if p == partition])
        parked = {batch_id: str(entry.get("error", "")) for batch_id, entry in coordination.parked().items()}
        staging = Staging(client, settings)
        found = [_journey(staging, key, parked) for key in sorted(keys)]
        return Journeys(tuple(batch for batch in found if batch is not None), committed)
    except (RedisError, OSError, msgspec.MsgspecError) as error:
        return Journeys(error=f"redis: {error}")
    finally:
        client.close()


def _committed(coordination: Coordination) -> dict[int, int]:
    """Returns the committed offset of each partition, from heartbeats of active readers."""
    found: dict[int, int] = {}
    for entry in coordination.readers().values():
        with contextlib.suppress(msgspec.ValidationError):  # this entry was not written by a reader
            for state in msgspec.convert(entry, type=Heartbeat, strict=False).snapshot.partitions:
                if state.committed is not None:
                    found[state.partition] = max(state.committed, found.get(state.partition, 0))
    return found


def _keys(client: Any, settings: Settings, partition: int, offsets: Sequence[int]) -> set[bytes]:
    """Returns the keys of staged batches of this partition whose range contains one of the offsets."""
    pattern = batch_key(f"{settings.kafka_topic}-{partition}-*", "*", settings.key_prefix)
    found: set[bytes] = set()
    ends_at, cursor = time.monotonic() + SCAN_SECONDS_MAX, 0
    while time.monotonic() < ends_at:
        cursor, keys = client.scan(cursor, match=pattern, count=SCAN_COUNT)
        for key in keys:
            start, stop = _range(key.decode())
            if any(start <= offset < stop for offset in offsets):
                found.add(key)
        if cursor == 0:
            break
    return found


def _range(key: str) -> tuple[int, int]:
    """Returns (start, stop) from a key `...{topic-partition-start-stop}:digest`; (0, 0) for other keys."""
    _, start, stop = ("", "", *key.partition("{")[2].partition("}")[0].rsplit("-", 2))[-3:]
    return (int(start), int(stop)) if start.isdecimal() and stop.isdecimal() else (0, 0)


def _journey(staging: Staging, key: bytes, parked: Mapping[str, str]) -> Journey | None:
    blobs, rows = staging.client.hmget(key, ["chord/blobs", "chord/rows"])
    try:
        manifest = staging.manifest(key.decode())
    except Incompatible:  # written by a newer release, so only a reader of that release reports it
        return None
    if manifest is None:
        return None
    names = [entry.name for entry in manifest.tasks]
    missing = set(staging.unmarked(manifest, names)) if names else set()
    sinks: dict[str, tuple[int, int]] = {}
    for entry in manifest.tasks:
        done, total = sinks.get(entry.sink, (0, 0))
        sinks[entry.sink] = (done + (entry.name not in missing), total + 1)
    tasks = [
        f"{token.decode()}-{number}"
        for stage, token in (("blobs", blobs), ("rows", rows))
        if token
        for number in range(len(manifest.of_stage(stage)))
    ]
    return Journey(
        manifest.batch_id,
        manifest.partition,
        manifest.start,
        manifest.stop,
        sinks,
        tuple(tasks),
        parked.get(manifest.batch_id, ""),
    )


def flower_url(settings: Settings, batch_id: str) -> str:
    """Returns the URL of Flower's list of this batch's flush tasks. Flower's search requires the name of a
    field."""
    host = f"[{settings.flower_host}]" if ":" in settings.flower_host else settings.flower_host
    return f"http://{host}:{settings.flower_port}/tasks?name={quote(f'flush kwargs:{batch_id}', safe='')}"
