"""Runs the phases once. Messages are produced during all phases. At the end, the contents of every sink are
compared with these messages.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from ingest.local.compare.reconcile import reconcile
from ingest.local.fleet import Fleet, log_lines, log_lines_of
from ingest.local.load.expectation import Expectation
from ingest.local.load.produce import PROFILES, LoadError, ProducedTotals, produce
from ingest.local.servers.processes import LocalError
from ingest.settings import Settings
from tasks.migrate.kafka import SOURCE_PARTITIONS
from tools.chaos.run import SHORT_TIMES, stored_twice
from tools.history.check import History, judge
from tools.history.collect import LoggedOperations, PolledOffsets
from tools.mixed import account
from tools.mixed.fleet import MixedFleet
from tools.mixed.phases import Phase
from tools.mixed.result import Line, Result

TRAFFIC_START_SECONDS_MAX = 30.0
REFUSAL_SECONDS_MAX = 60.0
PROGRESS_SECONDS_MAX = 60.0
SETTLE_SECONDS_MAX = 600.0
WATCH_SECONDS = 0.5
POLL_SECONDS = 0.1
OFFSETS_CHECK = "committed offsets"
SETTINGS = {
    **SHORT_TIMES,
    "REPLAYS_BATCH_MESSAGES_MAX": "20",
    "REPLAYS_HEARTBEAT_SECONDS": "1",
    "REPLAYS_LOG_LEVEL": "info",  # for readers, the fleet overrides this with `STEPS_LOG_LEVEL`
}


@dataclass(slots=True)
class Plan:
    """Parameters of a run. `seconds`: minimum duration of a phase; `rate`: messages per second."""

    phases: Sequence[Phase]
    seconds: float
    rate: float
    seed: int
    kafka: str
    expects_refusal: bool
    check_once: bool = False
    """Run `check` only in the first mixed phase."""


@dataclass(slots=True)
class _Window:
    """A completed phase: its start and end, and the messages produced in it."""

    line: Line
    manifest: Path
    began_at: float
    ended_at: float = 0.0
    produced: ProducedTotals = field(default_factory=ProducedTotals)


class Run:
    """A run of the experiment, whose stack has been started. `mixed`: the processes; `directory`: directory for
    the manifests.
    """

    def __init__(
        self,
        mixed: MixedFleet,
        plan: Plan,
        directory: Path,
        progress: Callable[[str], None] = lambda line: None,
        ending: threading.Event | None = None,
    ) -> None:
        self.mixed, self.plan, self.directory = mixed, plan, directory
        versions = {str(which): release.version for which, release in mixed.releases.items()}
        self.result = Result(versions, plan.kafka, plan.expects_refusal)
        self._say = progress
        self._ending = ending or threading.Event()
        # Tansu does not keep commit metadata.
        self._history = History(has_records=plan.kafka == "apache")
        self._windows: list[_Window] = []
        self._over = threading.Event()

    @property
    def _fleet(self) -> Fleet:
        return self.mixed.fleet

    def run(self) -> Result:
        """Runs all phases and compares the results. Raises LocalError, LoadError, ReconcileError or SinkError if
        the experiment itself fails.
        """
        began = time.monotonic()
        self.mixed.start_phase(self.plan.phases[0])  # the topics must exist before messages are produced
        watch = threading.Thread(target=self._watch_commits, name="commits")
        watch.start()
        try:
            for number, phase in enumerate(self.plan.phases, start=1):
                self._phase(number, phase)
                if self._ending.is_set():
                    return self.result
            self._say("no more traffic; waiting until everything is committed")
            self.result.settle_seconds = self._fleet.wait_until_committed(self._ends(), SETTLE_SECONDS_MAX)
        finally:
            self._over.set()
            watch.join()
        self.mixed.stop_readers()
        self._summarize()
        self.result.seconds = time.monotonic() - began
        self.result.judge()
        return self.result

    # Phases

    def _phase(self, number: int, phase: Phase) -> None:
        line = Line(phase, _shown(phase.readers), _shown(phase.workers))
        window = _Window(line, self.directory / f"manifest-{number}.jsonl", time.time())
        self._windows.append(window)
        self.result.lines.append(line)
        self._say(f"{phase.name}: readers {line.readers}, workers {line.workers}")
        began = time.monotonic()
        with _Traffic(self._fleet.settings, self.plan, number, window.manifest) as traffic:
            traffic.wait_for_traffic()
            if number > 1:
                self.mixed.start_phase(phase)
            checked = any(line.check is not None for line in self.result.lines)
            if phase.is_mixed and not (self.plan.check_once and checked):
                line.check = self.mixed.check()
            if phase.newer and self.plan.expects_refusal:
                self._wait_until_refused(window.began_at)
            else:
                self._wait_for_progress(phase)
            self._ending.wait(max(0.0, self.plan.seconds - (time.monotonic() - began)))
        window.produced = traffic.produced
        window.ended_at = time.time()
        line.messages, line.seconds = traffic.produced.messages, time.monotonic() - began

    def _wait_until_refused(self, since: float) -> None:
        """Waits until a worker has refused a batch. Raises LocalError."""
        ends_at = time.monotonic() + REFUSAL_SECONDS_MAX
        while not self._ending.is_set():
            lines = [line for child in self.mixed.readers.values() for line in log_lines_of(child, "batch_parked")]
            if any(batch.refused and batch.at >= since for batch in account.parked(lines, ())):
                return
            if time.monotonic() > ends_at:
                raise LocalError(f"no batch of a newer version was refused within {REFUSAL_SECONDS_MAX:g} s")
            self._ending.wait(POLL_SECONDS)

    def _wait_for_progress(self, phase: Phase) -> None:
        """Waits until the readers of the phase have committed an offset. Raises LocalError."""
        before, ends_at = self._committed(), time.monotonic() + PROGRESS_SECONDS_MAX
        while not self._ending.is_set() and self._committed() <= before:
            if time.monotonic() > ends_at:
                raise LocalError(f"{phase.name}: nothing was committed within {PROGRESS_SECONDS_MAX:g} s")
            self._ending.wait(WATCH_SECONDS)

    def _committed(self) -> int:
        return sum(self._fleet.committed(SOURCE_PARTITIONS).values())

    def _watch_commits(self) -> None:
        """Records committed offsets from the broker, for the history."""
        polled = PolledOffsets(self._fleet.settings, SOURCE_PARTITIONS)
        while not self._over.wait(WATCH_SECONDS):
            polled.read()
        polled.close()
        self._history.reads += polled.reads

    def _ends(self) -> dict[int, int]:
        """Returns the log end offset of each partition."""
        ends: dict[int, int] = {}
        for window in self._windows:
            for partition, end in window.produced.ends.items():
                ends[partition] = max(end, ends.get(partition, 0))
        return ends

    # Comparison

    def _summarize(self) -> None:
        result = self.result
        lines = []
        for name, child in self.mixed.readers.items():
            logged = list(log_lines(child))
            LoggedOperations.of(name, logged).add_to(self._history)
            lines += logged
        result.history, result.violations = self._history.counts(), judge(self._history)
        result.halted = sum(line.get("event") == "reader_halted" for line in lines)
        result.exits, result.unexpected_exits = self.mixed.exit_codes, self._fleet.unrequested_exits()
        result.killed = self.mixed.killed
        found = account.parked(lines, self._history.commits)
        result.never_committed = sum(batch.seconds is None for batch in found)
        result.reasons = sorted({_without_names(batch.error) for batch in found})
        again = account.read_again(lines)
        for window in self._windows:
            line, until = window.line, window.ended_at
            if window is self._windows[-1]:
                until = time.time()
            here = account.within(found, window.began_at, until)
            line.parked, line.refused = len(here), sum(batch.refused for batch in here)
            line.parked_seconds_max = max((batch.seconds or 0.0 for batch in here), default=0.0)
            repeated = account.within(again, window.began_at, until)
            line.read_again = sum(messages.messages for messages in repeated)
        self._compare()

    def _compare(self) -> None:
        """Compares every sink with all produced messages and, if any are missing, also with those of each
        phase.
        """
        result, settings = self.result, self._fleet.settings
        expected = Expectation.from_manifest(*(window.manifest for window in self._windows), settings=settings)
        statsd_url = self._fleet.stack.addresses["statsd_query"]
        result.report = reconcile(settings, expected, statsd_url=statsd_url, progress=self._checked)
        result.lost = sum(check.missing + check.wrong for check in result.report.checks)
        result.duplicates = sum(check.extra for check in result.report.checks)
        result.repeated = stored_twice(settings)
        for window in self._windows:
            window.line.duplicates = None if result.duplicates else 0
            if result.lost:
                expected = Expectation.from_manifest(window.manifest, settings=settings)
                report = reconcile(settings, expected, extra_is_error=False)
                checks = [check for check in report.checks if check.name != OFFSETS_CHECK]
                window.line.lost = sum(check.missing + check.wrong for check in checks)

    def _checked(self, name: str) -> None:
        self._say(f"checked {name}")


class _Traffic:
    """Produces messages at a steady rate while its context is open."""

    def __init__(self, settings: Settings, plan: Plan, number: int, manifest: Path) -> None:
        self.produced = ProducedTotals()
        self._settings, self._plan, self._number, self._manifest = settings, plan, number, manifest
        self._stop = threading.Event()
        self._flows = threading.Event()
        self._error = ""
        self._thread = threading.Thread(target=self._produce, name="traffic")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._error and error is None:
            raise LoadError(self._error)

    def wait_for_traffic(self) -> None:
        """Waits until the first messages have been produced. Raises LoadError."""
        if not self._flows.wait(TRAFFIC_START_SECONDS_MAX) or self._error:
            raise LoadError(self._error or f"no message was accepted within {TRAFFIC_START_SECONDS_MAX:g} s")

    def _produce(self) -> None:
        seed = self._plan.seed * 1000 + self._number  # so that each phase has different messages
        try:
            self.produced = produce(
                self._settings,
                PROFILES["small"],
                1_000_000,
                seed,
                manifest_path=self._manifest,
                rate=self._plan.rate,
                progress=lambda done, expected, size_bytes: self._flows.set() if done else None,
                stop=self._stop.is_set,
            )
        except LoadError as error:
            self._error = str(error)
        self._flows.set()


def _shown(releases: Sequence[str]) -> str:
    return ", ".join(releases) if len(set(releases)) > 1 else f"{len(releases)} {releases[0]}"


def _without_names(error: str) -> str:
    """Returns the error text without batch and task names, so that the same error has the same text for every
    batch.
    """
    return re.sub(r"\S+-\d+-\d+-\d+\S*", "<batch>", error)
