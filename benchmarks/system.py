"""Runs a whole consumer, ours or a peer, on one workload, and measures time, CPU, memory and delay.

All processes of the measured system (reader, workers and Redis, or the single process of a peer) are pinned to the
same cores and counted. Broker, stores, producer and this program use the other cores and are not counted. The
backlog is in the broker before the system starts. Time is measured from the commit of `warm` segments until all
are committed, so it excludes start-up and joining the group.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.redis_watch import RedisWatch
from benchmarks.servers import Bench
from ingest.local.compare.offsets import Committed
from ingest.local.compare.report import ReconcileError
from ingest.local.load.produce import PROFILES, stream
from ingest.local.servers.processes import HOST, Child, LocalError
from ingest.settings import Settings
from tasks.units import MiB

BENCH_DIRECTORY = Path(".bench")
STARTED_AT = 1_790_000_000
SAMPLE_SECONDS = 0.5
RUN_SECONDS_MAX = 900.0
SEGMENTS_PER_SECOND_MIN = 50.0
PEERS = ("p1-json", "p1-typed", "p2", "p3")


@dataclass(frozen=True, slots=True)
class Workload:
    """Kafka values generated from a seed, and the name of the object that each value produces."""

    profile: str
    values: list[bytes]
    names: list[str]

    @property
    def mean_bytes(self) -> float:
        """Mean size of one value."""
        return sum(map(len, self.values)) / len(self.values)


@dataclass(frozen=True, slots=True)
class Shape:
    """Parameters of one run. `system`: ours or one of PEERS. `layout`: object layout of our system. `count`:
    number of segments, taken from the workload in a cycle. `warm`: segments of the warm-up.

    `rate`: segments produced per second while the system runs; 0 to produce all of them before it starts.
    """

    system: str = "ours"
    layout: str = "segment"
    sinks: str = "gcs,dead_letter"
    partitions: int = 4
    readers: int = 1
    workers: int = 1
    processes: int = 4
    threads: int = 32
    count: int = 4000
    warm: int = 1000
    rate: float = 0.0
    cores: tuple[int, ...] = (0,)
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """Label in tables."""
        if self.system != "ours":
            return f"{self.system}, {self.threads} threads"
        return f"ours {self.layout}, {self.sinks.replace(',dead_letter', '')}"


@dataclass(slots=True)
class Result:
    """Measurements of a run. CPU and memory are by role: reader, worker, redis, or peer.

    `redis`: name, version and allocator of the Redis server. `redis_kinds`: its keys and their bytes by kind, when
    the run ended. `series`: one sample per second.
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
    def per_core(self) -> float:
        """Segments per second that one fully used core processes."""
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
            "cpu_seconds_per_gb": sum(self.cpu_seconds.values()) / gigabytes,
        }


def workload(count: int, profile: str = "clean", seed: int = 1) -> Workload:
    """Returns the workload, which is generated once and then read from .bench/."""
    BENCH_DIRECTORY.mkdir(exist_ok=True)
    path = BENCH_DIRECTORY / f"workload-{profile}-{count}-{seed}.msgpack"
    if not path.exists():
        pairs = [
            (message.value, message.entry.blob) for message in stream(PROFILES[profile], count, seed, STARTED_AT)
        ]
        path.with_suffix(".new").write_bytes(msgspec.msgpack.encode(pairs))
        path.with_suffix(".new").rename(path)
    found = msgspec.msgpack.decode(path.read_bytes(), type=list[tuple[bytes, str]])
    return Workload(profile, [value for value, _ in found], [name for _, name in found])


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
        """Returns the CPU seconds of each role. Also updates memory, which is the proportional set size (PSS)."""
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


