"""The faults of a chaos run, which affect processes or sinks.

A fault is a function that returns the name of its target after all effects of the fault have ended. The function
raises LocalError if the fault does not end as expected.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import cast

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from ingest.local.fleet import SESSION_SECONDS, Fleet, is_up, log_lines_of, pool_processes
from ingest.local.servers.fault_proxy import (
    Errors,
    Fault,
    FaultProxy,
    Hang,
    Latency,
    LostReplies,
    NoFault,
    Refuse,
    Reset,
)
from ingest.local.servers.processes import HOST, Child, LocalError, free_port, wait_until
from ingest.local.servers.redis import Redis
from ingest.local.servers.sentinel import RedisGroup
from ingest.local.stack import KafkaKind
from tasks.kafka.options import kafka_options
from tasks.migrate.kafka import SOURCE_PARTITIONS

READERS, WORKERS = ("reader-1", "reader-2"), ("worker-1", "worker-2")
SINKS = ("gcs", "clickhouse", "bigquery")
# The gRPC endpoint of BigQuery. Its fault proxy forwards bytes and does not parse HTTP.
BIGQUERY_STORAGE = "bigquery_storage"
EXTRA_READER = "reader-3"
# Readers log each step of the commit protocol, for `python -m tools.spec --logs` (docs/specification.md).
STEPS_LOG_LEVEL = "debug"
REVOCATION_SECONDS_MAX = 20.0
ADDED_PARTITIONS_MAX = 4
NEEDS_APACHE_KAFKA = frozenset(
    {
        "broker: kill -9, restarted with its data",
        "topic: partition added",
        "reader: kill -9 while it revokes partitions",
    }
)

Injection = Callable[[random.Random], str]

SINK_FAULTS: dict[str, Callable[[], Fault]] = {
    "503": lambda: Errors(503),
    "429, half of the requests": lambda: Errors(429, share=0.5, retry_after_seconds=1),
    "hangs": Hang,
    "refuses": Refuse,
    "resets": Reset,
    "loses half of its replies": lambda: LostReplies(share=0.5),
    "is slow (1 s)": lambda: Latency(1.0),
}
CONNECTION_FAULTS = ("hangs", "refuses", "resets", "is slow (1 s)")


class ProcessFaults:
    """Faults of processes. A method returns the name of its target after all effects of the fault have ended."""

    def __init__(self, fleet: Fleet, redis_proxy: FaultProxy | None, stop_faults: threading.Event) -> None:
        """When `stop_faults` is set, every wait within a fault ends early. `redis_proxy` is None if Redis is
        behind Sentinel.
        """
        self._fleet, self._redis_proxy, self._stop_faults = fleet, redis_proxy, stop_faults
        self._servers = fleet.stack.servers
        self._added = 0

    def by_name(self, kafka: KafkaKind) -> dict[str, Injection]:
        """Returns the faults by name, without those that would make this broker lose data."""
        found: dict[str, Injection] = {
            "reader: kill -9": self.kill_reader,
            "reader: SIGSTOP past its session": self.stop_reader_past_its_session,
            "reader: added, then SIGTERM": self.add_and_remove_reader,
            "reader: SIGTERM, then restarted": self.restart_reader,
            "reader: kill -9 while it revokes partitions": self.kill_reader_amid_rebalance,
            "topic: partition added": self.add_partition,
            "worker: kill -9": self.kill_worker,
            "worker: one pool process killed": self.kill_pool_process,
            "worker: SIGSTOP": self.stop_worker,
            "redis: SIGSTOP": self.stop_redis,
            "redis: read-only (READONLY), connections stay open": self.demote_redis,
            **self._single_redis_faults(),
            **self._sentinel_faults(),
            "broker: kill -9, restarted with its data": self.restart_broker,
            "broker: SIGSTOP": self.stop_broker,
            "flower: kill -9": self.kill_flower,
        }
        return {
            name: fault for name, fault in found.items() if kafka == "apache" or name not in NEEDS_APACHE_KAFKA
        }

    def _single_redis_faults(self) -> dict[str, Injection]:
        if self._redis_proxy is None:
            return {}
        return {
            "redis: kill -9, restarted empty": self.empty_redis,
            "redis: kill -9, restarted with its data": self.restart_redis,
            "redis: connections reset": self.reset_redis,
        }

    def _sentinel_faults(self) -> dict[str, Injection]:
        if self._redis_proxy is not None:
            return {}
        return {
            "redis: Sentinel failover": self.fail_over,
            "redis: kill -9 of the primary, replaced by Sentinel": self.kill_primary,
        }

    def kill_reader(self, rng: random.Random) -> str:
        return self._kill(rng, READERS)

    def kill_worker(self, rng: random.Random) -> str:
        return self._kill(rng, WORKERS)

    def kill_flower(self, rng: random.Random) -> str:
        return self._kill(rng, ("flower",))

    def kill_pool_process(self, rng: random.Random) -> str:
        """Kills a pool process, as the kernel's OOM killer would. The worker survives, and the task is
        redelivered.
        """
        child = self._child(rng, WORKERS)
        pids = pool_processes(child)
        if pids:
            _signal(rng.choice(pids), signal.SIGKILL)
        return child.name

    def stop_reader_past_its_session(self, rng: random.Random) -> str:
        """Suspends a reader until its partitions have another owner and its chords have ended, then resumes it."""
        return self._stop(self._child(rng, READERS), SESSION_SECONDS + rng.uniform(1.5, 4))

    def stop_worker(self, rng: random.Random) -> str:
        return self._stop(self._child(rng, WORKERS), rng.uniform(2, 8))

    def add_and_remove_reader(self, rng: random.Random) -> str:
        """Starts and stops an additional reader, which causes two rebalances under load. The second rebalance
        follows a graceful stop.
        """
        child = self._fleet.reader(EXTRA_READER, keep=False, REPLAYS_LOG_LEVEL=STEPS_LOG_LEVEL)
        self._stop_faults.wait(rng.uniform(4, 9))
        return self._stop_cleanly(child)

    def restart_reader(self, rng: random.Random) -> str:
        """Replaces a reader as a deployment does: SIGTERM under load, then a new process."""
        child = self._child(rng, READERS)
        try:
            return self._stop_cleanly(child)
        finally:
            self._fleet.reader(child.name, REPLAYS_LOG_LEVEL=STEPS_LOG_LEVEL)

    def kill_reader_amid_rebalance(self, rng: random.Random) -> str:
        """Starts another reader, so that the running readers must revoke partitions, and kills the first running
        reader that enters its revocation callback.
        """
        readers = [self._fleet.children[name] for name in READERS]
        before = {child.name: len(log_lines_of(child, "partitions_revoked")) for child in readers}
        extra_reader = self._fleet.reader(EXTRA_READER, keep=False, REPLAYS_LOG_LEVEL=STEPS_LOG_LEVEL)
        killed = ""
        ends_at = time.monotonic() + REVOCATION_SECONDS_MAX
        while not killed and time.monotonic() < ends_at and not self._stop_faults.wait(0.02):
            for child in readers:
                if not killed and len(log_lines_of(child, "partitions_revoked")) > before[child.name]:
                    self._fleet.kill(child)
                    killed = child.name
        self._stop_faults.wait(rng.uniform(1, 4))
        self._stop_cleanly(extra_reader)
        return killed

    def add_partition(self, rng: random.Random) -> str:
        """Adds a partition. The load writes to the added partition within seconds, possibly before the readers
        discover it.
        """
        if self._added == ADDED_PARTITIONS_MAX:
            return ""
        self._added += 1
        topic, count = self._fleet.settings.kafka_topic, SOURCE_PARTITIONS + self._added
        admin = AdminClient(kafka_options(self._fleet.settings))
        try:
            admin.create_partitions([NewPartitions(topic, count)])[topic].result(timeout=REVOCATION_SECONDS_MAX)
        except (KafkaException, concurrent.futures.TimeoutError) as error:
            raise LocalError(f"no partition could be added: {error}") from error
        return f"{topic}-{count - 1}"

    def empty_redis(self, rng: random.Random) -> str:
        server = self._servers["redis"]
        assert isinstance(server, Redis)
        server.restart(kill=True, empty=True)
        return ""

    def restart_redis(self, rng: random.Random) -> str:
        server = self._servers["redis"]
        server.kill()
        self._stop_faults.wait(rng.uniform(0, 3))
        server.restart()
        return ""

    def stop_redis(self, rng: random.Random) -> str:
        return self._stop(self._servers["redis"].child, rng.uniform(1, 5))

    def demote_redis(self, rng: random.Random) -> str:
        """Makes Redis a replica for a while. Redis then behaves like the old primary after a failover that clients
        did not detect.
        """
        server = self._primary()
        server.send_command("REPLICAOF", HOST, str(free_port()))
        self._stop_faults.wait(rng.uniform(1, 10))
        with contextlib.suppress(OSError):  # Redis was killed by the other thread, or restored by Sentinel
            if server is self._primary():
                server.send_command("REPLICAOF", "NO", "ONE")
        return ""

    def fail_over(self, rng: random.Random) -> str:
        self._group().failover()
        return ""

    def kill_primary(self, rng: random.Random) -> str:
        self._group().kill_primary()
        return ""

    def _group(self) -> RedisGroup:
        group = self._servers["redis"]
        assert isinstance(group, RedisGroup)
        return group

    def _primary(self) -> Redis:
        server = self._servers["redis"]
        return server.primary if isinstance(server, RedisGroup) else cast("Redis", server)

    def reset_redis(self, rng: random.Random) -> str:
        assert self._redis_proxy is not None
        self._redis_proxy.set(Reset())
        self._stop_faults.wait(rng.uniform(0.5, 3))
        self._redis_proxy.set(NoFault())
        return ""

    def restart_broker(self, rng: random.Random) -> str:
        self._servers["kafka"].restart(kill=True)
        return ""

    def stop_broker(self, rng: random.Random) -> str:
        return self._stop(self._servers["kafka"].child, rng.uniform(1, 4))

    def _child(self, rng: random.Random, names: tuple[str, ...]) -> Child:
        return self._fleet.children[rng.choice(names)]

    def _kill(self, rng: random.Random, names: tuple[str, ...]) -> str:
        child = self._child(rng, names)
        self._fleet.kill(child)
        return child.name

    def _stop(self, child: Child, seconds: float) -> str:
        child.pause()
        self._stop_faults.wait(seconds)
        child.resume()
        return child.name

    def _stop_cleanly(self, child: Child) -> str:
        wait_until(lambda: is_up(child), 20, f"{child.name} to be up")
        code = self._fleet.stop(child)
        if code != 0:
            raise LocalError(f"{child.name} ended with code {code} after SIGTERM\n{child.log_tail()}")
        return child.name


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def sink_faults(proxies: Mapping[str, FaultProxy], stop_faults: threading.Event) -> dict[str, Injection]:
    """Returns every fault of SINK_FAULTS for every sink, and CONNECTION_FAULTS for BigQuery's gRPC endpoint if it
    has a proxy. Each fault lasts a few seconds.
    """

    def make(sink: str, fault: Callable[[], Fault]) -> Injection:
        def inject(rng: random.Random) -> str:
            seconds = rng.uniform(2, 8)
            proxies[sink].set(fault())
            stop_faults.wait(seconds)
            proxies[sink].set(NoFault())
            return ""

        return inject

    found = {f"{sink}: {name}": make(sink, fault) for sink in SINKS for name, fault in SINK_FAULTS.items()}
    if BIGQUERY_STORAGE in proxies:
        found |= {
            f"{BIGQUERY_STORAGE}: {name}": make(BIGQUERY_STORAGE, SINK_FAULTS[name]) for name in CONNECTION_FAULTS
        }
    return found
