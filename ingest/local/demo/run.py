"""Runs the whole system on this machine, produces test messages, and reconciles the sinks.

`run` starts the embedded stack, migrates it, and starts a flush worker, Flower and the reader as separate
processes. The demo then produces test messages, waits until every offset is committed, stops the reader, and
reconciles every sink with the manifest of what was produced. `run` returns 0 only if every step succeeds. `kill`
names a component that is killed with SIGKILL mid-run.

When this process ends, even by SIGKILL, a watchdog kills all its children (`ingest/local/servers/processes.py`).
"""

from __future__ import annotations

import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Literal, get_args

from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.reconcile import reconcile
from ingest.local.compare.report import ReconcileError
from ingest.local.demo.outcome import Outcome, show
from ingest.local.demo.screen import Screen
from ingest.local.launch import SHORT_TIMEOUTS, celery, replays_ingest, settings_of, temporary_files_in_memory
from ingest.local.load.expectation import Expectation
from ingest.local.load.produce import PROFILES, LoadError, ProducedTotals, Profile, produce
from ingest.local.servers.base import answers_http
from ingest.local.servers.processes import HOST, Child, LocalError, free_port, is_listening, wait_until
from ingest.local.servers.redis import Redis
from ingest.local.stack import PARTS, KafkaKind, Stack
from tasks.errors import SinkError
from tasks.migrate import migrate
from tasks.sinks.clickhouse.sink import client

Victim = Literal["worker", "reader", "redis"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)

FLOWER_USER = "demo"
POLL_SECONDS = 0.1
KILL_AT = 0.25  # share of messages committed before the kill
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
STALL_SECONDS_MAX = 90.0  # time without a newly committed offset after which the demo fails

SAMPLE_QUERY = """
SELECT url, countIf(click_is_rage = 1) AS rage, countIf(click_is_dead = 1) AS dead,
       uniqExact(project_id, replay_id) AS replays
FROM replays FINAL WHERE click_is_dead = 1 AND url != ''
GROUP BY url ORDER BY rage DESC, dead DESC, url LIMIT 5
"""
RAGE_QUERY = """
SELECT toString(replay_id), project_id FROM replays FINAL WHERE click_is_rage = 1 AND platform != 'java'
GROUP BY replay_id, project_id ORDER BY count() DESC, replay_id LIMIT 1
"""


class DemoError(RuntimeError):
    """Raised if the demo cannot continue. The message states the reason and may end with the tail of a log."""


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
    """Runs the demo with `count` segments. Returns 0 if every check passed, 1 if one failed, 130 if interrupted.

    If `keep` is true, everything keeps running until Ctrl-C. If `directory` is given, data, logs and manifest are
    kept there. `settings` contains further REPLAYS_* variables.
    """
    screen = Screen(quiet=as_json)
    outcome = Outcome(killed=kill or "")
    with _interrupted_by_sigterm(), temporary_files_in_memory(wanted=directory is None and not keep):
        try:
            with Stack(directory, kafka=kafka, progress=screen.line) as stack:
                demo = _Demo(stack, screen, outcome, {"REPLAYS_GCS_LAYOUT": layout, **(settings or {})})
                try:
                    demo.run(count, seed, PROFILES[profile], kill)
                except (DemoError, LocalError, LoadError, ReconcileError, SinkError) as error:
                    outcome.error = str(error)
                outcome.ok = not outcome.error and outcome.report is not None and outcome.report.ok
                show(screen, outcome, as_json=as_json)
                if keep:
                    demo.keep_running()
                demo.stop()
        except KeyboardInterrupt:
            screen.line("interrupted; everything is stopped")
            return 130
        except LocalError as error:
            outcome.ok, outcome.error = False, str(error)
            show(screen, outcome, as_json=as_json)
    return 0 if outcome.ok else 1


