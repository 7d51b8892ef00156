"""The whole system on this machine, fed, watched, and held to account.

`run` starts the embedded stack, migrates it, starts a flush worker, Flower and the reader as processes of their
own, produces a load, waits until every offset is committed, stops the reader, and reconciles every sink with the
load's manifest. It returns 0 only if all of that held. `kill` kills a part in the middle, with SIGKILL.

Nothing stays behind: all processes are children that a warden ends with us (`ingest/local/servers/processes.py`),
also when this process is killed.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ingest.local.compare import Committed, ReconcileError, Report, reconcile
from ingest.local.load.expectation import Expectation
from ingest.local.load.produce import PROFILES, LoadError, Produced, Profile, produce, summary
from ingest.local.servers.base import answers_http
from ingest.local.servers.processes import HOST, Child, LocalError, free_port, wait_until
from ingest.local.servers.redis import Redis
from ingest.local.stack import PARTS, KafkaKind, Stack
from ingest.settings import Settings
from tasks.errors import SinkError
from tasks.migrate import migrate

GiB = 1024**3

Victim = Literal["worker", "reader", "redis"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)

FLOWER_USER = "demo"
POLL_SECONDS = 0.1
PLAIN_LINE_SECONDS = 2.0
PLAIN_WIDTH = 140  # of tables in a log file
KILL_AT = 0.25  # of the messages committed
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
STALL_SECONDS_MAX = 90.0  # without one more offset committed, after which we give up

# The stand-ins write a file an object and wait for the disk; in memory the demo takes half the time.
MEMORY_DIRECTORY = Path("/dev/shm")
MEMORY_BYTES_FREE_MIN = 3 * GiB

# Shorter than in production, so that what was lost with a killed part is missed within seconds.
QUICK = {
    "REPLAYS_FLUSH_DEADLINE_SECONDS": "15",
    "REPLAYS_RETRY_BACKOFF_SECONDS": "1",
    "REPLAYS_RETRY_BACKOFF_SECONDS_MAX": "5",
    "REPLAYS_TASK_VISIBILITY_SECONDS": "15",
    "REPLAYS_BATCH_AGE_SECONDS_MAX": "1",
}

SAMPLE_TITLE = "pages by rage clicks"
SAMPLE_QUERY = """
SELECT url, uniqExactIf(event_hash, click_is_rage = 1) AS rage, uniqExactIf(event_hash, click_is_dead = 1) AS dead,
       uniqExact(replay_id) AS replays
FROM replays FINAL WHERE click_is_dead = 1 AND url != ''
GROUP BY url ORDER BY rage DESC, dead DESC, url LIMIT 5
"""
RAGE_QUERY = """
SELECT toString(replay_id), project_id FROM replays FINAL WHERE click_is_rage = 1 AND platform != 'java'
GROUP BY replay_id, project_id ORDER BY count() DESC, replay_id LIMIT 1
"""


class DemoError(RuntimeError):
    """The demo cannot go on. The text says why, and ends with a log where one helps."""


@dataclass(slots=True)
class Outcome:
    """What came of it, for the table and for JSON."""

    ok: bool = False
    error: str = ""
    load: Produced | None = None
    report: Report | None = None
    sample: list[tuple[Any, ...]] = field(default_factory=list)
    rage_replay: str = ""
    killed: str = ""
    reader_exit: int | None = None
    addresses: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def messages_per_second(self) -> float:
        """From the first message produced to the last offset committed."""
        seconds = self.seconds.get("ingest", 0.0)
        return self.load.messages / seconds if self.load and seconds else 0.0

    @property
    def mb_per_second(self) -> float:
        """Of message values, over the same time."""
        seconds = self.seconds.get("ingest", 0.0)
        return self.load.size_bytes / 1e6 / seconds if self.load and seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "ok": self.ok,
            "error": self.error,
            "killed": self.killed,
            "reader_exit": self.reader_exit,
            "load": summary(self.load) if self.load else None,
            "messages_per_second": round(self.messages_per_second, 1),
            "mb_per_second": round(self.mb_per_second, 2),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "reconciliation": self.report.as_dict() if self.report else None,
            "sample": self.sample,
            "rage_replay": self.rage_replay,
            "addresses": self.addresses,
        }


class _Screen:
    """What a person sees: bars on a terminal, lines elsewhere, nothing with --json."""

    def __init__(self, quiet: bool) -> None:
        self.console = Console(quiet=quiet, highlight=False)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def line(self, text: str) -> None:
        """One line, at once."""
        self.console.print(text, soft_wrap=True, markup=False)
        if not self.console.is_terminal:
            self.console.file.flush()

    @contextmanager
    def bars(self) -> Iterator[None]:
        """Bars, if this is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=False) as self._bars:
            yield
        self._bars = None

    def advance(self, name: str, done: int, total: int) -> None:
        """Where one of the bars stands; a line now and then without a terminal."""
        if self._bars is not None:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total)
            self._bars.update(self._tasks[name], completed=done, total=total)
            return
        now = time.monotonic()
        if done == total or now - self._said.get(name, 0.0) >= PLAIN_LINE_SECONDS:
            self._said[name] = now
            self.line(f"{name:<10} {done} of {total}")


