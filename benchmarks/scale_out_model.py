"""Simulates a deployment that spans several machines, from measured costs per segment. No servers run.

Batch size: a discrete-event simulation of one reader that follows the rules of the core (`_on_tick` and
`_cut_early` in ingest/core/pipeline.py, `cut_if_due` and `cut_if_due_early` in ingest/core/batching.py): a batch
is cut when it is full or 2 s old. At most 8 times per second, a batch is also cut when it is 0.5 s old and the
reader has fewer than four batches in flight. Messages arrive at equal intervals; a batch is in flight for a base
time plus its workers' CPU time.

Queues: the reader and Redis are modelled as M/D/1 (one thread, random arrivals, constant service time). A shard's
worker processes are modelled as an M/D/c queue, with Sakasegawa's approximation and half the wait of exponential
service times.

The numbers of processes are chosen so that each core's utilization is at most `utilization`. The cost per segment
decreases as batches grow, so the numbers of processes and the batch size are computed alternately until they
converge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ingest.core.limits import Limits

TICK_SECONDS = 0.05
SIMULATED_SECONDS = 60.0
SETTLED_SECONDS = 10.0
ROUNDS_MAX = 8


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time of one role, in microseconds: per segment, and per batch."""

    segment: float
    batch: float

    def at(self, segments: float) -> float:
        """Microseconds per segment in batches of this size."""
        return self.segment + self.batch / segments

    @classmethod
    def through(cls, one: tuple[float, float], other: tuple[float, float]) -> Cost:
        """Returns the cost per segment and per batch, computed from two measurements. A measurement is a pair:
        (segments per batch, microseconds per segment).

        Neither part is negative: if the cost does not fall with the size of the batch, all of it is per segment.
        """
        (small, dear), (large, cheap) = sorted((one, other))
        if large <= small or dear <= cheap:
            return cls(max(0.0, (dear + cheap) / 2), 0.0)
        batch = (dear - cheap) / (1 / small - 1 / large)
        segment = cheap - batch / large
        return cls(segment, batch) if segment >= 0 else cls(0.0, (small * dear + large * cheap) / 2)


