"""Runs a whole consumer, ours or a peer, on one workload, and measures time, CPU, memory and delay.

All processes of the measured system (reader, workers and Redis, or the processes of a peer) are pinned to the same
cores, and the CPU time and memory of all of them are counted. The broker, the stores, the producer and this
program use the other cores and are not counted. The backlog is in the broker before the system starts. The
measured part of a run excludes start-up, joining the group and the last batches (benchmarks/window.py); the run
ends when all segments are committed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from benchmarks.launch import Role, start
from benchmarks.redis_watch import RedisWatch
from benchmarks.servers import Bench
from benchmarks.shapes import Shape
from benchmarks.window import Mark, Window
from benchmarks.workload import Load, Workload, delays_of, make_topic
from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.report import ReconcileError
from ingest.local.servers.processes import LocalError
from ingest.settings import Settings

SAMPLE_SECONDS = 0.5
SERIES_SECONDS = 1.0
POLL_SECONDS = 0.05
RUN_SECONDS_MAX = 900.0
SEGMENTS_PER_SECOND_MIN = 50.0


@dataclass(slots=True)
class Result:
    """Measurements of a run. CPU and memory are reported per role: reader, worker, redis, or peer.

    `requests`: requests by sink during the whole run, and `requests_measured` during the measurement.
    `redis`: name, version and allocator of the Redis server. `redis_kinds`: number and size in bytes of the
    Redis keys at the end of the run, by kind. `series`: one sample per second.
    """

    shape: dict[str, Any]
    label: str
    segments: int
    seconds: float
    value_bytes: int
    cpu_seconds: dict[str, float]
    rss_bytes: dict[str, int]
    load_average: float
    requests: dict[str, int]
    delays_ms: dict[str, float] = field(default_factory=dict)
    series: list[dict[str, float]] = field(default_factory=list)
    requests_measured: dict[str, int] = field(default_factory=dict)
    redis: dict[str, str] = field(default_factory=dict)
    redis_kinds: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Segments per second."""
        return self.segments / self.seconds

    @property
    def cpu_micros(self) -> float:
        """Microseconds of CPU time per segment, over all counted processes."""
        return sum(self.cpu_seconds.values()) / self.segments * 1e6

    @property
    def memory_bytes(self) -> int:
        """Peak memory, as the sum of the peaks of all roles."""
        return sum(self.rss_bytes.values())

    @property
    def per_core(self) -> float:
        """Segments per second that one fully utilized core can process."""
        return 1e6 / self.cpu_micros if self.cpu_micros else 0.0

    def as_json(self) -> dict[str, Any]:
        """Returns the result as JSON, with derived figures."""
        gigabytes = self.value_bytes / 1e9
        return asdict(self) | {
            "segments_per_second": self.rate,
            "mb_per_second": self.value_bytes / 1e6 / self.seconds,
            "cpu_micros_per_segment": self.cpu_micros,
            "cpu_micros_by_role": {n: s / self.segments * 1e6 for n, s in self.cpu_seconds.items()},
            "segments_per_core_second": self.per_core,
            "memory_bytes": self.memory_bytes,
            "cpu_seconds_per_gb": sum(self.cpu_seconds.values()) / gigabytes,
        }


class Meter(threading.Thread):
    """Samples CPU and memory of some processes and their descendants, by role."""

    def __init__(self, roles: Mapping[str, Sequence[int]]) -> None:
        super().__init__(daemon=True)
        self._roots = {role: [psutil.Process(pid) for pid in pids] for role, pids in roles.items()}
        self._cpu: dict[str, dict[int, float]] = {role: {} for role in roles}
        self._lock = threading.Lock()
        self.rss_bytes: dict[str, int] = dict.fromkeys(roles, 0)
        self.rss_now: dict[str, int] = dict.fromkeys(roles, 0)
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.wait(SAMPLE_SECONDS):
            self.sample()

    def sample(self) -> dict[str, float]:
        """Returns the CPU seconds of each role. Also updates the memory use, measured as proportional set size
        (PSS).
        """
        with self._lock:
            for role, roots in self._roots.items():
                total = 0
                for process in self._all(roots):
                    try:
                        times = process.cpu_times()
                        self._cpu[role][process.pid] = times.user + times.system
                        total += process.memory_full_info().pss
                    except (psutil.NoSuchProcess, psutil.AccessDenied):
                        continue
                self.rss_now[role] = total
                self.rss_bytes[role] = max(self.rss_bytes[role], total)
            return {role: sum(found.values()) for role, found in self._cpu.items()}

    @staticmethod
    def _all(roots: Sequence[psutil.Process]) -> Iterator[psutil.Process]:
        for root in roots:
            try:
                yield root
                yield from root.children(recursive=True)
            except psutil.NoSuchProcess:
                continue


