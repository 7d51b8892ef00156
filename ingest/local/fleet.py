"""Runs readers, flush workers and Flower as separate processes on an embedded stack, for chaos runs and tests.

    with Stack(kafka="apache") as stack:
        fleet = Fleet(stack.start())
        fleet.migrate()
        fleet.worker("worker-1")
        reader = fleet.reader("reader-1")

A process that is *kept* is restarted when it exits, as a supervisor does in production. The processes connect to
each component in `proxies` through a fault proxy. The test itself uses `settings`, which contain the servers' own
addresses, for migrations, loads and reconciliations.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.report import ReconcileError
from ingest.local.launch import CURRENT_INSTALLATION, SHORT_TIMEOUTS, Installation, settings_of
from ingest.local.servers.base import answers_http
from ingest.local.servers.fault_proxy import FaultProxy
from ingest.local.servers.processes import HOST, Child, LocalError, free_port, wait_until
from ingest.local.stack import Stack
from ingest.local.stack import settings_of as part_settings
from ingest.settings import Settings
from tasks.migrate import migrate

READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.1
FLOWER_PASSWORD = "chaos:only-for-now"

# The session of a paused reader expires within seconds. The drain deadline must be shorter than the session
# timeout.
SESSION_SECONDS = 6.0
DRAIN_SECONDS = 4.0
FLEET_DEFAULTS = {
    "REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": f"{SESSION_SECONDS:g}",
    "REPLAYS_DRAIN_DEADLINE_SECONDS": f"{DRAIN_SECONDS:g}",
    "REPLAYS_WORKER_PROCESSES": "2",
    "REPLAYS_HTTP_PORT": "0",
}


def isolated(tag: str, redis_url: str, database: int) -> dict[str, str]:
    """Returns REPLAYS_* variables that isolate one test on a shared stack, so that it shares only the servers.

    `tag` consists of lower-case letters and digits. `database` is the number of the Redis database, 0 to 15.
    """
    return {
        "REPLAYS_KAFKA_TOPIC": f"recordings-{tag}",
        "REPLAYS_KAFKA_GROUP": f"readers-{tag}",
        "REPLAYS_GCS_BUCKET": f"replays-{tag}",
        "REPLAYS_CLICKHOUSE_DATABASE": f"replays_{tag}",
        "REPLAYS_BIGQUERY_DATASET": f"replays_{tag}",
        "REPLAYS_REDIS_URL": f"{redis_url.rsplit('/', 1)[0]}/{database}",
    }


class Fleet:
    """The processes of the system. The processes are children of the stack and end with it.

    `extra` contains REPLAYS_* variables for all of the processes. `tag` is the prefix of their log
    names.
    """

    def __init__(
        self,
        stack: Stack,
        extra: Mapping[str, str] | None = None,
        *,
        proxies: Mapping[str, FaultProxy] | None = None,
        tag: str = "",
    ) -> None:
        self.stack = stack
        self.direct = {**SHORT_TIMEOUTS, **FLEET_DEFAULTS, **stack.settings(), **(extra or {})}
        # Tests kill brokers on purpose. The client library would log 20 lines per second, so its log is disabled.
        self.settings: Settings = settings_of(self.direct).model_copy(update={"kafka_options": {"log_level": "0"}})
        self.env = dict(self.direct)
        self._tag = tag
        for part, proxy in (proxies or {}).items():
            self.env |= part_settings(part, f"redis://{proxy.address}/0" if part == "redis" else proxy.url)
        self.ended_by_us: Counter[str] = Counter()
        self.children: dict[str, Child] = {}
        self.flower_url = ""
        self.installations: dict[str, Installation] = {}
        """The release that each process runs after its next start. Processes without an entry run the current
        release.
        """

    # Start and stop

    def migrate(self) -> None:
        """Creates the tables, the bucket and the topics."""
        for _ in migrate(self.settings, topics=True):
            pass

    def reader(self, name: str, *, keep: bool = True, **settings: str) -> Child:
        """Starts or restarts a reader. `settings` contains REPLAYS_* variables for this reader only."""
        command = self._installation(name).replays_ingest()
        return self._start(name, command, {**self.env, **settings}, keep)

    def worker(self, name: str, *, keep: bool = True, queues: Sequence[str] = (), **settings: str) -> Child:
        """Starts or restarts a flush worker with two processes. `settings` has the same meaning as for a reader.

        `queues` lists the queues that the worker consumes. If the list is empty, the worker consumes all queues.
        """
        command = [*self._installation(name).celery(), "worker", "--loglevel=INFO", "-n", f"{name}@{HOST}"]
        if queues:
            command += ["--queues", ",".join(queues)]
        return self._start(name, command, {**self.env, **settings}, keep)

    def flower(self) -> Child:
        """Starts Flower and waits until it responds."""
        port = free_port()
        self.flower_url = f"http://{HOST}:{port}"
        env = {**self.env, "REPLAYS_FLOWER_BASIC_AUTH": FLOWER_PASSWORD}
        child = self._start(
            "flower",
            [*CURRENT_INSTALLATION.celery(), "flower", f"--address={HOST}", f"--port={port}"],
            env,
            keep=True,
        )
        wait_until(self.flower_answers, READY_SECONDS_MAX, "Flower")
        return child

    def flower_answers(self) -> bool:
        """Returns whether Flower's health check succeeds."""
        return answers_http(f"{self.flower_url}/healthcheck")

    def stop(self, child: Child, deadline_seconds: float = STOP_SECONDS_MAX) -> int:
        """Sends SIGTERM and returns the exit code.

        The process is not restarted. Raises LocalError if the process does not end in time.
        """
        self.stack.children.release(child)
        self.ended_by_us[child.name] += 1
        child.signal(signal.SIGTERM)
        return child.wait(deadline_seconds)

    def kill(self, child: Child, *, keep: bool = True) -> None:
        """Sends SIGKILL to the process and its children. With `keep`, the process is restarted."""
        if not keep:
            self.stack.children.release(child)
        self.ended_by_us[child.name] += 1
        child.kill()

    def unrequested_exits(self) -> dict[str, int]:
        """Returns the number of exits that were not requested, for each process name."""
        ends = {
            name: child.starts - child.alive - self.ended_by_us[child.name]
            for name, child in self.children.items()
        }
        return {name: count for name, count in ends.items() if count > 0}

    def _installation(self, name: str) -> Installation:
        return self.installations.get(name, CURRENT_INSTALLATION)

    def _start(self, name: str, command: list[str], env: Mapping[str, str], keep: bool) -> Child:
        child = self.children.get(name)
        if child is None:
            child = self.stack.children.add(self._tag + name, command, env=env)
            self.children[name] = child
        installation = self._installation(name)
        child.command, child.cwd = command, installation.folder
        child.env = {**env, **installation.environment}
        child.start()
        if keep:
            self.stack.children.keep(child, wait_seconds=0.3)
        return child

    # Observations

    def committed(self, partitions: int = 4) -> dict[int, int]:
        """Returns the group's committed offset for each partition; 0 if a partition has none. Raises
        ReconcileError."""
        group = CommittedOffsets(self.settings)
        try:
            topic = self.settings.kafka_topic
            return {number: at for (_, number), at in group.of((topic, n) for n in range(partitions)).items()}
        finally:
            group.close()

    def wait_until_committed(self, ends: Mapping[int, int], deadline_seconds: float) -> float:
        """Waits until the committed offset of every partition equals the end of its log.

        Returns the seconds waited. Raises LocalError.
        """
        began = time.monotonic()
        group = CommittedOffsets(self.settings)
        wanted = {(self.settings.kafka_topic, partition): end for partition, end in ends.items()}
        found: dict[tuple[str, int], int] = {}
        try:
            while time.monotonic() - began < deadline_seconds:
                try:
                    found = group.of(sorted(wanted))
                except ReconcileError:
                    continue
                if all(found[source] >= end for source, end in wanted.items()):
                    return time.monotonic() - began
                time.sleep(POLL_SECONDS)
        finally:
            group.close()
        behind = {str(source[1]): f"{found.get(source)} of {end}" for source, end in wanted.items()}
        tails = "\n".join(child.log_tail() for child in self.children.values())
        raise LocalError(f"not committed within {deadline_seconds:g} s, by partition: {behind}\n{tails}")


def log_lines_of(child: Child, event: str) -> list[dict[str, Any]]:
    """Returns the log lines with this event from all runs of a process."""
    return [line for line in _lines(child.log_path) if line.get("event") == event]


def log_lines(child: Child) -> Iterator[dict[str, Any]]:
    """Returns the log lines from all runs of a process."""
    return _lines(child.log_path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as log:
        for line in log:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found


def is_up(reader: Child) -> bool:
    """Returns whether this run of a reader has joined its group.

    Before that, SIGTERM ends the reader without a drain.
    """
    return reader.alive and any(
        line["reader"].split("-")[-2] == str(reader.pid) for line in log_lines_of(reader, "reader_started")
    )


def pool_processes(worker: Child) -> list[int]:
    """Returns the process ids of a worker's children, which run its tasks."""
    listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, parent in pairs if int(parent) == worker.pid and int(pid) != os.getpid()]
