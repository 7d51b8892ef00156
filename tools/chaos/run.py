"""Runs chaos once: a steady load, two threads that inject faults, and the comparison at the end."""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from ingest.local.compare.metrics import read_metrics
from ingest.local.compare.reconcile import reconcile
from ingest.local.compare.report import ReconcileError
from ingest.local.fleet import SESSION_SECONDS, Fleet, log_lines, log_lines_of
from ingest.local.launch import temporary_files_in_memory
from ingest.local.load.expectation import SIZES, Expectation
from ingest.local.load.produce import PROFILES, LoadError, produce
from ingest.local.servers import java_kafka
from ingest.local.servers.fault_proxy import FaultProxy
from ingest.local.servers.processes import LocalError, ending_on_signals
from ingest.local.servers.redis import Redis
from ingest.local.stack import KafkaKind, RedisKind, Stack
from ingest.settings import GroupProtocol, Settings
from tasks.errors import SinkError
from tasks.migrate.kafka import SOURCE_PARTITIONS
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import sink as clickhouse
from tools.chaos.faults import (
    ADDED_PARTITIONS_MAX,
    BIGQUERY_STORAGE,
    READERS,
    SINKS,
    STEPS_LOG_LEVEL,
    WORKERS,
    Injection,
    ProcessFaults,
    sink_faults,
)
from tools.chaos.result import InjectedFault, Result, show
from tools.history.check import History, judge
from tools.history.collect import LoggedOperations, PolledOffsets
from tools.history.owners import Disturbance, OwnedPeriod, gaps

MESSAGES_PER_SECOND = 40.0
CRASH = re.compile(r"Assertion `.*' failed|^Fatal Python error|terminate called after")
SETTLE_SECONDS_MAX = 600.0
REBALANCE_SECONDS_MAX = 20.0
# A member that does not rejoin is removed after REBALANCE_SECONDS_MAX. Each member that
# dies before it joins, and each leader that dies before it assigns partitions, delays the assignment by a session
# timeout.
UNOWNED_SECONDS_MAX = REBALANCE_SECONDS_MAX + 2 * SESSION_SECONDS
PLAIN_WIDTH = 150

# These times are short enough that a call to a failing sink ends during the fault, and the breaker closes soon
# after the fault.
SHORT_TIMES = {
    "REPLAYS_SINK_TIMEOUT_SECONDS": "5",
    "REPLAYS_REDIS_TIMEOUT_SECONDS": "2",
    "REPLAYS_TASK_BACKOFF_SECONDS": "0.3",
    "REPLAYS_TASK_BACKOFF_SECONDS_MAX": "3",
    "REPLAYS_BREAKER_COOL_SECONDS": "1",
    "REPLAYS_BREAKER_COOL_SECONDS_MAX": "4",
    "REPLAYS_BATCH_MESSAGES_MAX": "50",
    "REPLAYS_KAFKA_METADATA_REFRESH_SECONDS": "2",
    "REPLAYS_KAFKA_MAX_POLL_INTERVAL_SECONDS": f"{REBALANCE_SECONDS_MAX:g}",
    "REPLAYS_LOG_LEVEL": "debug",  # readers log commits and reads
}
# The load generator writes to an added partition only after a metadata refresh.
LOAD_OPTIONS = {"log_level": "0", "topic.metadata.refresh.interval.ms": "2000"}


