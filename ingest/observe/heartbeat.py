"""The reader's heartbeat in Redis, shown by `status`, `top` and the operator's page.

`HeartbeatSource` builds the heartbeat from the reader's metrics; `HeartbeatWriter` writes it every
`heartbeat_seconds`. Other releases read the heartbeat, so fields are only ever added, each with a default.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

import msgspec

from ingest.observe.costs import ProjectCost
from ingest.observe.metrics import Metrics
from ingest.observe.snapshot import Snapshot
from ingest.settings import Settings
from tasks.coordination import Coordination
from tasks.release import RELEASE


class UnownedPartition(msgspec.Struct, frozen=True):
    """A partition without an owner. `lag_messages` is -1 if unknown."""

    partition: int
    lag_messages: int = -1


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """One heartbeat. Times are Unix seconds. Rates are over the time since the previous heartbeat.

    `http`: host:port of the health probes. `rejects`: counts by reason since startup. Quantiles are upper edges of
    histogram buckets, or None if there are no values. `decisions_settled`: position in the operators' topic, -1 if
    unknown; all decisions before it were applied to every unsettled batch. `costs`: recent cost by project,
    highest first. `bigquery_write`: the setting of that name, empty if unknown.
    """

    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    seen_at: float = 0.0
    topic: str = ""
    group: str = ""
    http: str = ""
    messages_per_second: float = 0.0
    bytes_per_second: float = 0.0
    end_to_end_p50_seconds: float | None = None
    end_to_end_p99_seconds: float | None = None
    rejects: dict[str, int] = {}
    decisions_settled: int = -1
    snapshot: Snapshot = Snapshot(now=0.0)
    unowned: tuple[UnownedPartition, ...] = ()
    release: str = ""
    costs: tuple[ProjectCost, ...] = ()
    bigquery_write: str = ""


class HeartbeatSource:
    """Builds the next heartbeat from the metrics. Only one thread may use an instance."""

    def __init__(
        self, settings: Settings, metrics: Metrics, unowned: Callable[[], Mapping[int, int]] = dict
    ) -> None:
        """`unowned`: partition without an owner -> lag in messages, -1 if unknown."""
        self._unowned = unowned
        self.http = ""  # set once the HTTP server of the probes is listening
        self._settings = settings
        self._metrics = metrics
        self._at = time.monotonic()
        self._messages = self._bytes = 0.0

    def __call__(self) -> Heartbeat:
        """Returns the next heartbeat. Host, process and times are added by the writer."""
        metrics, now = self._metrics, time.monotonic()
        unowned = self._unowned()
        metrics.unowned(unowned)
        messages = metrics.total("replays.reader.messages_consumed")
        size_bytes = metrics.total("replays.reader.bytes_consumed")
        elapsed = max(now - self._at, 1e-9)
        beat = Heartbeat(
            topic=self._settings.kafka_topic,
            group=self._settings.kafka_group,
            http=self.http,
            messages_per_second=round((messages - self._messages) / elapsed, 1),
            bytes_per_second=round((size_bytes - self._bytes) / elapsed),
            end_to_end_p50_seconds=metrics.quantile("replays.reader.end_to_end_seconds", 0.5),
            end_to_end_p99_seconds=metrics.quantile("replays.reader.end_to_end_seconds", 0.99),
            rejects={k: int(v) for k, v in metrics.by_label("replays.reader.rejects").items() if v},
            snapshot=metrics.snapshot,
            unowned=tuple(UnownedPartition(*partition) for partition in sorted(unowned.items())),
            release=RELEASE,
            costs=metrics.costs,
            bigquery_write=self._settings.bigquery_write,
        )
        self._at, self._messages, self._bytes = now, messages, size_bytes
        return beat


class HeartbeatWriter:
    """Writes the heartbeat of one reader, at most once per `interval_seconds`.

    Every method may raise redis.exceptions.RedisError. A failed heartbeat is due again immediately.
    """

    def __init__(
        self,
        coordination: Coordination,
        reader: str,
        interval_seconds: float,
        source: Callable[[], Heartbeat] = Heartbeat,
    ) -> None:
        self._coordination = coordination
        self._reader = reader
        self._interval_seconds = interval_seconds
        self._source = source
        self._written_at = -interval_seconds
        self._started_at = time.time()

    def write_if_due(self) -> None:
        """Writes a heartbeat if the interval has passed."""
        now = time.monotonic()
        if now - self._written_at < self._interval_seconds:
            return
        beat = msgspec.structs.replace(
            self._source(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._started_at,
            seen_at=self._coordination.now(),
        )
        self._coordination.publish_reader(self._reader, msgspec.json.encode(beat).decode())
        self._written_at = now

    def remove(self) -> None:
        """Removes the reader from the list of readers when the reader ends."""
        self._coordination.remove_reader(self._reader)