@dataclass(frozen=True, slots=True)
class Quotas:
    """The limits of the stores, as documented by their vendors. All of them are parameters of the simulation.

    `gcs_writes`: object writes per second to a new bucket, a rate that may double every `gcs_doubling_minutes`
    (https://cloud.google.com/storage/docs/request-rate). `clickhouse_inserts`: inserts per second per server
    (https://clickhouse.com/docs/optimize/bulk-inserts: about one). `bigquery_*_bytes`: bytes per second per
    project in the US and EU multi-regions, and `bigquery_connections`: concurrent connections of the Storage Write
    API (https://cloud.google.com/bigquery/quotas).
    """

    gcs_writes: float = 1000.0
    gcs_doubling_minutes: float = 20.0
    clickhouse_inserts: float = 1.0
    bigquery_insert_all_bytes: float = 1e9
    bigquery_storage_bytes: float = 3e9
    bigquery_connections: int = 10_000


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of the simulation.

    The default costs are those in docs/performance.md for the layout `segment` with all sinks: 360 µs (reader),
    184 µs (worker) and 42 µs (Redis) per segment, in batches of 650 segments. The shares of these costs that are
    fixed per batch were measured with benchmarks/dispatch.py and `benchmarks/scale_out.py --check`. Measure the
    costs of your own system. `value_bytes`: bytes of a segment in Kafka and in Redis. `json_bytes` and
    `proto_bytes`: bytes of its BigQuery rows for insertAll and for the Storage Write API (12.9 rows,
    docs/performance.md). `flight_seconds`: time that an empty batch would be in flight. `limits`: those of the
    core.
    """

    reader: Cost = Cost(355.0, 3_000.0)
    worker: Cost = Cost(161.0, 15_000.0)
    redis: Cost = Cost(40.0, 1_000.0)
    value_bytes: float = 24_900.0
    json_bytes: float = 5_600.0
    proto_bytes: float = 2_700.0
    retention_classes: int = 1
    layout: str = "segment"
    utilization: float = 0.6
    partitions_min: int = 4
    flight_seconds: float = 0.15
    limits: Limits = field(default_factory=Limits)
    quotas: Quotas = field(default_factory=Quotas)

    @property
    def insert_tables(self) -> int:
        """Number of ClickHouse inserts per batch: replays, segments, outcomes, and packed objects."""
        return 4 if self.layout == "packed" else 3

    @property
    def batch_segments_max(self) -> int:
        """Number of segments in a full batch."""
        return max(1, min(self.limits.batch_messages_max, int(self.limits.batch_bytes_max / self.value_bytes)))


@dataclass(slots=True)
class _OpenBatch:
    """The open batch of a partition: the time of its first message, None while it is empty."""

    started_at: float | None = 0.0
    next_at: float = 0.0


class Reader:
    """One reader with some partitions, each of which receives `rate` messages per second."""

    def __init__(self, inputs: Inputs, partitions: int, rate: float) -> None:
        self._inputs = inputs
        self._rate = rate
        # Partitions start at different times, as they do in a group.
        offsets = [number / partitions / rate for number in range(partitions)]
        self._open = [_OpenBatch(offset, offset) for offset in offsets]
        self._in_flight: list[float] = []
        self._cut_early_at = -1.0
        self.batches: list[float] = []

    def run(self, seconds: float) -> None:
        """Simulates this period, one tick of the reader's loop at a time."""
        for tick in range(1, int(seconds / TICK_SECONDS) + 1):
            self._tick(tick * TICK_SECONDS)

    def _tick(self, now: float) -> None:
        self._in_flight = [until for until in self._in_flight if until > now]
        idle = len(self._in_flight) < self._inputs.limits.early_cut_in_flight_max
        for one in self._open:
            age = now - one.next_at
            segments = math.floor(age * self._rate) + 1 if age >= 0 else 0
            if not segments:
                continue
            full = segments >= self._inputs.batch_segments_max
            old = age >= self._inputs.limits.batch_age_seconds_max
            if full or old or (idle and self._may_cut_early(age, now)):
                self._cut(one, min(segments, self._inputs.batch_segments_max), now)

    def _may_cut_early(self, age: float, now: float) -> bool:
        limits = self._inputs.limits
        if age < limits.batch_age_idle_seconds or limits.batch_age_idle_seconds >= limits.batch_age_seconds_max:
            return False
        interval = 1 / limits.early_cuts_per_second_max
        last = max(self._cut_early_at, now - 1.0)
        if last + interval > now:
            return False
        self._cut_early_at = last + interval
        return True

    def _cut(self, one: _OpenBatch, segments: int, now: float) -> None:
        one.next_at += segments / self._rate
        if now > SETTLED_SECONDS:
            self.batches.append(segments)
        worker_seconds = self._inputs.worker.at(segments) * segments / 1e6
        self._in_flight.append(now + self._inputs.flight_seconds + worker_seconds)


def batch_segments(inputs: Inputs, partitions: float, rate: float) -> float:
    """Returns the mean number of segments per batch for a reader with this many partitions, each of which receives
    `rate` messages per second.
    """
    reader = Reader(inputs, max(1, round(partitions)), rate)
    reader.run(SIMULATED_SECONDS)
    if not reader.batches:
        return max(1.0, rate * inputs.limits.batch_age_seconds_max)
    return sum(reader.batches) / len(reader.batches)


def wait_seconds(load: float, service_seconds: float, servers: int = 1) -> float:
    """Returns the mean waiting time in an M/D/c queue, exact for one server; infinite if the load is 1 or more.

    `load`: utilization, the share of time during which the servers are busy.
    """
    if load >= 1:
        return math.inf
    if servers == 1:
        return load * service_seconds / (2 * (1 - load))
    power = float(load ** (math.sqrt(2 * (servers + 1)) - 1))
    return power * service_seconds / (2 * servers * (1 - load))