def run(
    minutes: float = 10.0,
    seed: int = 1,
    *,
    kafka: KafkaKind | None = None,
    redis: RedisKind = "single",
    group_protocol: GroupProtocol = GroupProtocol.CLASSIC,
    rate: float = MESSAGES_PER_SECOND,
    directory: Path | None = None,
    layout: str = "segment",
    bigquery_write: str = "insert_all",
    as_json: bool = False,
) -> int:
    """Injects faults for `minutes`, then compares every sink with the load. Returns 0 if all checks passed, 1 if a
    check failed, and 130 if the run was interrupted.

    `kafka`: by default Apache Kafka if it can run, otherwise Tansu. `redis`: one server, or a primary and a
    replica behind Sentinels. `rate`: messages per second. `directory`: where data and logs are kept; by default a
    temporary directory, which is in memory if there is enough memory, and which is removed at the end.
    """
    chosen: KafkaKind = kafka or ("tansu" if java_kafka.available() else "apache")
    if group_protocol is GroupProtocol.CONSUMER and chosen != "apache":
        print(f"--group-protocol consumer needs Apache Kafka: {java_kafka.available() or 'use --kafka apache'}")
        return 2
    console = Console(quiet=as_json, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    result = Result(seed, chosen, minutes * 60, group_protocol)
    began = time.monotonic()
    with working_directory(directory) as place, ending_event() as ending:
        chaos = _Chaos(
            place, chosen, redis, seed, rate, console, result, ending, layout, is_temporary=directory is None
        )
        chaos.settings["REPLAYS_KAFKA_GROUP_PROTOCOL"] = group_protocol.value
        chaos.settings["REPLAYS_BIGQUERY_WRITE"] = bigquery_write
        try:
            chaos.run(minutes * 60)
        except (LocalError, LoadError, ReconcileError, SinkError) as error:
            result.error = str(error)
        finally:
            chaos.close()
        if ending.is_set() and not result.error:
            console.print("interrupted; everything is stopped")
            return 130
    result.seconds = time.monotonic() - began
    result.judge()
    if as_json:
        print(json.dumps(result.as_dict(), indent=2, default=str), flush=True)
    else:
        show(console, result)
    return 0 if result.ok else 1


class _Chaos:
    """One run. `close` stops everything that the run has started."""

    def __init__(
        self,
        directory: Path,
        kafka: KafkaKind,
        redis: RedisKind,
        seed: int,
        rate: float,
        console: Console,
        result: Result,
        ending: threading.Event,
        layout: str,
        *,
        is_temporary: bool,
    ) -> None:
        self.seed, self.rate, self.kafka, self.console, self.result = seed, rate, kafka, console, result
        self.directory = directory
        self.over = ending
        self.stop_faults = threading.Event()
        self.began = time.monotonic()
        self._open = ExitStack()
        # If a directory is given, the stack's Redis keeps an append-only file, which faults may delete on purpose.
        self.stack = self._open.enter_context(
            Stack(directory / "stack", kafka=kafka, redis=redis, progress=self.say)
        )
        if is_temporary:
            self.stack.children.remove_at_end(directory)
        self.proxies: dict[str, FaultProxy] = {}
        self.settings = {**SHORT_TIMES, "REPLAYS_GCS_LAYOUT": layout}
        self.fleet: Fleet | None = None
        # Tansu does not keep commit metadata.
        self.history = History(has_records=kafka == "apache")

    def say(self, line: str) -> None:
        """Prints one line, which begins with the seconds since the start of the run."""
        self.console.print(f"{time.monotonic() - self.began:6.1f} s  {line}", soft_wrap=True, markup=False)
        if not self.console.is_terminal:
            self.console.file.flush()

    def close(self) -> None:
        """Stops all processes. May be called at any time."""
        self.stop_faults.set()
        self._open.close()

    def run(self, fault_seconds: float) -> None:
        """Runs all steps, and stores the outcome in `result`. Raises LocalError, LoadError, ReconcileError or
        SinkError if the run itself fails.
        """
        fleet = self._start()
        manifest = self.directory / "manifest.jsonl"
        processes = ProcessFaults(fleet, self.proxies.get("redis"), self.stop_faults).by_name(self.kafka)
        sinks = sink_faults(self.proxies, self.stop_faults)
        threads = [
            threading.Thread(target=self._load, args=(fleet.settings, manifest), name="load"),
            threading.Thread(target=self._watch_commits, args=(fleet,), name="commits"),
            threading.Thread(target=self._inject, args=(processes, 1), name="processes"),
            threading.Thread(target=self._inject, args=(sinks, 2), name="sinks"),
        ]
        for thread in threads:
            thread.start()
        self.over.wait(fault_seconds)
        self.stop_faults.set()
        for thread in threads:
            thread.join()
        if self.over.is_set():
            return
        self.say("no more faults; waiting until everything is committed")
        assert self.result.load is not None
        self.result.settle_seconds = fleet.wait_until_committed(self.result.load.ends, SETTLE_SECONDS_MAX)
        self.say(f"committed after {self.result.settle_seconds:.1f} s; stopping the readers")
        for name in READERS:
            self.result.exit_codes[name] = fleet.stop(fleet.children[name])
        if not fleet.flower_answers():
            raise LocalError("Flower does not respond")
        self._judge(fleet)
        self._compare(fleet, manifest)

    def _start(self) -> Fleet:
        stack = self.stack.start()
        # Clients connect to the address that the Sentinels return, which bypasses a proxy.
        single = isinstance(stack.servers["redis"], Redis)
        for part in (*SINKS, *(["redis"] if single else [])):
            proxy = FaultProxy(stack.servers[part].address, http=part != "redis", seed=self.seed)
            self.proxies[part] = self._open.enter_context(proxy)
        if self.settings["REPLAYS_BIGQUERY_WRITE"] == "storage":
            proxy = FaultProxy(stack.addresses[BIGQUERY_STORAGE], seed=self.seed)
            self.proxies[BIGQUERY_STORAGE] = self._open.enter_context(proxy)
        fleet = self.fleet = Fleet(stack, self.settings, proxies=self.proxies)
        fleet.migrate()
        for name in WORKERS:
            fleet.worker(name)
        for name in READERS:
            fleet.reader(name, REPLAYS_LOG_LEVEL=STEPS_LOG_LEVEL)
        fleet.flower()
        self.say("two readers, two workers and Flower are running")
        return fleet

    def _load(self, settings: Settings, manifest: Path) -> None:
        """Produces messages at a steady rate until the faults end."""
        count = int(self.rate * self.result.fault_seconds * 2) + 1
        try:
            self.result.load = produce(
                settings.model_copy(update={"kafka_options": LOAD_OPTIONS}),
                PROFILES["small"],
                count,
                self.seed,
                manifest_path=manifest,
                rate=self.rate,
                stop=self.stop_faults.is_set,
            )
        except LoadError as error:
            self.result.error = str(error)
            self.over.set()

    def _watch_commits(self, fleet: Fleet) -> None:
        """Records committed offsets from the broker, for the history."""
        polled = PolledOffsets(fleet.settings, SOURCE_PARTITIONS + ADDED_PARTITIONS_MAX)
        while not self.stop_faults.wait(0.5):
            polled.read()
        polled.close()
        self.history.reads += polled.reads

    def _judge(self, fleet: Fleet) -> None:
        """Checks the history of commits in the readers' logs against the broker's responses."""
        readers = [
            LoggedOperations.of(name, log_lines(child))
            for name, child in fleet.children.items()
            if name.startswith("reader")
        ]
        for reader in readers:
            reader.add_to(self.history)
        starts = [at for reader in readers for at in reader.starts]
        self._find_gaps([owned for reader in readers for owned in reader.owned], starts)
        self.result.history = self.history.counts()
        self.result.violations = judge(self.history)
        self.say(f"checked a history of {self.history.counts()}")

    def _find_gaps(self, owned: list[OwnedPeriod], starts: list[float]) -> None:
        began_at = time.time() - (time.monotonic() - self.began)
        group = [fault for fault in self.result.faults if fault.kind.startswith(("reader:", "broker:", "topic:"))]
        times = [(began_at + fault.at_seconds, began_at + fault.at_seconds + fault.seconds) for fault in group]
        disturbances = [Disturbance(*pair) for pair in [*times, *zip(starts, starts, strict=True)]]
        found = gaps(owned)
        self.result.unowned_seconds = max((gap.seconds for gap in found), default=0.0)
        self.result.unowned_undisturbed_seconds = max(
            (gap.undisturbed_seconds(disturbances) for gap in found), default=0.0
        )
        self.result.unowned_seconds_max = UNOWNED_SECONDS_MAX

    # Faults

    def _inject(self, faults: Mapping[str, Injection], number: int) -> None:
        """Injects the given faults one after another until `stop_faults` is set. The order is reshuffled in each
        round.
        """
        rng = random.Random(f"{self.seed}:{number}")
        while not self.stop_faults.is_set():
            shuffled = list(faults.items())
            rng.shuffle(shuffled)
            for kind, inject in shuffled:
                if self.stop_faults.wait(rng.uniform(0.5, 2.5)):
                    return
                began = time.monotonic()
                injected = InjectedFault(kind, began - self.began, 0.0)
                try:
                    injected.target = inject(rng)
                except LocalError as error:
                    injected.error = str(error)
                injected.seconds = time.monotonic() - began
                self.result.faults.append(injected)
                self.say(f"{kind} {injected.target} ({injected.seconds:.1f} s) {injected.error}")

    # Comparison

    def _compare(self, fleet: Fleet, manifest: Path) -> None:
        result, settings = self.result, fleet.settings
        expected = Expectation.from_manifest(manifest, settings=settings)
        statsd_url = self.stack.addresses["statsd_query"]
        result.report = report = reconcile(
            settings, expected, statsd_url=statsd_url, progress=lambda name: self.say(f"checked {name}")
        )
        result.lost = sum(check.missing for check in report.checks)
        result.doubled = sum(check.extra for check in report.checks)
        sent = read_metrics(statsd_url)[SIZES + "size_compressed"].count
        segments = expected.metrics[SIZES + "size_compressed"].count
        result.twice["segments handed to Datadog"] = sent / segments - 1
        result.twice |= stored_twice(settings)
        readers = [child for name, child in fleet.children.items() if name.startswith("reader")]
        result.rebalances = sum(len(log_lines_of(child, "partitions_assigned")) for child in readers)
        result.halted = sum(len(log_lines_of(child, "reader_halted")) for child in readers)
        result.unexpected_exits = fleet.unrequested_exits()
        result.crashes = [
            f"{name} crashed: {line}"
            for name, child in fleet.children.items()
            for line in crash_lines(child.log_path)
        ]


def crash_lines(log: Path) -> list[str]:
    """Returns the lines of a log that the C library or Python wrote when it aborted the process."""
    if not log.exists():
        return []
    return [line for line in log.read_text(errors="replace").splitlines() if CRASH.search(line)]


def stored_twice(settings: Settings) -> dict[str, float]:
    """Returns the share of rows that are stored more than once, although queries do not return the copies."""
    found = {}
    server = clickhouse.client(settings)
    try:
        for table in ("replay_segments", "replays"):
            stored = server.query(f"SELECT count() FROM {table}").result_rows[0][0]
            exact = server.query(f"SELECT count() FROM {table} FINAL").result_rows[0][0]
            found[f"ClickHouse {table}, not merged yet"] = stored / max(1, exact) - 1
    finally:
        server.close()
    connected = bigquery.client(settings)
    try:
        table = f"`{settings.bigquery_project}.{settings.bigquery_dataset}.replay_events`"
        row = next(
            iter(
                connected.query_and_wait(
                    "SELECT COUNT(*) AS n, COUNT(DISTINCT CONCAT(CAST(project_id AS STRING), '-', row_id)) AS d "
                    f"FROM {table}"
                )
            )
        )
        found["BigQuery rows, hidden by the view"] = row["n"] / max(1, row["d"]) - 1
    finally:
        connected.close()  # type: ignore[no-untyped-call]
    return found


@contextmanager
def working_directory(directory: Path | None) -> Iterator[Path]:
    """Yields the given directory, or a temporary one. The temporary directory is in memory if there is enough
    memory, because an emulator writes one file per object.
    """
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    with temporary_files_in_memory(wanted=True):
        place = Path(tempfile.mkdtemp(prefix="chaos-"))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def ending_event() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM and Ctrl-C set, if this thread can handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield threading.Event()
        return
    with ending_on_signals() as event:
        yield event