def run(
    count: int = 5000,
    seed: int = 1,
    *,
    keep: bool = False,
    directory: Path | None = None,
    profile: str = "demo",
    kill: Victim | None = None,
    as_json: bool = False,
    kafka: KafkaKind = "tansu",
    layout: Literal["segment", "packed"] = "segment",
    settings: dict[str, str] | None = None,
) -> int:
    """The demo with `count` segments. 0: everything held; 1: something did not; 130: interrupted.

    `keep` leaves everything up until Ctrl-C. `directory` keeps data, logs and manifest there. `settings`: further
    REPLAYS_* variables.
    """
    screen = _Screen(quiet=as_json)
    outcome = Outcome(killed=kill or "")
    with _ending_on_sigterm(), temporary_files_in_memory(directory is None and not keep):
        try:
            with Stack(directory, kafka=kafka, progress=screen.line) as stack:
                demo = _Demo(stack, screen, outcome, {"REPLAYS_GCS_LAYOUT": layout, **(settings or {})})
                try:
                    demo.run(count, seed, PROFILES[profile], kill)
                except (DemoError, LocalError, LoadError, ReconcileError, SinkError) as error:
                    outcome.error = str(error)
                outcome.ok = not outcome.error and outcome.report is not None and outcome.report.ok
                _show(screen, outcome, as_json)
                if keep:
                    demo.stay()
                demo.stop()
        except KeyboardInterrupt:
            screen.line("interrupted; everything is stopped")
            return 130
    return 0 if outcome.ok else 1