@dataclass(frozen=True, slots=True)
class Plan:
    """A deployment for one rate. Loads are shares of a core; waits are in milliseconds."""

    rate: float
    batch_segments: float
    readers: int
    partitions: int
    worker_processes: int
    redis_shards: int
    reader_load: float
    worker_load: float
    redis_load: float
    shard_rate: float
    shard_mb_per_second: float
    redis_gb: float
    wait_ms: dict[str, float]
    sinks: dict[str, dict[str, float]]

    @property
    def cores(self) -> float:
        """Cores of all roles, at the utilization for which they are sized."""
        return float(self.readers + self.worker_processes + self.redis_shards)


def plan(rate: float, inputs: Inputs) -> Plan:
    """Returns the deployment for `rate` segments per second."""
    size = float(inputs.batch_segments_max)
    readers = partitions = 1
    for _ in range(ROUNDS_MAX):
        readers = cores(rate, inputs.reader.at(size), inputs.utilization)
        partitions = max(inputs.partitions_min, 2 ** math.ceil(math.log2(readers)))
        before, size = size, batch_segments(inputs, partitions / readers, rate / partitions)
        if abs(size - before) < 0.01 * before:
            break
    processes = cores(rate, inputs.worker.at(size), inputs.utilization)
    shards = cores(rate, inputs.redis.at(size), inputs.utilization)
    loads = {
        "reader": rate * inputs.reader.at(size) / readers / 1e6,
        "worker": rate * inputs.worker.at(size) / processes / 1e6,
        "redis": rate * inputs.redis.at(size) / shards / 1e6,
    }
    of_shard = max(1, processes // shards)
    return Plan(
        rate=rate,
        batch_segments=size,
        readers=readers,
        partitions=partitions,
        worker_processes=processes,
        redis_shards=shards,
        reader_load=loads["reader"],
        worker_load=loads["worker"],
        redis_load=loads["redis"],
        shard_rate=rate / shards,
        shard_mb_per_second=rate / shards * inputs.value_bytes / 1e6,
        redis_gb=2 * max(readers, shards) * inputs.limits.in_flight_bytes_max / 1e9,
        wait_ms={
            "reader": 1e3 * wait_seconds(loads["reader"], inputs.reader.at(size) / 1e6),
            "worker": 1e3 * wait_seconds(loads["worker"], inputs.worker.at(size) * size / 1e6, of_shard),
            "redis": 1e3 * wait_seconds(loads["redis"], inputs.redis.at(size) / 1e6),
        },
        sinks=sinks(rate, size, processes, inputs),
    )


def cores(rate: float, micros: float, utilization: float) -> int:
    """Returns the number of cores needed for this rate at this cost per segment."""
    return max(1, math.ceil(rate * micros / 1e6 / utilization))


def sinks(rate: float, size: float, processes: int, inputs: Inputs) -> dict[str, dict[str, float]]:
    """Returns the load of each sink, its quota, and their ratio, by sink.

    For Cloud Storage, also returns the time over which the load on a new bucket must be increased to this rate.
    """
    batches, quotas = rate / size, inputs.quotas
    writes = rate if inputs.layout == "segment" else batches * inputs.retention_classes
    found = {
        "gcs writes/s": (writes, quotas.gcs_writes),
        "clickhouse inserts/s": (batches * inputs.insert_tables, quotas.clickhouse_inserts),
        "bigquery insert_all bytes/s": (rate * inputs.json_bytes, quotas.bigquery_insert_all_bytes),
        "bigquery storage bytes/s": (rate * inputs.proto_bytes, quotas.bigquery_storage_bytes),
        "bigquery storage connections": (float(processes), float(quotas.bigquery_connections)),
    }
    ratios = {name: {"load": load, "quota": quota, "ratio": load / quota} for name, (load, quota) in found.items()}
    doublings = math.log2(max(1.0, writes / quotas.gcs_writes))
    ratios["gcs writes/s"]["ramp_minutes"] = doublings * quotas.gcs_doubling_minutes
    return ratios


def with_costs(inputs: Inputs, costs: dict[str, Any]) -> Inputs:
    """Returns the inputs with their costs replaced by measured ones: role -> {"segment": ..., "batch": ...}, as in
    the JSON file that `benchmarks.scale_out --check` writes.
    """
    return replace(inputs, **{role: Cost(**cost) for role, cost in costs.items()})