def run(bench: Bench, shape: Shape, load: Workload) -> Result:
    """Measures one run, with a separate topic. Raises LocalError if it does not finish in time."""
    tag = f"b{random.getrandbits(40):x}"
    env = bench.environment() | {
        "REPLAYS_KAFKA_TOPIC": f"recordings-{tag}",
        "REPLAYS_KAFKA_GROUP": f"readers-{tag}",
        "REPLAYS_KEY_PREFIX": tag,
        "REPLAYS_SINKS": shape.sinks,
        "REPLAYS_LOG_LEVEL": "warning",
        "REPLAYS_WORKER_PROCESSES": str(shape.processes),
        **({"REPLAYS_GCS_LAYOUT": shape.layout} if shape.layout != "segment" else {}),
        **dict(shape.extra),
    }
    settings = _settings(env)
    if bench.real_sinks:
        from tasks.migrate import migrate

        for _ in migrate(settings):
            pass
    _make_topic(settings, shape.partitions)
    if bench.endpoint:
        bench.control("POST", "/_reset")
    sent_at: list[float] = []
    producing = threading.Thread(target=_produce, args=(settings, shape, load, sent_at), daemon=True)
    producing.start()
    if not shape.rate:
        producing.join()
    children = _start(bench, shape, env, tag)
    roles: dict[str, list[int]] = {}
    for role, child in children:
        roles.setdefault(role, []).append(child.pid)
    if shape.system == "ours":
        roles["redis"] = bench.redis_pids
    meter = Meter(roles)
    meter.start()
    redis = RedisWatch(bench.redis_urls)
    try:
        result = _watch(bench, shape, load, settings, meter, children, redis)
        result.redis, result.redis_kinds = redis.server(), redis.by_kind()
    finally:
        meter.ending.set()
        redis.close()
        for _, child in children:
            child.stop(15)
    if shape.rate and bench.endpoint:
        result.delays_ms = _delays(bench.control("GET", "/_seen?objects=1")["objects"], load, sent_at, shape)
    return result


def _start(bench: Bench, shape: Shape, env: Mapping[str, str], tag: str) -> list[tuple[str, Child]]:
    """Starts the measured processes on the measured cores."""
    pinned = ["taskset", "-c", ",".join(map(str, shape.cores))]
    children = bench.stack.children
    if shape.system != "ours":
        command = [sys.executable, "-m", "benchmarks.peers_pipeline", shape.system]
        options = {
            "--brokers": env["REPLAYS_KAFKA_BROKERS"],
            "--topic": env["REPLAYS_KAFKA_TOPIC"],
            "--group": env["REPLAYS_KAFKA_GROUP"],
            "--endpoint": env["REPLAYS_GCS_ENDPOINT"],
            "--threads": str(shape.threads),
        }
        flat = [text for pair in options.items() for text in pair]
        return [
            ("peer", children.start(f"{tag}-{shape.system}-{n}", [*pinned, *command, *flat]))
            for n in range(shape.readers)
        ]
    started = []
    for number in range(shape.workers):
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--loglevel=WARNING", "-n"]
        name = f"{tag}-worker-{number}"
        started.append(("worker", children.start(name, [*pinned, *command, f"{name}@{HOST}"], env=env)))
    for number in range(shape.readers):
        name = f"{tag}-reader-{number}"
        started.append(("reader", children.start(name, [*pinned, sys.executable, "-m", "ingest.cli"], env=env)))
    return started


def _watch(
    bench: Bench,
    shape: Shape,
    load: Workload,
    settings: Settings,
    meter: Meter,
    children: Sequence[tuple[str, Child]],
    redis: RedisWatch,
) -> Result:
    """Measures from the commit of `warm` segments until all are committed."""
    offsets = Committed(settings)
    sources = [(settings.kafka_topic, partition) for partition in range(shape.partitions)]
    deadline = time.monotonic() + RUN_SECONDS_MAX + shape.count / SEGMENTS_PER_SECOND_MIN
    began: tuple[float, int, dict[str, float]] | None = None
    series: list[dict[str, float]] = []
    sampled_at = 0.0
    try:
        while True:
            now = time.monotonic()
            dead = [child for _, child in children if not child.alive]
            if dead or now > deadline:
                tails = "\n".join(child.log_tail() for _, child in children)
                raise LocalError(f"{shape.label}: {'ended' if dead else 'not done in time'}\n{tails}")
            try:
                done = sum(offsets.of(sources).values())
            except ReconcileError:
                continue
            now = time.monotonic()
            if began is None and done >= shape.warm:
                began = (now, done, meter.sample())
            if began is not None and now - sampled_at >= 1.0:
                sampled_at = now
                cpu = sum(meter.sample().values()) - sum(began[2].values())
                memory = {f"rss_{role}": float(size) for role, size in meter.rss_now.items()}
                series.append(
                    {"seconds": now - began[0], "segments": done - began[1], "cpu": cpu} | memory | redis.sample()
                )
            if done >= shape.count:
                break
            time.sleep(0.05)
    finally:
        offsets.close()
    assert began is not None
    after = meter.sample()
    began_at, already, before = began
    segments = shape.count - already
    requests = bench.control("GET", "/_seen")["requests"] if bench.endpoint else {}
    return Result(
        shape=asdict(shape),
        label=shape.label,
        segments=max(1, segments),
        seconds=max(now - began_at, 1e-3),
        value_bytes=int(segments * load.mean_bytes),
        cpu_seconds={role: after[role] - before.get(role, 0.0) for role in after},
        rss_bytes=meter.rss_bytes,
        load_average=os.getloadavg()[0],
        requests=requests,
        series=series,
    )