def run(bench: Bench, shape: Shape, workload: Workload) -> Result:
    """Measures one run, with a separate topic. Raises LocalError if it does not finish in time."""
    tag = f"b{random.getrandbits(40):x}"
    env = bench.environment() | {
        "REPLAYS_KAFKA_TOPIC": f"recordings-{tag}",
        "REPLAYS_KAFKA_GROUP": f"readers-{tag}",
        "REPLAYS_KEY_PREFIX": tag,
        "REPLAYS_LOG_LEVEL": "warning",
        **shape.settings(),
    }
    settings = _settings(env)
    if bench.real_sinks:
        from tasks.migrate import migrate

        for _ in migrate(settings):
            pass
    make_topic(settings, shape.partitions)
    if bench.endpoint:
        bench.control("POST", "/_reset")
    load = Load(settings, shape, workload)
    load.start()
    if not shape.rate:
        load.join()
    redis = RedisWatch(bench.redis_urls[: shape.shards])
    redis.empty()
    children = start(bench, shape, env, tag)
    roles: dict[str, list[int]] = {}
    for role, child in children:
        roles.setdefault(role, []).append(child.pid)
    if shape.uses_redis:
        roles["redis"] = bench.redis_pids[: shape.shards]
    meter = Meter(roles)
    meter.start()
    try:
        window = _watch(_RunningSystem(bench, shape, settings, load, meter, children, redis))
        result = _result(bench, shape, workload, window, meter)
        if shape.uses_redis:
            result.redis, result.redis_kinds = redis.server(), redis.by_kind()
    finally:
        meter.ending.set()
        redis.close()
        for _, child in children:
            child.stop(15)
    if shape.rate and bench.endpoint:
        objects = bench.control("GET", "/_seen?objects=1")["objects"]
        result.delays_ms = delays_of(objects, workload, load.sent_at, shape)
    return result


@dataclass(frozen=True, slots=True)
class _RunningSystem:
    """A running system."""

    bench: Bench
    shape: Shape
    settings: Settings
    load: Load
    meter: Meter
    children: Sequence[Role]
    redis: RedisWatch

    def requests(self) -> dict[str, int]:
        """Number of requests that the latency server has received, by sink."""
        return dict(self.bench.control("GET", "/_seen")["requests"])

    def check(self, deadline: float) -> None:
        """Raises LocalError if a process has ended or the deadline has passed."""
        dead = [child for _, child in self.children if not child.alive]
        if dead or time.monotonic() > deadline:
            tails = "\n".join(child.log_tail() for _, child in self.children)
            raise LocalError(f"{self.shape.label}: {'ended' if dead else 'not done in time'}\n{tails}")


def _watch(running: _RunningSystem) -> Window:
    """Observes the commits until all segments are committed, and returns the measured part of the run."""
    shape, settings = running.shape, running.settings
    offsets = CommittedOffsets(settings)
    sources = [(settings.kafka_topic, partition) for partition in range(shape.partitions)]
    deadline = time.monotonic() + RUN_SECONDS_MAX + shape.count / SEGMENTS_PER_SECOND_MIN
    window = Window(shape.warm, shape.count - shape.tail)
    sampled_at, done = 0.0, 0
    try:
        while done < (window.stop if shape.by_uploads else shape.count):
            running.check(deadline)
            try:
                done = running.requests().get("gcs", 0) if shape.by_uploads else sum(offsets.of(sources).values())
            except ReconcileError:
                continue
            now = time.monotonic()
            if done >= running.load.primer:
                running.load.go.set()
            is_edge = window.is_edge(done) or done >= shape.count
            if is_edge and running.bench.endpoint:
                window.requests.append(running.requests())
            if is_edge or (window.is_open and now - sampled_at >= SERIES_SECONDS):
                sampled_at = now
                window.add(Mark(now, done, running.meter.sample()))
                memory = {f"rss_{role}": float(size) for role, size in running.meter.rss_now.items()}
                window.extend(memory | running.redis.sample() if shape.uses_redis else memory)
            time.sleep(POLL_SECONDS)
        if shape.idle_seconds:
            window = Window(shape.count, shape.count)
            window.add(Mark(time.monotonic(), done, running.meter.sample()))
            time.sleep(shape.idle_seconds)
            window.add(Mark(time.monotonic(), done, running.meter.sample()))
    finally:
        offsets.close()
    window.close()
    return window


def _result(bench: Bench, shape: Shape, workload: Workload, window: Window, meter: Meter) -> Result:
    return Result(
        shape=asdict(shape),
        label=shape.label,
        segments=window.segments,
        seconds=window.seconds,
        value_bytes=int(window.segments * workload.mean_bytes),
        cpu_seconds=window.cpu_seconds,
        rss_bytes=meter.rss_bytes,
        load_average=os.getloadavg()[0],
        requests=bench.control("GET", "/_seen")["requests"] if bench.endpoint else {},
        requests_measured=window.requests_measured,
        series=window.series,
    )


def _settings(env: Mapping[str, str]) -> Settings:
    from ingest.local.launch import settings_of

    found: Settings = settings_of(dict(env))
    return found.model_copy(update={"kafka_options": {"log_level": "0"}})
