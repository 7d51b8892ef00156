"""The system under test in a game day, and the actions of the on-call engineer.

`Game` runs the embedded stack, two readers, two workers and Flower under a steady load, with a real Prometheus
that scrapes them. Faults are injected and fixed through the methods of `Game`. Every wait has a time limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ingest.local.fleet import Fleet, log_lines
from ingest.local.load.produce import LoadError
from ingest.local.servers.fault_proxy import FaultProxy, NoFault
from ingest.local.servers.processes import HOST, LocalError, free_port
from ingest.local.servers.redis import Redis
from ingest.local.stack import KafkaKind, Stack
from tasks.migrate.kafka import SOURCE_PARTITIONS
from tasks.units import MiB
from tools.gameday.load import Load
from tools.gameday.prometheus import Alert, Prometheus, is_in_runbook
from tools.gameday.result import SPEEDUP_FACTOR, PlayedFault
from tools.history.check import History, judge
from tools.history.collect import LoggedOperations, PolledOffsets

READERS, WORKERS = ("reader-1", "reader-2"), ("worker-1", "worker-2")
PROXIED_SERVERS = ("gcs", "clickhouse", "bigquery", "redis")
RECOVERY_SECONDS_MAX = 120.0
FIRE_SECONDS_MAX = 150.0
RESOLVE_SECONDS_MAX = 300.0
RECOVERY_SECONDS_MAX = 60.0
LETTER_SECONDS_MAX = 60.0
COMMAND_SECONDS_MAX = 400.0
POLL_SECONDS = 0.25
COMMITS_POLL_SECONDS = 1.0
REDIS_BYTES_MAX = 256 * MiB

# Because their thresholds are divided by SPEEDUP_FACTOR, these alerts also fire while other processes use the
# cores of the machine.
CAUSED_BY_LOAD = {"ReplaysEndToEndSlow", "ReplaysLag", "ReplaysBackpressure"}

# An alert on the burn rate of the error budget resolves only when the late segments have left the windows in its
# expression, which takes minutes here and hours in production.
BUDGET = {"ReplaysErrorBudgetBurnsFast", "ReplaysErrorBudgetBurnsSlowly"}

# The alert rules depend on these intervals. Most of the intervals are divided by about the same factor as the
# times in the rules. The others are divided by a smaller factor, because a busy machine with two cores could
# not keep up; for example, such a machine may need more than six seconds for a chord.
SHORT_TIMES = {
    "REPLAYS_FLUSH_DEADLINE_SECONDS": "12",
    "REPLAYS_RETRY_BACKOFF_SECONDS": "1",
    "REPLAYS_RETRY_BACKOFF_SECONDS_MAX": "15",
    "REPLAYS_SINK_TIMEOUT_SECONDS": "2",
    "REPLAYS_BREAKER_WINDOW_SECONDS": "10",
    "REPLAYS_BREAKER_COOL_SECONDS": "0.5",
    "REPLAYS_BREAKER_COOL_SECONDS_MAX": "3",
    "REPLAYS_TASK_BACKOFF_SECONDS": "0.2",
    "REPLAYS_TASK_BACKOFF_SECONDS_MAX": "3",
    "REPLAYS_TASK_VISIBILITY_SECONDS": "30",
    "REPLAYS_HEARTBEAT_SECONDS": "1",
    "REPLAYS_REDIS_TIMEOUT_SECONDS": "2",
    "REPLAYS_REJECT_WINDOW": "200",
    "REPLAYS_LOG_FORMAT": "json",
    "REPLAYS_LOG_LEVEL": "debug",  # readers log their commits and reads
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `alert` must fire within FIRE_SECONDS_MAX of the call to `inject`.

    `fix` follows the section on the alert in the runbook, and `after` runs once the alert has resolved and all
    messages are committed. `healthy` is a Prometheus expression that has a value once the component has recovered.
    """

    name: str
    alert: str
    inject: Callable[[Game], None]
    fix: Callable[[Game], None]
    healthy: str
    after: Callable[[Game], None] = lambda game: None