def _settings(env: Mapping[str, str]) -> Settings:
    from ingest.local.launch import settings_of

    found: Settings = settings_of(dict(env))
    return found.model_copy(update={"kafka_options": {"log_level": "0"}})


def _make_topic(settings: Settings, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": settings.kafka_brokers})
    topics = [NewTopic(settings.kafka_topic, partitions, 1), NewTopic(settings.dlq_topic, 1, 1)]
    topics.append(NewTopic(settings.operators_topic, 1, 1, config={"cleanup.policy": "compact"}))
    for future in admin.create_topics(topics).values():
        try:
            future.result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # if the client sent the request twice
                raise


def _produce(settings: Settings, shape: Shape, load: Workload, sent_at: list[float]) -> None:
    """Produces the segments. Partitions are assigned by number, so that each has the same load."""
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka_brokers,
            "linger.ms": 5,
            "message.max.bytes": 16 * MiB,
            "queue.buffering.max.kbytes": 65536,
            "compression.type": "lz4",
        }
    )
    began = time.monotonic()
    for number in range(shape.count):
        while shape.rate and (left := began + number / shape.rate - time.monotonic()) > 0:
            producer.poll(min(left, 0.05))
        value = load.values[number % len(load.values)]
        while True:
            try:
                producer.produce(settings.kafka_topic, value=value, partition=number % shape.partitions)
                break
            except BufferError:
                producer.poll(0.05)
        sent_at.append(time.time())
        producer.poll(0)
    producer.flush(60)


def _delays(
    objects: Mapping[str, float], load: Workload, sent_at: Sequence[float], shape: Shape
) -> dict[str, float]:
    """Returns percentiles of the delay from produce() to storage, in ms, for segments after the warm-up.

    A packed object is named by its batch, whose id ends with its offset range.
    """
    delays = []
    if shape.layout == "packed":
        for name, at in objects.items():
            stem = next(part for part in name.split("/") if part.count("-") >= 3)
            partition, start, stop = map(int, stem.split(".")[0].rsplit("-", 3)[1:])
            numbers = (offset * shape.partitions + partition for offset in range(start, stop))
            delays += [at - sent_at[number] for number in numbers if shape.warm <= number < len(sent_at)]
    else:
        for number in range(shape.warm, min(shape.count, len(load.names))):
            if (at := objects.get(load.names[number])) is not None:
                delays.append(at - sent_at[number])
    if not delays:
        return {}
    delays.sort()
    found = {
        f"p{share}": delays[min(len(delays) - 1, len(delays) * share // 100)] * 1000 for share in (50, 90, 99)
    }
    return found | {"max": delays[-1] * 1000, "segments": float(len(delays))}


@contextmanager
def profiled(pids: Sequence[int], directory: Path, seconds: float) -> Iterator[None]:
    """Runs py-spy on these processes, if it is installed, and writes raw stacks to `directory`."""
    program = Path(sys.executable).with_name("py-spy")
    running = []
    directory.mkdir(parents=True, exist_ok=True)
    for pid in pids if program.exists() else ():
        command = [str(program), "record", "-p", str(pid), "-s", "-d", str(int(seconds)), "-f", "raw", "-r", "200"]
        running.append(subprocess.Popen([*command, "-o", str(directory / f"{pid}.raw")]))
    try:
        yield
    finally:
        for process in running:
            process.wait(seconds + 30)


__all__ = ["PEERS", "Bench", "Meter", "Result", "Shape", "Workload", "run", "workload"]
