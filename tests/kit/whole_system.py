"""The whole system as processes, for tests with injected faults: stack, proxies, workers, reader, load."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Producer

from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.reconcile import reconcile
from ingest.local.compare.report import Report
from ingest.local.load.expectation import Expectation
from ingest.local.load.produce import PROFILES, ProducedTotals, produce
from ingest.local.servers.fault_proxy import FaultProxy
from ingest.local.servers.processes import Child, LocalError, free_port, wait_until
from ingest.local.stack import KafkaKind, Stack
from tasks.kafka.options import kafka_options
from tasks.migrate import migrate
from tasks.sinks.clickhouse.sink import client
from tasks.units import MiB
from tests.kit.prestarted import COMMAND, PARENTS, READER
from tests.kit.servers import kill_all

PARTS = ("kafka", "redis", "gcs", "clickhouse", "bigquery", "statsd")
SHORT_TIMES = {
    "REPLAYS_BATCH_AGE_SECONDS_MAX": "0.5",
    "REPLAYS_BATCH_MESSAGES_MAX": "40",
    "REPLAYS_RETRY_BACKOFF_SECONDS": "2",
    "REPLAYS_RETRY_BACKOFF_SECONDS_MAX": "5",
    "REPLAYS_FLUSH_DEADLINE_SECONDS": "30",
    "REPLAYS_TASK_BACKOFF_SECONDS": "0.2",
    "REPLAYS_TASK_BACKOFF_SECONDS_MAX": "2",
    "REPLAYS_SINK_TIMEOUT_SECONDS": "2",
    "REPLAYS_BREAKER_COOL_SECONDS": "2",
    "REPLAYS_BREAKER_COOL_SECONDS_MAX": "4",
    "REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "4",
    "REPLAYS_DRAIN_DEADLINE_SECONDS": "3",
    "REPLAYS_TASK_VISIBILITY_SECONDS": "20",
    "REPLAYS_LOG_FORMAT": "json",
}
PROXIED_SERVERS = {
    "gcs": "REPLAYS_GCS_ENDPOINT",
    "clickhouse": "REPLAYS_CLICKHOUSE_URL",
    "bigquery": "REPLAYS_BIGQUERY_ENDPOINT",
}


class System:
    """A context manager that runs the system.

    `proxies` are in front of the HTTP sinks, and `env` is the environment of every process.
    """

    def __init__(
        self,
        directory: Path,
        queues: Sequence[str] = (),
        kafka: KafkaKind = "tansu",
        starts_reader: bool = True,
        **settings: str,
    ) -> None:
        self.directory = directory
        self.proxies: dict[str, FaultProxy] = {}
        self.workers: list[Child] = []
        self._queues = queues
        self._kafka: KafkaKind = kafka
        self._starts_reader = starts_reader
        self._extra = {f"REPLAYS_{name.upper()}": value for name, value in settings.items()}
        self._open = ExitStack()
        self.produced: list[tuple[Path, ProducedTotals]] = []
        self._sent: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        PARENTS.prepare("celery", READER, COMMAND)
        self.stack = self._open.enter_context(Stack(self.directory / "stack", kafka=self._kafka))
        self.stack.start(PARTS)
        self.env = {**self.stack.settings(), **SHORT_TIMES, **self._extra}
        self.settings = settings_from(self.env)
        for _ in migrate(self.settings, topics=True):
            pass
        for seed, (part, name) in enumerate(PROXIED_SERVERS.items()):
            proxy = FaultProxy(self.env[name], http=True, seed=seed)
            self.proxies[part] = self._open.enter_context(proxy)
            self.env[name] = proxy.url
        self.env["REPLAYS_HTTP_PORT"] = str(free_port())
        children = self.stack.children
        for number, queue in enumerate(self._queues or ("",)):
            command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-n", f"w{number}@%h", "-c", "2"]
            command += ["-Q", queue] if queue else []
            self.workers.append(children.start(f"worker{number}", command, env=self.env, keep=True))
        if self._starts_reader:
            self.start_reader()
        self.committed_offsets = CommittedOffsets(self.settings)
        self._open.callback(self.committed_offsets.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for child in self.stack.children:
                if child.name == "reader" or child in self.workers:
                    print(child.log_tail())
        kill_all(self.stack.children)
        self._open.close()

    def start_reader(self, **settings: str) -> None:
        """Starts a reader process with `settings` (by name) in addition to the common settings."""
        env = self.env | {f"REPLAYS_{name.upper()}": value for name, value in settings.items()}
        command = [sys.executable, "-m", "ingest.cli"]
        self.reader = self.stack.children.start("reader", command, env=env, keep=True)

    def stop_reader(self, seconds: float = 60) -> int:
        """Sends SIGTERM and returns the exit code. The reader leaves its group and is not restarted."""
        self.stack.children.release(self.reader)
        self.reader.signal(signal.SIGTERM)
        return self.reader.wait(seconds)

    # Load and its results

    def load(self, count: int, seed: int = 1) -> ProducedTotals:
        """Produces small segments without a rate limit."""
        path = self.directory / f"manifest-{seed}.jsonl"
        made = produce(self.settings, PROFILES["small"], count, seed, manifest_path=path)
        self.produced.append((path, made))
        return made

    def send(self, value: bytes, timestamp_ms: int = 0) -> tuple[int, int]:
        """Produces one message and returns its partition and offset.

        If `timestamp_ms` is 0, the current time is used.
        """
        return self.send_all([value], timestamp_ms)[0]

    def send_all(self, values: Iterable[bytes], timestamp_ms: int = 0) -> list[tuple[int, int]]:
        """Produces messages without a rate limit.

        Returns the partition and offset of each message, in order of delivery.
        """
        found: list[tuple[int, int]] = []
        producer = Producer({"message.max.bytes": 17 * MiB, **kafka_options(self.settings)})
        for value in values:
            producer.produce(
                self.settings.kafka_topic,
                value,
                timestamp=timestamp_ms,
                on_delivery=lambda error, record: found.append((record.partition() or 0, record.offset() or 0)),
            )
            producer.poll(0)
        assert producer.flush(60) == 0
        self._sent.extend(found)
        return found

    @property
    def ends(self) -> dict[tuple[str, int], int]:
        """The log end offset of each (topic, partition), counting all messages that this object produced."""
        ends = {(self.settings.kafka_topic, partition): offset + 1 for partition, offset in sorted(self._sent)}
        for _, made in self.produced:
            for partition, end in made.ends.items():
                source = (self.settings.kafka_topic, partition)
                ends[source] = max(end, ends.get(source, 0))
        return ends

    def committed(self) -> int:
        """Returns the number of messages below the committed offsets."""
        return sum(self.committed_offsets.of(sorted(self.ends)).values())

    def lag(self) -> int:
        """Returns the number of messages above the committed offsets."""
        return sum(self.ends.values()) - self.committed()

    def reader_peak_bytes(self) -> int:
        """Returns the peak resident memory of the reader's process so far."""
        status = Path(f"/proc/{self.reader.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def worker_cpu_seconds(self) -> float:
        """Returns the CPU time of the workers and their pools so far."""
        groups = {child.pid for child in self.workers}
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # Field 2 is the process group; fields 11 to 14 are the user and system times of the process and of its
            # exited children.
            if int(fields[2]) in groups:
                ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def wait_until_committed(self, seconds: float = 120) -> None:
        """Waits until every produced message is committed."""
        try:
            wait_until(lambda: self.committed() >= sum(self.ends.values()), seconds, "commits")
        except LocalError as error:
            raise LocalError(f"{error}: {self.status()}") from error

    def reconcile(self, **options: Any) -> Report:
        """Compares every sink with the manifests.

        Metrics are only checked for at-least-once delivery, because faults cause packets to be repeated.
        """
        expected = Expectation.from_manifest(*(path for path, _ in self.produced), settings=self.settings)
        statsd = self.stack.addresses.get("statsd_query", "")
        return reconcile(self.settings, expected, statsd_url=statsd, exact_metrics=False, **options)

    def assert_whole(self) -> None:
        """Asserts that every sink has the data of every produced message."""
        report = self.reconcile()
        assert report.ok, [check for check in report.checks if not check.ok]

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of ClickHouse."""
        server = client(self.settings)
        try:
            return [tuple(row) for row in server.query(sql).result_rows]
        finally:
            server.close()

    def wait_for_rows(self, table: str, count: int, seconds: float = 120) -> None:
        """Waits until ClickHouse has the given number of distinct rows."""
        wait_until(
            lambda: bool(self.query(f"SELECT count() FROM {table} FINAL")[0][0] >= count),
            seconds,
            f"rows of {table}",
        )

    # Operator commands and metrics

    def command(self, *arguments: str, ok: bool = True) -> str:
        """Runs `replays-ingest ARGUMENTS` and returns its output."""
        result = PARENTS.run([sys.executable, "-m", "ingest.cli", *arguments], {**os.environ, **self.env})
        assert (result.exit_code == 0) == ok, (result.exit_code, result.stdout, result.stderr)
        return result.stdout

    def json(self, *arguments: str) -> Any:
        """Runs the command and returns its JSON output."""
        return json.loads(self.command(*arguments, "--json"))

    def status(self) -> Any:
        return self.json("status")

    def breaker(self, sink: str) -> str:
        """Returns the state of the breaker: closed, open or half_open."""
        return str(next(found["breaker"] for found in self.status()["sinks"] if found["sink"] == sink))

    def metric(self, name: str, **labels: str) -> float:
        """Returns the sum over the series with the given name and labels in the reader's /metrics."""
        url = f"http://127.0.0.1:{self.env['REPLAYS_HTTP_PORT']}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        total = 0.0
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.split("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total += float(value)
        return total


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for a condition. An exception that the condition raises counts as false."""

    def holds() -> bool:
        try:
            return condition()
        except (OSError, AssertionError, StopIteration):
            time.sleep(0.2)
            return False

    wait_until(holds, seconds, what)


def settings_from(env: dict[str, str]) -> Any:
    """Returns the settings of a process with the given variables."""
    from ingest.local.launch import settings_of

    return settings_of(env)