class _Demo:
    """One run of the demo, with one method per step."""

    def __init__(self, stack: Stack, screen: Screen, outcome: Outcome, extra: dict[str, str]) -> None:
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
        """Runs all steps. Raises the errors that `run` handles."""
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
            self._wait_until_committed(produced, kill)
        self.outcome.seconds["ingest"] = time.monotonic() - began
        with self._timed("stop reader"):
            self._stop_reader()
        with self._timed("reconcile"):
            self._reconcile(manifest, kill)
        self.outcome.seconds["all"] = time.monotonic() - self.began

    def keep_running(self) -> None:
        """Restarts everything, prints the addresses, and waits for Ctrl-C."""
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
        lines += ["", "In another terminal:"]
        lines += [f"  export {name}={value}" for name, value in sorted(self.env.items())]
        lines += ["", f"Logs are in {self.stack.directory / 'logs'}.", "Press Ctrl-C to stop everything."]
        for line in lines:
            self.screen.line(line)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        self.screen.line("stopping")

    def _start_web(self) -> str:
        """Starts the web pages for the ingested data, and returns their address."""
        url = f"http://{HOST}:{free_port()}"
        env = {**self.env, "REPLAYS_FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{self.password}"}
        command = [*replays_ingest(), "web", "--port", url.rpartition(":")[2]]
        self.stack.children.start("web", command, env=env, keep=True)
        # The pages require a login.
        wait_until(lambda: is_listening(int(url.rpartition(":")[2])), READY_SECONDS_MAX, "the pages")
        return url

    def stop(self) -> None:
        """Sends SIGTERM to the processes that stop slowly, so that they stop in parallel. The stack then stops all
        other processes.
        """
        for child in (self.worker, self.flower, self.reader):
            if child is not None:
                self.stack.children.release(child)
                child.signal(signal.SIGTERM)

    # Start

    def _start(self) -> None:
        self.stack.start(PARTS)
        # This folder is removed with the stack, including the files of killed processes.
        scratch = self.stack.directory / "tmp"
        scratch.mkdir(exist_ok=True)
        http_port = str(free_port())
        self.env = {**SHORT_TIMEOUTS, "REPLAYS_HTTP_PORT": http_port, **self.stack.settings(), **self.extra}
        env = {**self.env, "TMPDIR": str(scratch)}
        self.settings = settings_of(self.env)
        children = self.stack.children
        self.worker = children.start("worker", [*celery(), "worker", "--loglevel=INFO"], env=env, keep=True)
        port = free_port()
        flower_env = {**env, "REPLAYS_FLOWER_BASIC_AUTH": f"{FLOWER_USER}:{self.password}"}
        arguments = ["flower", f"--address={HOST}", f"--port={port}"]
        self.flower = children.start("flower", [*celery(), *arguments], env=flower_env, keep=True)
        url = f"http://{HOST}:{port}"
        reader_url = f"http://{HOST}:{http_port}"
        self.outcome.addresses = {**self.stack.addresses, "flower": url, "reader": reader_url}
        for line in migrate(self.settings, topics=True):
            self.screen.line(f"migrated   {line}")
        self.reader = children.start("reader", replays_ingest(), env=env, keep=True)
        wait_until(lambda: answers_http(f"{url}/healthcheck"), READY_SECONDS_MAX, "Flower")
        self.screen.line(f"Flower     {url} (user {FLOWER_USER}, password {self.password})")

    # Settle

    def _wait_until_committed(self, produced: ProducedTotals, kill: Victim | None) -> None:
        """Waits until the committed offset of every partition equals the end of its log."""
        topic = self.settings.kafka_topic
        ends = {(topic, partition): end for partition, end in produced.ends.items()}
        total = sum(ends.values())
        committed = CommittedOffsets(self.settings)
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
                    stalled = (
                        f"{done} of {total} offsets are committed, but no further one in {STALL_SECONDS_MAX:g} s"
                    )
                    raise DemoError(f"{stalled}\n{self._logs()}")
                time.sleep(POLL_SECONDS)
        finally:
            committed.close()

    def _kill(self, victim: Victim) -> None:
        """Sends SIGKILL to the chosen component. Supervised processes are restarted; Redis restarts empty."""
        if victim == "redis":
            server = self.stack.servers["redis"]
            assert isinstance(server, Redis)
            server.restart(kill=True, empty=True)
        else:
            child = self.worker if victim == "worker" else self.reader
            assert child is not None
            child.kill()
        self.screen.line(f"killed     {victim} with SIGKILL; it restarts")

    def _check_reader(self) -> None:
        """Raises DemoError immediately if the reader has halted or exits repeatedly."""
        assert self.reader is not None
        if self.reader.starts > 5:
            raise DemoError(f"the reader exits repeatedly\n{self.reader.log_tail()}")

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

    # Reconcile

    def _reconcile(self, manifest: Path, kill: Victim | None) -> None:
        expected = Expectation.from_manifest(manifest, settings=self.settings)
        self.outcome.report = reconcile(
            self.settings,
            expected,
            statsd_url=self.stack.addresses.get("statsd_query", ""),
            exact_metrics=kill is None,
            progress=lambda name: self.screen.line(f"checked    {name}"),
        )
        if "clickhouse" in self.settings.sinks:
            self._sample()

    def _sample(self) -> None:
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


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM end the demo as Ctrl-C does, children first. The function works only in the main thread."""

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