class Game:
    """One game day. Faults use the attributes and methods of `Game`. `close` stops everything that was started."""

    def __init__(
        self,
        console: Console,
        ending: threading.Event,
        directory: Path | None,
        quiet_seconds_max: float,
    ) -> None:
        self.console, self.ending = console, ending
        self.quiet_seconds_max = quiet_seconds_max
        self.began, self.began_unix = time.monotonic(), time.time()
        self._open = ExitStack()
        self._over = threading.Event()
        self.history = History()
        self._directory = directory
        self._steps: list[str] = []
        self._seen: list[str] = []
        self.kept: dict[str, Any] = {}
        """State that the injection of a fault leaves for its fix."""

    # Start and end

    def start(self, kafka: KafkaKind, rate: float) -> None:
        """Starts everything. Raises LocalError if a component fails to start."""
        place = None if self._directory is None else self._directory / "stack"
        self.stack = self._open.enter_context(Stack(place, kafka=kafka, progress=self.say))
        self.stack.start()
        self.proxies: dict[str, FaultProxy] = {}
        for part in PROXIED_SERVERS:
            proxy = FaultProxy(self.stack.servers[part].address, http=part != "redis")
            self.proxies[part] = self._open.enter_context(proxy)
        self.fleet = Fleet(
            self.stack, SHORT_TIMES, proxies={n: p for n, p in self.proxies.items() if n != "redis"}
        )
        self.settings = self.fleet.settings
        redis = self.redis_server
        redis.memory_bytes_max = REDIS_BYTES_MAX
        redis.restart()
        self.fleet.migrate()
        self.ports = {name: free_port() for name in (*READERS, *WORKERS)}
        for name in (*WORKERS, *READERS):
            self.run(name)
        self.fleet.flower()
        targets = {
            "replays-reader": [f"{HOST}:{self.ports[name]}" for name in READERS],
            "replays-worker": [f"{HOST}:{self.ports[name]}" for name in WORKERS],
        }
        self.prometheus = Prometheus(
            self.stack.children, self.stack.directory / "prometheus", targets, factor=SPEEDUP_FACTOR
        )
        self.prometheus.start()
        self.load = Load(self.settings, rate)
        self.load.start()
        self.history.has_records = kafka == "apache"
        self._poller = threading.Thread(target=self._poll_commits, name="commits", daemon=True)
        self._poller.start()
        self.say("two readers, two workers, Flower and Prometheus are running")

    def _poll_commits(self) -> None:
        """Records committed offsets from the broker, for the history."""
        polled = PolledOffsets(self.settings, SOURCE_PARTITIONS)
        self.history.reads = polled.reads
        while not self._over.wait(COMMITS_POLL_SECONDS):
            polled.read()
        polled.close()

    def judge(self) -> list[str]:
        """Checks that the committed offset of each partition behaves as a register (`tools.history`). Returns the
        violations.
        """
        self._over.set()
        self._poller.join()
        for name in READERS:
            LoggedOperations.of(name, log_lines(self.fleet.children[name])).add_to(self.history)
        self.say(f"checked a history of {self.history.counts()}")
        return judge(self.history)

    def close(self) -> None:
        """Stops everything that was started. May be called at any time."""
        self._over.set()
        if hasattr(self, "load"):
            self.load.close()
        self._open.close()

    def say(self, line: str) -> None:
        """Prints one line with the time."""
        self.console.print(f"{time.monotonic() - self.began:6.1f} s  {line}", soft_wrap=True, markup=False)
        if not self.console.is_terminal:
            self.console.file.flush()

    # Building blocks of faults and fixes

    @property
    def redis_server(self) -> Redis:
        server = self.stack.servers["redis"]
        assert isinstance(server, Redis)
        return server

    def run(self, name: str, *, queues: Sequence[str] = (), **settings: str) -> None:
        """Starts a reader or a worker, under a supervisor, on the port that Prometheus scrapes.

        `queues`: the queues that a worker consumes; empty for all.
        """
        port = str(self.ports[name])
        if name in READERS:
            self.fleet.reader(name, keep=True, REPLAYS_HTTP_PORT=port, **settings)
        elif name == WORKERS[1]:
            # This process connects to Redis through a proxy, which can cut its connections.
            settings["REPLAYS_REDIS_URL"] = f"redis://{self.proxies['redis'].address}/0"
            self.fleet.worker(name, keep=True, queues=queues, REPLAYS_WORKER_HTTP_PORT=port, **settings)
        else:
            self.fleet.worker(name, keep=True, queues=queues, REPLAYS_WORKER_HTTP_PORT=port, **settings)

    def step(self, text: str) -> None:
        """Records a manual step."""
        self._steps.append(text)
        self.say(f"  {text}")

    def record_check(self, text: str) -> None:
        """Records a passed check."""
        self._seen.append(text)
        self.say(f"  seen: {text}")

    def command(self, *arguments: str, codes: Sequence[int] = (0,)) -> str:
        """Returns the output of `replays-ingest ARGUMENTS`. Raises LocalError for an exit code not in `codes`."""
        self.step(f"replays-ingest {' '.join(arguments)}")
        return self._run_command(arguments, codes)

    def _run_command(self, arguments: Sequence[str], codes: Sequence[int]) -> str:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "ingest.cli", *arguments],
                env={**os.environ, **self.fleet.env},
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LocalError(f"{self._steps[-1]} did not end within {COMMAND_SECONDS_MAX:g} s") from None
        if done.returncode not in codes:
            raise LocalError(f"{self._steps[-1]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        self._steps[-1] += f" (exit code {done.returncode})" if done.returncode else ""
        return done.stdout

    def json(self, *arguments: str, codes: Sequence[int] = (0,)) -> Any:
        """Runs a command with `--json`, and returns its parsed output."""
        return json.loads(self.command(*arguments, "--json", codes=codes))

    def reconcile(self) -> tuple[str, bool]:
        """Returns (output of `replays-ingest reconcile` for the topic and every sink, True if nothing is
        missing).
        """
        self._steps = []
        printed = self.command("reconcile", codes=(0, 1))
        return printed, not self._steps[-1].endswith(")")

    def letters(self, sink: str) -> list[dict[str, Any]]:
        """Waits for dead letters of a sink and returns them. Raises LocalError."""
        arguments = ("dlq", "ls", "--sink", sink, "--json")
        found: list[dict[str, Any]] = self.json(*arguments[:-1])["letters"]

        def has_dead_letters() -> bool:
            if not found:
                found[:] = json.loads(self._run_command(arguments, (0,)))["letters"]
            return bool(found)

        self.until(has_dead_letters, LETTER_SECONDS_MAX, f"a dead letter of {sink}")
        return found

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Waits for a condition. Returns how many seconds the wait took. OSError counts as false. Raises
        LocalError after `seconds`.
        """
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            with suppress(OSError):
                if condition():
                    return time.monotonic() - began
            if self.load.error:
                raise LocalError(f"the broker refused a message: {self.load.error}")
            if self.ending.wait(POLL_SECONDS):
                raise LocalError("interrupted")
        raise LocalError(f"waited {seconds:g} s for {what}")

    def fires(self, alert: str) -> bool:
        return alert in self.prometheus.firing()

    # One fault

    def play(self, fault: Fault) -> PlayedFault:
        """Runs a fault from injection to recovery. If an error occurs, it is stored as `trouble`, and the system
        is reset.
        """
        played = PlayedFault(fault.name, fault.alert)
        self._steps, self._seen = played.steps, played.seen
        began, began_unix = time.monotonic(), time.time()
        self.say(f"{fault.name}: {fault.alert} should fire")
        try:
            fault.inject(self)
            alert = self._wait_until_fired(fault.alert)
            played.fired_seconds = time.monotonic() - began
            played.summary, played.section = alert.summary, alert.runbook_url
            self.say(f"  {alert.name} fires after {played.fired_seconds:.1f} s: {alert.summary}")
            if not is_in_runbook(alert.runbook_url):
                raise LocalError(f"the runbook has no section {alert.runbook_url}")
            fault.fix(self)
            ends, fixed_at = dict(self.load.ends), time.monotonic()
            self.until(lambda: not self.fires(fault.alert), RESOLVE_SECONDS_MAX, f"{fault.alert} to resolve")
            played.resolved_seconds = time.monotonic() - fixed_at
            self.fleet.wait_until_committed(ends, RECOVERY_SECONDS_MAX)
            played.drained_seconds = time.monotonic() - fixed_at
            self.record_check(
                f"{fault.alert} resolved, {sum(ends.values()):,} offsets committed on {len(ends)} partitions"
            )
            fault.after(self)
            self._healthy(fault.healthy)
            self.record_check(self.wait_until_quiet())
            self.say(f"  recovered {time.monotonic() - fixed_at:.1f} s after the last step")
        except (LocalError, LoadError, OSError, ValueError) as error:
            played.trouble = str(error)
            self.say(f"  FAILED: {played.trouble.splitlines()[0]}")
            if not self.ending.is_set():
                self._reset()
        played.others = sorted(self.prometheus.fired(began_unix, time.time()) - {fault.alert})
        played.segments, played.late_segments = self.prometheus.durable(time.time() - began_unix)
        return played

    def wait_until_quiet(self) -> str:
        """Waits until no alert is firing, and returns a sentence for the report. Raises LocalError.

        After `quiet_seconds_max`, alerts in CAUSED_BY_LOAD are ignored.
        """
        began = time.monotonic()
        left: set[str] = set()

        def quiet() -> bool:
            left.clear()
            left.update(self.prometheus.firing().keys() - BUDGET)
            return not left or (left <= CAUSED_BY_LOAD and time.monotonic() - began > self.quiet_seconds_max)

        self.until(quiet, RESOLVE_SECONDS_MAX, "all alerts to resolve")
        if not left:
            return "no alert is firing"
        return f"no alert is firing except {', '.join(sorted(left))}, because the machine is busy"

    def _healthy(self, expression: str) -> None:
        found: list[dict[str, Any]] = []

        def holds() -> bool:
            found[:] = self.prometheus.query(expression)
            return bool(found)

        self.until(holds, RECOVERY_SECONDS_MAX, expression)
        self.record_check(f"{expression}: it is {float(found[0]['value'][1]):g}")

    def _wait_until_fired(self, name: str) -> Alert:
        found: list[Alert] = []

        def fires() -> bool:
            found[:] = [alert for alert in self.prometheus.firing().values() if alert.name == name]
            return bool(found)

        self.until(fires, FIRE_SECONDS_MAX, f"{name} to fire; the alerts are {self.prometheus.alerts()}")
        return found[0]

    def _reset(self) -> None:
        """Resets the system after a failure, so that the next fault starts with a healthy system."""
        self.load.garbage_share, self.load.silent = 0.0, False
        for proxy in self.proxies.values():
            proxy.set(NoFault())
        with suppress(LocalError, OSError):
            self.redis_server.restart(kill=True)
        with suppress(LocalError, OSError):
            if not self.stack.servers["kafka"].child.alive:
                self.stack.servers["kafka"].restart(kill=True)
        for child in self.fleet.children.values():
            with suppress(LocalError, OSError):
                if child.name in self.ports:
                    self.fleet.kill(child, keep=False)
                    self.run(child.name)
        with suppress(LocalError, OSError):
            self.fleet.migrate()
            self.wait_until_quiet()