class _Demo:
    """One run, step by step."""

    def __init__(self, stack: Stack, screen: _Screen, outcome: Outcome, extra: dict[str, str]) -> None:
        self.stack = stack
        self.screen = screen
        self.outcome = outcome
        self.extra = extra
        self.env: dict[str, str] = {}
        self.settings = settings_of({})
        self.reader: Child | None = None
        self.worker: Child | None = None
        self.flower: Child | None = None
        self.rage_path = ""
        self.password = secrets.token_urlsafe(12)
        self.began = time.monotonic()

    def run(self, count: int, seed: int, profile: Profile, kill: Victim | None) -> None:
        """All of it. Raises what `run` above knows."""
        with self._timed("start"):
            self._start()
        manifest = self.stack.directory / "manifest.jsonl"
        began = time.monotonic()
        with self.screen.bars():
            produced = produce(
                self.settings,
                profile,
                count,
                seed,
                manifest_path=manifest,
                progress=lambda done, expected, _: self.screen.advance("produced", done, max(done, expected)),
            )
            self.outcome.load = produced
            self.outcome.seconds["produce"] = produced.seconds
            self._settle(produced, kill)
        self.outcome.seconds["ingest"] = time.monotonic() - began
        with self._timed("stop reader"):
            self._stop_reader()
        with self._timed("reconcile"):
            self._reconcile(manifest, kill)
        self.outcome.seconds["all"] = time.monotonic() - self.began

    def stay(self) -> None:
        """Everything up again, addresses printed, until Ctrl-C."""
        if self.reader is not None and not self.reader.alive:
            self.reader.start()
            self.stack.children.keep(self.reader)
        web = self._start_web()
        lines = ["", "Everything is up:"]
        lines += [f"  {name:<14} {address}" for name, address in self.outcome.addresses.items()]
        lines.append(f"  {'replays':<14} {web}/")
        if self.rage_path:
            lines.append(f"  {'a rage click':<14} {web}/{self.rage_path}")
        lines.append(f"  {'operate':<14} {web}/operate")
        lines.append(
            f"  {'password':<14} Flower's and the operator's page: user {FLOWER_USER}, password {self.password}"
        )
        lines += ["", "For another terminal:"]
        lines += [f"  export {name}={value}" for name, value in sorted(self.env.items())]
        lines += ["", f"Logs are in {self.stack.directory / 'logs'}.", "Stop all of it with Ctrl-C."]
        for line in lines:
            self.screen.line(line)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        self.screen.line("stopping")

    def _start_web(self) -> str:
        """The pages over what was ingested; returns their address."""
        url = f"http://{HOST}:{free_port()}"
        env = {**self.env, "REPLAYS_FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{self.password}"}
        command = [_program("replays-ingest"), "web", "--port", url.rpartition(":")[2]]
        self.stack.children.start("web", command, env=env, keep=True)
        wait_until(lambda: answers_http(f"{url}/"), READY_SECONDS_MAX, "the pages")
        return url

    def stop(self) -> None:
        """Tells those to end that take a second over it, at once; the stack then ends everything."""
        for child in (self.worker, self.flower, self.reader):
            if child is not None:
                self.stack.children.release(child)
                child.signal(signal.SIGTERM)

    # Start

    def _start(self) -> None:
        self.stack.start(PARTS)
        scratch = self.stack.directory / "tmp"  # so that what a killed process leaves there goes with the rest
        scratch.mkdir(exist_ok=True)
        http_port = str(free_port())
        self.env = {**QUICK, "REPLAYS_HTTP_PORT": http_port, **self.stack.settings(), **self.extra}
        env = {**self.env, "TMPDIR": str(scratch)}
        self.settings = settings_of(self.env)
        children = self.stack.children
        self.worker = children.start("worker", [*_celery(), "worker", "--loglevel=INFO"], env=env, keep=True)
        port = free_port()
        flower_env = {**env, "REPLAYS_FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{self.password}"}
        arguments = ["flower", f"--address={HOST}", f"--port={port}"]
        self.flower = children.start("flower", [*_celery(), *arguments], env=flower_env, keep=True)
        url = f"http://{HOST}:{port}"
        reader_url = f"http://{HOST}:{http_port}"
        self.outcome.addresses = {**self.stack.addresses, "flower": url, "reader": reader_url}
        for line in migrate(self.settings, topics=True):
            self.screen.line(f"migrated   {line}")
        self.reader = children.start("reader", [_program("replays-ingest")], env=env, keep=True)
        wait_until(lambda: answers_http(f"{url}/healthcheck"), READY_SECONDS_MAX, "Flower")
        self.screen.line(f"Flower     {url} (user {FLOWER_USER}, password {self.password})")

    # Settle

    def _settle(self, produced: Produced, kill: Victim | None) -> None:
        """Until every partition's committed offset is its log end."""
        topic = self.settings.kafka_topic
        ends = {(topic, partition): end for partition, end in produced.ends.items()}
        total = sum(ends.values())
        committed = Committed(self.settings)
        pending = kill
        before, moved_at = -1, time.monotonic()
        try:
            while True:
                done = sum(min(at, ends[source]) for source, at in committed.of(sorted(ends)).items())
                self.screen.advance("committed", done, total)
                if pending and done >= KILL_AT * total:
                    self._kill(pending)
                    pending = None
                if done >= total:
                    break
                self._check_reader()
                if done != before:
                    before, moved_at = done, time.monotonic()
                if time.monotonic() - moved_at > STALL_SECONDS_MAX:
                    stalled = f"{done} of {total} offsets are committed, and none in {STALL_SECONDS_MAX:g} s"
                    raise DemoError(f"{stalled}\n{self._logs()}")
                time.sleep(POLL_SECONDS)
        finally:
            committed.close()

    def _kill(self, victim: Victim) -> None:
        """SIGKILL; what is supervised comes back, Redis comes back empty."""
        if victim == "redis":
            server = self.stack.servers["redis"]
            assert isinstance(server, Redis)
            server.restart(kill=True, empty=True)
        else:
            child = self.worker if victim == "worker" else self.reader
            assert child is not None
            child.kill()
        self.screen.line(f"killed     {victim} with SIGKILL; it starts again")

    def _check_reader(self) -> None:
        """A reader that halted, or that ends again and again, is a failure to be told at once."""
        assert self.reader is not None
        if self.reader.starts > 5:
            raise DemoError(f"the reader keeps ending\n{self.reader.log_tail()}")

    def _logs(self) -> str:
        return "\n".join(child.log_tail() for child in (self.reader, self.worker) if child is not None)

    def _stop_reader(self) -> None:
        assert self.reader is not None
        self.stack.children.release(self.reader)
        self.reader.signal(signal.SIGTERM)
        self.outcome.reader_exit = self.reader.wait(STOP_SECONDS_MAX)
        if self.outcome.reader_exit != 0:
            code = self.outcome.reader_exit
            raise DemoError(f"the reader ended with code {code} after SIGTERM\n{self.reader.log_tail()}")

    # Hold to account

    def _reconcile(self, manifest: Path, kill: Victim | None) -> None:
        expected = Expectation.of_manifest(manifest, settings=self.settings)
        self.outcome.report = reconcile(
            self.settings,
            expected,
            statsd_url=self.stack.addresses.get("statsd_query", ""),
            metrics_exactly=kill is None,
            progress=lambda name: self.screen.line(f"checked    {name}"),
        )
        if "clickhouse" in self.settings.sinks:
            self._sample()

    def _sample(self) -> None:
        from tasks.sinks.clickhouse.sink import client

        server = client(self.settings)
        try:
            self.outcome.sample = [tuple(row) for row in server.query(SAMPLE_QUERY).result_rows]
            replays = server.query(RAGE_QUERY).result_rows
        finally:
            server.close()
        if replays:
            self.rage_path = f"replay/{replays[0][1]}/{replays[0][0].replace('-', '')}"
            self.outcome.rage_replay = f"{replays[0][0].replace('-', '')} (project {replays[0][1]})"

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.outcome.seconds[name] = time.monotonic() - began


