"""Starts readers and workers of two releases, replaces them one after another under load, and checks which release
each process runs.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

from redis.exceptions import RedisError

from ingest.local.fleet import Fleet, is_up, log_lines_of
from ingest.local.servers.processes import Child, LocalError
from ingest.operate import status
from tasks.migrate.kafka import SOURCE_PARTITIONS
from tools.chaos.faults import STEPS_LOG_LEVEL
from tools.mixed.build import Release
from tools.mixed.phases import Phase, ReleaseName

UP_SECONDS_MAX = 60.0
CHECK_SECONDS_MAX = 90.0
POLL_SECONDS = 0.2


class MixedFleet:
    """The processes of a run, by name, and the release of each."""

    def __init__(self, fleet: Fleet, releases: Mapping[ReleaseName, Release]) -> None:
        self.fleet = fleet
        self.exit_codes: list[tuple[str, int]] = []
        self.killed: list[str] = []
        """Workers that did not end after SIGTERM."""
        self.releases = releases
        self._running: dict[str, ReleaseName] = {}
        self._commands = 0

    def start_phase(self, phase: Phase) -> None:
        """Replaces the processes whose release changes. Raises LocalError."""
        if phase.migrate is not None:
            self._command(phase.migrate, "migrate", "--topics")
        readers = {f"reader-{number}": release_name for number, release_name in enumerate(phase.readers, start=1)}
        workers = {f"worker-{number}": release_name for number, release_name in enumerate(phase.workers, start=1)}
        wanted = {**readers, **workers} if phase.readers_first else {**workers, **readers}
        if not self._running:  # the first phase starts all processes together
            for up in [self._start(name, release_name) for name, release_name in wanted.items()]:
                up()
        for name, release_name in wanted.items():
            if self._running[name] is not release_name:
                self.stop(name)
                self._start(name, release_name)()
        self._expect_releases(wanted)
        self._expect_owners()

    def stop(self, name: str) -> None:
        """Stops a process with SIGTERM and records its exit code. Raises LocalError.

        A worker that does not exit is killed, as an orchestrator does after the grace period.
        """
        child = self.fleet.children[name]
        try:
            code = self.fleet.stop(child)
        except LocalError:
            if not name.startswith("worker"):
                raise
            child.kill()
            self.killed.append(name)
        else:
            self.exit_codes.append((name, code))

    def stop_readers(self) -> None:
        """Stops the readers. Raises LocalError."""
        for name in self._running:
            if name.startswith("reader"):
                self.stop(name)

    @property
    def readers(self) -> dict[str, Child]:
        """The readers of the run, by name. The log of each reader covers all of its processes."""
        return {name: child for name, child in self.fleet.children.items() if name.startswith("reader")}

    def check(self) -> str:
        """Returns what the new release's `check` command reports about mixed releases. Raises LocalError."""
        findings = json.loads(self._command(ReleaseName.NEW, "check", "--json", may_fail=True))
        return " ".join(one["said"] for one in findings if one["name"] == "releases")

    def _start(self, name: str, release_name: ReleaseName) -> Callable[[], None]:
        """Starts a process. Returns a function that waits until the process is up."""
        self.fleet.installations[name] = self.releases[release_name].installation
        self._running[name] = release_name
        if name.startswith("worker"):
            known = self.fleet.children.get(name)
            before = len(log_lines_of(known, "worker_ready")) if known else 0
            worker = self.fleet.worker(name)
            return lambda: self._wait(lambda: len(log_lines_of(worker, "worker_ready")) > before, worker)
        reader = self.fleet.reader(name, REPLAYS_LOG_LEVEL=STEPS_LOG_LEVEL)
        return lambda: self._wait(lambda: is_up(reader), reader)

    def _wait(self, condition: Callable[[], bool], child: Child) -> None:
        ends_at = time.monotonic() + UP_SECONDS_MAX
        while not condition():  # polls less often than `wait_until`, because the condition reads a log
            if time.monotonic() > ends_at:
                raise LocalError(f"{child.name} is not up after {UP_SECONDS_MAX:g} s\n{child.log_tail()}")
            time.sleep(POLL_SECONDS)

    def _expect_releases(self, wanted: Mapping[str, ReleaseName]) -> None:
        """Waits until the processes report the releases that they should run."""
        expected = Counter(
            (name.partition("-")[0], self.releases[release_name].version) for name, release_name in wanted.items()
        )
        found: Counter[tuple[str, str]] = Counter()
        ends_at = time.monotonic() + UP_SECONDS_MAX
        while found != expected:
            if time.monotonic() > ends_at:
                raise LocalError(f"expected the releases {dict(expected)}, found {dict(found)}")
            time.sleep(POLL_SECONDS)
            found = self._reported()

    def _expect_owners(self) -> None:
        """Waits until every partition has an owner, and every reader has a partition."""
        owned: dict[str, set[int]] = {}
        ends_at = time.monotonic() + UP_SECONDS_MAX
        while not (all(owned.values()) and len(set().union(*owned.values())) == SOURCE_PARTITIONS):
            if time.monotonic() > ends_at:
                raise LocalError(f"a partition has no owner, or a reader no partition: {owned}")
            time.sleep(POLL_SECONDS)
            with suppress(RedisError):
                readers = status.collect(self.fleet.settings).readers
                owned = {
                    reader.reader: {partition.partition for partition in reader.snapshot.partitions}
                    for reader in readers
                    if not reader.silent
                }

    def _reported(self) -> Counter[tuple[str, str]]:
        try:
            seen = status.collect(self.fleet.settings)
        except RedisError:
            return Counter()
        readers = [("reader", reader.release) for reader in seen.readers if not reader.silent]
        return Counter([*readers, *(("worker", worker.release) for worker in seen.workers if not worker.silent)])

    def _command(self, release_name: ReleaseName, *words: str, may_fail: bool = False) -> str:
        """Returns the output of `replays-ingest` of that release. Raises LocalError."""
        installation = self.releases[release_name].installation
        self._commands += 1
        children = self.fleet.stack.children
        child = children.add(
            f"{words[0]}-{release_name}-{self._commands}-{time.time_ns()}",
            [*installation.replays_ingest(), *words],
            env={**self.fleet.direct, **installation.environment},
            cwd=installation.folder,
        )
        child.start()
        code = child.wait(CHECK_SECONDS_MAX)
        if code != 0 and not may_fail:
            raise LocalError(f"{words[0]} of {release_name} ended with code {code}\n{child.log_tail()}")
        return child.log_path.read_text()
