"""Breaks the system at random, from a seed, and then proves that nothing was lost.

    python -m tools.chaos --minutes 10 --seed 1        (make chaos)

The embedded stack, two readers in one group, two flush workers and Flower run as processes of their own under a
steady load. Two hands break things at the same time, each from its own pack of faults, shuffled by the seed: one
hits processes (kill -9, SIGSTOP, a reader more or less, Redis and the broker), the other makes sinks sick through
fault proxies. When the time is over all faults stop, every message has to become committed, the readers have to
end in an orderly way, and every sink is compared with the manifest of the load, object for object and row for row.

Which faults come in which order depends on the seed alone; what they meet depends on the machine as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table

from ingest.local.compare import Committed, ReconcileError, Report, read_metrics, reconcile
from ingest.local.demo import report_table, temporary_files_in_memory
from ingest.local.fleet import SESSION_SECONDS, Fleet, is_up, pool_processes, said
from ingest.local.load.expectation import SIZES, Expectation
from ingest.local.load.produce import PROFILES, LoadError, Produced, produce, summary
from ingest.local.servers import java_kafka
from ingest.local.servers.fault_proxy import (
    Errors,
    Fault,
    FaultProxy,
    Hang,
    Latency,
    LostReplies,
    Pass,
    Refuse,
    Reset,
)
from ingest.local.servers.processes import Child, LocalError, ending_on_signals, wait_until
from ingest.local.servers.redis import Redis
from ingest.local.stack import KafkaKind, Stack
from ingest.settings import Settings
from tasks.errors import SinkError
from tasks.migrate import SOURCE_PARTITIONS
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import sink as clickhouse

READERS, WORKERS = ("reader-1", "reader-2"), ("worker-1", "worker-2")
SINKS = ("gcs", "clickhouse", "bigquery")
GUEST = "reader-3"
MESSAGES_PER_SECOND = 40.0
SETTLE_SECONDS_MAX = 180.0
PLAIN_WIDTH = 150

# So that a call to a sick sink ends while the sink is still sick, and a breaker closes soon after.
IMPATIENT = {
    "REPLAYS_SINK_TIMEOUT_SECONDS": "5",
    "REPLAYS_REDIS_TIMEOUT_SECONDS": "2",
    "REPLAYS_TASK_BACKOFF_SECONDS": "0.3",
    "REPLAYS_TASK_BACKOFF_SECONDS_MAX": "3",
    "REPLAYS_BREAKER_COOL_SECONDS": "1",
    "REPLAYS_BREAKER_COOL_SECONDS_MAX": "4",
    "REPLAYS_BATCH_MESSAGES_MAX": "50",
}

Kind = Literal[
    "reader: kill -9",
    "reader: SIGSTOP past its session",
    "reader: one more, then SIGTERM",
    "reader: SIGTERM and again",
    "worker: kill -9",
    "worker: one pool process killed",
    "worker: SIGSTOP",
    "redis: kill -9, comes back empty",
    "redis: kill -9, comes back with its data",
    "redis: SIGSTOP",
    "redis: connections reset",
    "broker: kill -9, comes back with its data",
    "broker: SIGSTOP",
    "flower: kill -9",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
NEEDS_APACHE: tuple[Kind, ...] = ("broker: kill -9, comes back with its data",)

SINK_FAULTS: dict[str, Callable[[], Fault]] = {
    "503": lambda: Errors(503),
    "429, half of the requests": lambda: Errors(429, share=0.5, retry_after_seconds=1),
    "hangs": Hang,
    "refuses": Refuse,
    "resets": Reset,
    "loses half of its replies": lambda: LostReplies(share=0.5),
    "is slow (1 s)": lambda: Latency(1.0),
}


@dataclass(slots=True)
class Done:
    """One fault: when it began (seconds into the run), how long it lasted, whom it hit, what was wrong with it."""

    kind: str
    at_seconds: float
    seconds: float
    whom: str = ""
    trouble: str = ""


@dataclass(slots=True)
class Result:
    """Everything that is told in the end."""

    seed: int
    kafka: str
    fault_seconds: float
    ok: bool = False
    error: str = ""
    faults: list[Done] = field(default_factory=list)
    load: Produced | None = None
    report: Report | None = None
    settle_seconds: float = 0.0
    seconds: float = 0.0
    lost: int = 0
    doubled: int = 0
    """Identities that are there more than once after de-duplication."""
    twice: dict[str, float] = field(default_factory=dict)
    """Share of what was written more than once, before de-duplication, by where it was counted."""
    rebalances: int = 0
    commits_fell: list[str] = field(default_factory=list)
    halted: int = 0
    exit_codes: dict[str, int] = field(default_factory=dict)
    ended_by_themselves: dict[str, int] = field(default_factory=dict)

    def judge(self) -> None:
        """Sets `ok`, and `error` to the first thing that does not hold."""
        troubles = [f"{done.kind}: {done.trouble}" for done in self.faults if done.trouble]
        exits = [f"{name} ended with code {code}" for name, code in self.exit_codes.items() if code != 0]
        wrong = [*troubles, *(f"a committed offset fell: {fall}" for fall in self.commits_fell), *exits]
        if self.halted:
            wrong.append(f"a reader halted {self.halted} times")
        if self.report is None or not self.report.ok:
            wrong.append("the reconciliation does not hold" if self.report else "nothing was reconciled")
        if not self.faults:
            wrong.append("no fault was injected")
        self.error = self.error or (wrong[0] if wrong else "")
        self.ok = not self.error

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        found = {name: value for name, value in asdict(self).items() if name not in ("load", "report")}
        found["load"] = summary(self.load) if self.load else None
        found["reconciliation"] = self.report.as_dict() if self.report else None
        return found


def run(
    minutes: float = 10.0,
    seed: int = 1,
    *,
    kafka: KafkaKind | None = None,
    rate: float = MESSAGES_PER_SECOND,
    directory: Path | None = None,
    layout: str = "segment",
    as_json: bool = False,
) -> int:
    """Chaos for `minutes`, then the account. 0: everything held; 1: something did not; 130: interrupted.

    `kafka` None: Apache Kafka where it can run, Tansu elsewhere. `rate`: messages a second. `directory` keeps data
    and logs there; a temporary one, in memory where there is some, is removed at the end.
    """
    chosen: KafkaKind = kafka or ("tansu" if java_kafka.available() else "apache")
    console = Console(quiet=as_json, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    result = Result(seed, chosen, minutes * 60)
    began = time.monotonic()
    with _place(directory) as place, _ending() as ending:
        chaos = _Chaos(place, chosen, seed, rate, console, result, ending, layout, is_temporary=directory is None)
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
    """One run. Everything it starts is stopped by `close`."""

    def __init__(
        self,
        directory: Path,
        kafka: KafkaKind,
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
        self.directory, self.layout = directory, layout
        self.over = ending
        self.calm = threading.Event()
        self.began = time.monotonic()
        self._open = ExitStack()
        # A directory of its own makes the stack's Redis keep an append-only file, which it may lose on purpose.
        self.stack = self._open.enter_context(Stack(directory / "stack", kafka=kafka, progress=self.say))
        if is_temporary:
            self.stack.children.remove_at_end(directory)
        self.proxies: dict[str, FaultProxy] = {}
        self.fleet: Fleet | None = None

    def say(self, line: str) -> None:
        """One line, with the time."""
        self.console.print(f"{time.monotonic() - self.began:6.1f} s  {line}", soft_wrap=True, markup=False)
        if not self.console.is_terminal:
            self.console.file.flush()

    def close(self) -> None:
        """May be called at any time."""
        self.calm.set()
        self._open.close()

    def run(self, fault_seconds: float) -> None:
        """All of it. Raises what went wrong with the experiment itself; `result` has the rest."""
        fleet = self._start()
        manifest = self.directory / "manifest.jsonl"
        threads = [
            threading.Thread(target=self._load, args=(fleet.settings, manifest), name="load"),
            threading.Thread(target=self._watch_commits, args=(fleet,), name="commits"),
            threading.Thread(target=self._hand, args=(self._process_faults(fleet), 1), name="processes"),
            threading.Thread(target=self._hand, args=(self._sink_faults(), 2), name="sinks"),
        ]
        for thread in threads:
            thread.start()
        self.over.wait(fault_seconds)
        self.calm.set()
        for thread in threads:
            thread.join()
        if self.over.is_set():
            return
        self.say("no more faults; waiting until everything is committed")
        assert self.result.load is not None
        self.result.settle_seconds = fleet.wait_committed(self.result.load.ends, SETTLE_SECONDS_MAX)
        self.say(f"committed after {self.result.settle_seconds:.1f} s; stopping the readers")
        for name in READERS:
            self.result.exit_codes[name] = fleet.stop(fleet.children[name])
        if not fleet.flower_answers():
            raise LocalError("Flower did not come back")
        self._account(fleet, manifest)

    def _start(self) -> Fleet:
        stack = self.stack.start()
        for part in (*SINKS, "redis"):
            proxy = FaultProxy(stack.servers[part].address, http=part != "redis", seed=self.seed)
            self.proxies[part] = self._open.enter_context(proxy)
        fleet = self.fleet = Fleet(stack, {**IMPATIENT, "REPLAYS_GCS_LAYOUT": self.layout}, proxies=self.proxies)
        fleet.migrate()
        for name in WORKERS:
            fleet.worker(name)
        for name in READERS:
            fleet.reader(name)
        fleet.flower()
        self.say("two readers, two workers and Flower run")
        return fleet

    def _load(self, settings: Settings, manifest: Path) -> None:
        """As long as there are faults, at a steady rate."""
        count = int(self.rate * self.result.fault_seconds * 2) + 1
        try:
            self.result.load = produce(
                settings,
                PROFILES["small"],
                count,
                self.seed,
                manifest_path=manifest,
                rate=self.rate,
                stop=self.calm.is_set,
            )
        except LoadError as error:
            self.result.error = str(error)
            self.over.set()

    def _watch_commits(self, fleet: Fleet) -> None:
        """No committed offset may ever fall, whoever commits."""
        highest: dict[int, int] = {}
        asking = Committed(fleet.settings)
        sources = [(fleet.settings.kafka_topic, partition) for partition in range(SOURCE_PARTITIONS)]
        while not self.calm.wait(0.5):
            with contextlib.suppress(ReconcileError):
                for (_, partition), offset in asking.of(sources).items():
                    if offset < highest.get(partition, 0):
                        self.result.commits_fell.append(f"{partition}: {highest[partition]} to {offset}")
                    highest[partition] = max(offset, highest.get(partition, 0))
        asking.close()

    # Two hands

    def _hand(self, faults: list[tuple[str, Callable[[random.Random], str]]], number: int) -> None:
        """Deals its faults, one after another, the pack shuffled anew each time, until it shall be calm."""
        rng = random.Random(f"{self.seed}:{number}")
        while not self.calm.is_set():
            pack = list(faults)
            rng.shuffle(pack)
            for kind, inflict in pack:
                if self.calm.wait(rng.uniform(0.5, 2.5)):
                    return
                began = time.monotonic()
                done = Done(kind, began - self.began, 0.0)
                try:
                    done.whom = inflict(rng)
                except LocalError as error:
                    done.trouble = str(error)
                done.seconds = time.monotonic() - began
                self.result.faults.append(done)
                self.say(f"{kind} {done.whom} ({done.seconds:.1f} s) {done.trouble}")

    def _sink_faults(self) -> list[tuple[str, Callable[[random.Random], str]]]:
        def make(sink: str, fault: Callable[[], Fault]) -> Callable[[random.Random], str]:
            def inflict(rng: random.Random) -> str:
                seconds = rng.uniform(2, 8)
                self.proxies[sink].set(fault())
                self.calm.wait(seconds)
                self.proxies[sink].set(Pass())
                return ""

            return inflict

        return [(f"{sink}: {name}", make(sink, fault)) for sink in SINKS for name, fault in SINK_FAULTS.items()]

    def _process_faults(self, fleet: Fleet) -> list[tuple[str, Callable[[random.Random], str]]]:
        inflict = _Inflict(self, fleet)
        found: dict[Kind, Callable[[random.Random], str]] = {
            "reader: kill -9": inflict.kill_reader,
            "reader: SIGSTOP past its session": inflict.stop_reader_past_its_session,
            "reader: one more, then SIGTERM": inflict.add_and_remove_reader,
            "reader: SIGTERM and again": inflict.restart_reader,
            "worker: kill -9": inflict.kill_worker,
            "worker: one pool process killed": inflict.kill_pool_process,
            "worker: SIGSTOP": inflict.stop_worker,
            "redis: kill -9, comes back empty": inflict.empty_redis,
            "redis: kill -9, comes back with its data": inflict.restart_redis,
            "redis: SIGSTOP": inflict.stop_redis,
            "redis: connections reset": inflict.reset_redis,
            "broker: kill -9, comes back with its data": inflict.restart_broker,
            "broker: SIGSTOP": inflict.stop_broker,
            "flower: kill -9": inflict.kill_flower,
        }
        assert found.keys() == set(KINDS)
        return [(kind, do) for kind, do in found.items() if self.kafka == "apache" or kind not in NEEDS_APACHE]

    # The account

    def _account(self, fleet: Fleet, manifest: Path) -> None:
        result, settings = self.result, fleet.settings
        expected = Expectation.of_manifest(manifest, settings=settings)
        statsd_url = self.stack.addresses["statsd_query"]
        result.report = report = reconcile(
            settings, expected, statsd_url=statsd_url, progress=lambda name: self.say(f"checked {name}")
        )
        result.lost = sum(check.missing for check in report.checks)
        result.doubled = sum(check.extra for check in report.checks)
        sent = read_metrics(statsd_url)[SIZES + "size_compressed"].count
        segments = expected.metrics[SIZES + "size_compressed"].count
        result.twice["segments handed to DataDog"] = sent / segments - 1
        result.twice |= _stored_twice(settings)
        readers = [child for name, child in fleet.children.items() if name.startswith("reader")]
        result.rebalances = sum(len(said(child, "partitions_assigned")) for child in readers)
        result.halted = sum(len(said(child, "reader_halted")) for child in readers)
        result.ended_by_themselves = fleet.own_ends()


class _Inflict:
    """The faults of processes. Each returns whom it hit, when all of it is over."""

    def __init__(self, chaos: _Chaos, fleet: Fleet) -> None:
        self._chaos, self._fleet, self._calm = chaos, fleet, chaos.calm

    def kill_reader(self, rng: random.Random) -> str:
        return self._kill(rng, READERS)

    def kill_worker(self, rng: random.Random) -> str:
        return self._kill(rng, WORKERS)

    def kill_flower(self, rng: random.Random) -> str:
        return self._kill(rng, ("flower",))

    def kill_pool_process(self, rng: random.Random) -> str:
        """As the kernel does when memory runs out: the worker lives on and hands the task out again."""
        child = self._child(rng, WORKERS)
        pids = pool_processes(child)
        if pids:
            _signal(rng.choice(pids), signal.SIGKILL)
        return child.name

    def stop_reader_past_its_session(self, rng: random.Random) -> str:
        """It wakes up as a zombie: its partitions have another owner, and its chords have ended meanwhile."""
        return self._stop(self._child(rng, READERS), SESSION_SECONDS + rng.uniform(1.5, 4))

    def stop_worker(self, rng: random.Random) -> str:
        return self._stop(self._child(rng, WORKERS), rng.uniform(2, 8))

    def add_and_remove_reader(self, rng: random.Random) -> str:
        """Two rebalances under load, the second by an orderly end."""
        child = self._fleet.reader(GUEST, keep=False)
        self._calm.wait(rng.uniform(4, 9))
        return self._ends_with_zero(child)

    def restart_reader(self, rng: random.Random) -> str:
        """A deployment: SIGTERM under load, and the next release."""
        child = self._child(rng, READERS)
        try:
            return self._ends_with_zero(child)
        finally:
            self._fleet.reader(child.name)

    def empty_redis(self, rng: random.Random) -> str:
        server = self._chaos.stack.servers["redis"]
        assert isinstance(server, Redis)
        server.restart(kill=True, empty=True)
        return ""

    def restart_redis(self, rng: random.Random) -> str:
        server = self._chaos.stack.servers["redis"]
        server.kill()
        self._calm.wait(rng.uniform(0, 3))
        server.restart()
        return ""

    def stop_redis(self, rng: random.Random) -> str:
        return self._stop(self._chaos.stack.servers["redis"].child, rng.uniform(1, 5))

    def reset_redis(self, rng: random.Random) -> str:
        proxy = self._chaos.proxies["redis"]
        proxy.set(Reset())
        self._calm.wait(rng.uniform(0.5, 3))
        proxy.set(Pass())
        return ""

    def restart_broker(self, rng: random.Random) -> str:
        self._chaos.stack.servers["kafka"].restart(kill=True)
        return ""

    def stop_broker(self, rng: random.Random) -> str:
        return self._stop(self._chaos.stack.servers["kafka"].child, rng.uniform(1, 4))

    def _child(self, rng: random.Random, names: tuple[str, ...]) -> Child:
        return self._fleet.children[rng.choice(names)]

    def _kill(self, rng: random.Random, names: tuple[str, ...]) -> str:
        child = self._child(rng, names)
        self._fleet.kill(child)
        return child.name

    def _stop(self, child: Child, seconds: float) -> str:
        child.pause()
        self._calm.wait(seconds)
        child.resume()
        return child.name

    def _ends_with_zero(self, child: Child) -> str:
        wait_until(lambda: is_up(child), 20, f"{child.name} to be up")
        code = self._fleet.stop(child)
        if code != 0:
            raise LocalError(f"{child.name} ended with code {code} after SIGTERM\n{child.log_tail()}")
        return child.name


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _stored_twice(settings: Settings) -> dict[str, float]:
    """The share of rows that are stored more than once, and that readers never see."""
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
            iter(connected.query_and_wait(f"SELECT COUNT(*) AS n, COUNT(DISTINCT row_id) AS d FROM {table}"))
        )
        found["BigQuery rows, hidden by the view"] = row["n"] / max(1, row["d"]) - 1
    finally:
        connected.close()  # type: ignore[no-untyped-call]
    return found


@contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    """The directory, or a temporary one, in memory if there is some: a stand-in writes a file an object."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    with temporary_files_in_memory(True):
        place = Path(tempfile.mkdtemp(prefix="chaos-"))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _ending() -> Iterator[threading.Event]:
    """Set by SIGTERM and Ctrl-C, where signals can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield threading.Event()
        return
    with ending_on_signals() as event:
        yield event


# --------------------------------------------------------------------------------------------------------- showing


def show(console: Console, result: Result) -> None:
    """Three tables and a verdict."""
    faults = Table(title="faults injected", title_justify="left")
    faults.add_column("fault")
    faults.add_column("times", justify="right")
    faults.add_column("seconds", justify="right")
    for kind in sorted({done.kind for done in result.faults}):
        some = [done for done in result.faults if done.kind == kind]
        faults.add_row(kind, str(len(some)), f"{sum(done.seconds for done in some):.0f}")
    faults.add_section()
    faults.add_row("all", str(len(result.faults)), f"{sum(done.seconds for done in result.faults):.0f}")
    console.print(faults)
    if result.report is not None:
        console.print(report_table(result.report))
        if not result.report.ok:
            console.print(result.report.failures(), markup=False)
    account = Table(title="account", title_justify="left")
    account.add_column("what")
    account.add_column("value", justify="right")
    if result.load is not None:
        account.add_row("messages produced", f"{result.load.messages:,}")
    known = result.report is not None
    account.add_row("lost", f"{result.lost:,}" if known else "unknown")
    account.add_row("duplicates after de-duplication", f"{result.doubled:,}" if known else "unknown")
    account.add_row("committed offsets that fell", f"{len(result.commits_fell)}")
    account.add_row("seconds from the last fault to lag zero", f"{result.settle_seconds:.1f}")
    account.add_row("assignments of partitions", f"{result.rebalances:,}")
    for name, share in result.twice.items():
        account.add_row(f"twice: {name}", f"{share:.2%}")
    for name, count in result.ended_by_themselves.items():
        account.add_row(f"{name} ended by itself", f"{count}")
    console.print(account)
    if result.error:
        console.print(f"error: {result.error}", markup=False)
    verdict = "nothing was lost, nothing is there twice" if result.ok else "NOT everything holds, see above"
    console.print(f"seed {result.seed}, {result.kafka}, {result.seconds:.0f} s: {verdict}")


def main() -> int:
    """python -m tools.chaos [--minutes 10] [--seed 1] [--kafka apache|tansu] [--json]"""
    parser = argparse.ArgumentParser(description="Kills real processes at random, then reconciles every sink.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kafka", choices=("tansu", "apache"), help="default: apache where Java is")
    parser.add_argument("--rate", type=float, default=MESSAGES_PER_SECOND, help="messages a second")
    parser.add_argument("--directory", type=Path, help="keep data and logs there")
    parser.add_argument("--layout", choices=("segment", "packed"), default="segment", help="of the objects")
    parser.add_argument("--json", action="store_true", dest="as_json")
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