def settings_of(env: dict[str, str]) -> Settings:
    """The settings that a process with these REPLAYS_* variables would have."""
    fields = {name.removeprefix("REPLAYS_").lower(): value for name, value in env.items()}
    make = cast("Callable[..., Settings]", Settings)
    return make(**fields)


def _program(name: str) -> str:
    """A command of this very environment."""
    path = Path(sys.executable).with_name(name)
    return str(path) if path.exists() else name


def _celery() -> list[str]:
    return [sys.executable, "-m", "celery", "-A", "tasks"]


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: children first. Only where signals can be handled."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def temporary_files_in_memory(wanted: bool) -> Iterator[None]:
    """Temporary files of this process and its children go to memory, where there is plenty and nobody chose."""
    name = "TMPDIR"
    try:
        there = os.statvfs(MEMORY_DIRECTORY)
        free_bytes = there.f_bavail * there.f_frsize
    except OSError:
        free_bytes = 0
    if not wanted or name in os.environ or free_bytes < MEMORY_BYTES_FREE_MIN:
        yield
        return
    os.environ[name] = str(MEMORY_DIRECTORY)
    tempfile.tempdir = None
    try:
        yield
    finally:
        del os.environ[name]
        tempfile.tempdir = None


# --------------------------------------------------------------------------------------------------------- showing


def report_table(report: Report) -> Table:
    """The reconciliation as a table."""
    table = Table(title="reconciliation", title_justify="left")
    for heading in ("expected", "found", "missing", "extra", "wrong"):
        if heading == "expected":
            table.add_column("what")
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("how it is compared")
    for check in report.checks:
        numbers = (check.expected, check.found, check.missing, check.extra, check.wrong)
        table.add_row(
            check.name,
            *(f"{number:,}" for number in numbers),
            "[green]ok[/]" if check.ok else "[red]NOT OK[/]",
            check.note,
        )
    return table


def _sample_table(rows: list[tuple[Any, ...]]) -> Table:
    table = Table(title=f"{SAMPLE_TITLE}, asked of ClickHouse", title_justify="left")
    for heading in ("page", "rage clicks", "dead clicks", "replays"):
        table.add_column(heading, justify="left" if heading == "page" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    return table


def _show(screen: _Screen, outcome: Outcome, as_json: bool) -> None:
    """The end of the demo."""
    if as_json:
        print(json.dumps(outcome.as_dict(), indent=2, default=str), flush=True)
        return
    console = screen.console
    if outcome.report is not None:
        console.print(report_table(outcome.report))
        failures = outcome.report.failures()
        if failures:
            console.print(failures, markup=False)
    if outcome.sample:
        console.print(_sample_table(outcome.sample))
    if outcome.load is not None and outcome.report is not None:
        load = outcome.load
        screen.line(
            f"{load.messages} messages ({load.segments} segments, {load.duplicates} sent twice, {load.rejects} "
            f"malformed, {load.size_bytes / 1e6:.0f} MB) in {outcome.seconds['ingest']:.1f} s: "
            f"{outcome.messages_per_second:.0f} messages/s, {outcome.mb_per_second:.1f} MB/s"
        )
        screen.line(", ".join(f"{name} {seconds:.1f} s" for name, seconds in outcome.seconds.items()))
    if outcome.rage_replay:
        screen.line(f"a replay with rage clicks: {outcome.rage_replay} (--keep prints the address where it plays)")
    if outcome.error:
        screen.line(f"error: {outcome.error}")
    screen.line("everything that went in came out, once" if outcome.ok else "NOT everything holds, see above")


__all__ = ["VICTIMS", "DemoError", "Outcome", "Victim", "report_table", "run", "settings_of"]


def main() -> int:
    """python -m ingest.local.demo [COUNT] [--kill worker|reader|redis] ...; `replays-ingest demo` has the same."""
    import argparse

    parser = argparse.ArgumentParser(description="The whole system on this machine, reconciled.")
    parser.add_argument("count", nargs="?", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave everything up until Ctrl-C")
    parser.add_argument("--directory", type=Path, help="keep data, logs and manifest there")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="demo")
    parser.add_argument("--kill", choices=VICTIMS, help="kill -9 this in the middle")
    parser.add_argument("--kafka", choices=("tansu", "apache"), default="tansu")
    parser.add_argument("--layout", choices=("segment", "packed"), default="segment", help="of the objects")
    parser.add_argument("--json", action="store_true", dest="as_json")
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
