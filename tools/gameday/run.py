"""A game day: faults one after another, each with the alert that tells of it and the steps that mend it.

    python -m tools.gameday.run [--json FILE] [--only NAME]        (make gameday)

The embedded stack, two readers, two workers and Flower run under a steady load, and a real Prometheus scrapes them
and judges the rules of deploy/prometheus/alerts.yml, whose times are divided by FACTOR. For each fault of
`tools/gameday/faults.py`: it is injected; the alert that should tell of it has to fire; what the runbook's section
says is done; the alert has to go, everything that was produced has to be committed, and the metrics have to say
that the part is well. In the end every expression of the dashboard is asked over the run, and `replays-ingest
reconcile` holds the topic against the sinks. Every wait is bounded, and so is the whole of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import KafkaError, Producer
from confluent_kafka import Message as KafkaMessage
from rich.console import Console
from rich.table import Table

from ingest.local.demo import temporary_files_in_memory
from ingest.local.fleet import Fleet
from ingest.local.load.produce import PROFILES, LoadError, default_start, values
from ingest.local.servers import java_kafka
from ingest.local.servers.fault_proxy import FaultProxy, Pass
from ingest.local.servers.processes import HOST, LocalError, ending_on_signals, free_port
from ingest.local.servers.redis import Redis
from ingest.local.stack import KafkaKind, Stack
from ingest.settings import Settings
from ingest.testing.messages import recording
from tasks.kafka.options import kafka_options
from tasks.settings import MiB
from tools.gameday.prometheus import Alert, PanelQuery, Prometheus, asked_panels, available, runbook_has

FACTOR = 20.0
READERS, WORKERS = ("reader-1", "reader-2"), ("worker-1", "worker-2")
PROXIED = ("gcs", "clickhouse", "bigquery", "redis")
MESSAGES_PER_SECOND = 20.0
CALM_SECONDS_MAX = 120.0
FIRE_SECONDS_MAX = 150.0
RESOLVE_SECONDS_MAX = 300.0
QUIET_SECONDS_MAX = 45.0
HEALTHY_SECONDS_MAX = 60.0
LETTER_SECONDS_MAX = 60.0
COMMAND_SECONDS_MAX = 120.0
MINUTES_MAX = 45.0
HARD_END = 1.2
POLL_SECONDS = 0.25
REDIS_BYTES_MAX = 256 * MiB
GARBAGE_PROJECT = 4242
PLAIN_WIDTH = 190

# With thresholds divided by FACTOR these also fire when others have the machine's cores, until they are done.
BUSY = {"ReplaysEndToEndSlow", "ReplaysLag", "ReplaysBackpressure"}

# The clocks of the system that the rules wait for, divided by about the same factor; what a busy machine of two
# cores could not keep (a chord within six seconds) less so.
HASTY = {
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
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`inject` and `mend` are given the game; `after` is done when all is well again.

    `alert` has to fire within FIRE_SECONDS_MAX of the injection. `mend` does what the runbook's section says.
    `healthy` is an expression for Prometheus that has a value when the part is well again.
    """

    name: str
    alert: str
    inject: Callable[[Game], None]
    mend: Callable[[Game], None]
    healthy: str
    after: Callable[[Game], None] = lambda game: None


@dataclass(slots=True)
class Played:
    """One fault. `steps`: what was done to mend it; seconds are None where it did not come to that.

    `fired_seconds` are from the injection; `resolved_seconds` and `drained_seconds` from the last step: until the
    alert was gone, and until all that had been produced by then was committed.
    """

    fault: str
    alert: str
    section: str = ""
    summary: str = ""
    fired_seconds: float | None = None
    others: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    resolved_seconds: float | None = None
    drained_seconds: float | None = None
    trouble: str = ""


@dataclass(slots=True)
class Result:
    """Everything that is told in the end."""

    factor: float = FACTOR
    rate: float = MESSAGES_PER_SECOND
    kafka: str = ""
    seconds: float = 0.0
    messages: int = 0
    played: list[Played] = field(default_factory=list)
    panels: list[PanelQuery] = field(default_factory=list)
    reconciled: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.played) and not self.error and not any(each.trouble for each in self.played)


class Load(threading.Thread):
    """A steady stream of segments that Relay received just now, until `close`.

    `garbage_share`: so many messages more, of `garbage_project`, that can never be parsed. `ends`: log end by
    partition, of what was acknowledged.
    """

    def __init__(self, settings: Settings, rate: float) -> None:
        super().__init__(name="load", daemon=True)
        self.garbage_share, self.garbage_project = 0.0, GARBAGE_PROJECT
        self.ends: dict[int, int] = {}
        self.messages = 0
        self.error = ""
        self._rate, self._topic = rate, settings.kafka_topic
        self._over = threading.Event()
        options = {"linger.ms": 5, "partitioner": "random", "sticky.partitioning.linger.ms": 0}
        self._producer = Producer({**options, "enable.idempotence": True, **kafka_options(settings)})

    def run(self) -> None:
        profile = replace(PROFILES["small"], malformed=0.0)
        began, owed = time.monotonic(), 0.0
        for number, value in enumerate(values(profile, 10_000_000, 1, default_start())):
            while (left := began + number / self._rate - time.monotonic()) > 0:
                self._producer.poll(min(left, 0.1))
            if self._over.is_set():
                return
            self.send(received_at(value, int(time.time())))
            owed += self.garbage_share
            while owed >= 1:
                owed -= 1
                self.send(
                    recording(
                        b"hello", compressed=False, project_id=self.garbage_project, received=int(time.time())
                    )
                )

    def send(self, value: bytes, timestamp_ms: int = 0) -> None:
        """Queues one message. `timestamp_ms`: Kafka's own, unix milliseconds; 0 is now."""
        self._producer.produce(self._topic, value, timestamp=timestamp_ms, on_delivery=self._delivered)

    def close(self) -> None:
        """Ends it, and waits for the last acknowledgement."""
        self._over.set()
        self.join(10)
        self._producer.flush(20)

    def _delivered(self, error: KafkaError | None, record: KafkaMessage) -> None:
        if error is not None:
            self.error = error.str()
            return
        partition, offset = record.partition(), record.offset()
        assert partition is not None
        assert offset is not None
        self.messages += 1
        self.ends[partition] = max(offset + 1, self.ends.get(partition, 0))


def received_at(value: bytes, seconds: int) -> bytes:
    """The same message, as if Relay had got it then (unix seconds)."""
    envelope = msgspec.msgpack.decode(value)
    return msgspec.msgpack.encode({**envelope, "received": seconds})


class Game:
    """One game day. Everything it starts is stopped by `close`. Faults work with its attributes."""

    def __init__(
        self,
        console: Console,
        result: Result,
        ending: threading.Event,
        directory: Path | None,
        quiet_seconds_max: float,
    ) -> None:
        self.console, self.result, self.ending = console, result, ending
        self.quiet_seconds_max = quiet_seconds_max
        self.began, self.began_unix = time.monotonic(), time.time()
        self._open = ExitStack()
        self._directory = directory
        self._steps: list[str] = []
        self._seen: list[str] = []
        self.kept: dict[str, Any] = {}
        """What a fault's injection leaves for its mending."""

    # Start and end

    def start(self, kafka: KafkaKind, rate: float) -> None:
        """Raises LocalError if a part does not come up."""
        place = None if self._directory is None else self._directory / "stack"
        self.stack = self._open.enter_context(Stack(place, kafka=kafka, progress=self.say))
        self.stack.start()
        self.proxies: dict[str, FaultProxy] = {}
        for part in PROXIED:
            proxy = FaultProxy(self.stack.servers[part].address, http=part != "redis")
            self.proxies[part] = self._open.enter_context(proxy)
        self.fleet = Fleet(self.stack, HASTY, proxies={n: p for n, p in self.proxies.items() if n != "redis"})
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
            self.stack.children, self.stack.directory / "prometheus", targets, factor=FACTOR
        )
        self.prometheus.start()
        self.load = Load(self.settings, rate)
        self.load.start()
        self.say("two readers, two workers, Flower and Prometheus run")

    def close(self) -> None:
        """May be called at any time."""
        if hasattr(self, "load"):
            self.load.close()
        self._open.close()

    def say(self, line: str) -> None:
        """One line, with the time."""
        self.console.print(f"{time.monotonic() - self.began:6.1f} s  {line}", soft_wrap=True, markup=False)
        if not self.console.is_terminal:
            self.console.file.flush()

    # What faults and their mending are made of

    @property
    def redis_server(self) -> Redis:
        server = self.stack.servers["redis"]
        assert isinstance(server, Redis)
        return server

    def run(self, name: str, **settings: str) -> None:
        """Starts a reader or a worker, under a supervisor, on the port that Prometheus knows."""
        port = str(self.ports[name])
        if name in READERS:
            self.fleet.reader(name, keep=True, REPLAYS_HTTP_PORT=port, **settings)
        elif name == WORKERS[1]:
            # This one has a way to Redis of its own, which can be cut.
            way = f"redis://{self.proxies['redis'].address}/0"
            self.fleet.worker(name, keep=True, REPLAYS_WORKER_HTTP_PORT=port, REPLAYS_REDIS_URL=way, **settings)
        else:
            self.fleet.worker(name, keep=True, REPLAYS_WORKER_HTTP_PORT=port, **settings)

    def step(self, text: str) -> None:
        """Notes something that was done by hand."""
        self._steps.append(text)
        self.say(f"  {text}")

    def see(self, text: str) -> None:
        """Notes a check that held."""
        self._seen.append(text)
        self.say(f"  seen: {text}")

    def command(self, *arguments: str, codes: Sequence[int] = (0,)) -> str:
        """What `replays-ingest ARGUMENTS` printed. Raises LocalError for another exit code than `codes`."""
        self.step(f"replays-ingest {' '.join(arguments)}")
        return self._commanded(arguments, codes)

    def _commanded(self, arguments: Sequence[str], codes: Sequence[int]) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ingest.cli", *arguments],
            env={**os.environ, **self.fleet.env},
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        if done.returncode not in codes:
            raise LocalError(f"{self._steps[-1]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        self._steps[-1] += f" (exit code {done.returncode})" if done.returncode else ""
        return done.stdout

    def json(self, *arguments: str, codes: Sequence[int] = (0,)) -> Any:
        """The same with --json, read."""
        return json.loads(self.command(*arguments, "--json", codes=codes))

    def letters(self, sink: str) -> list[dict[str, Any]]:
        """The dead letters of a sink, as soon as there are any. Raises LocalError."""
        arguments = ("dlq", "ls", "--sink", sink, "--json")
        found: list[dict[str, Any]] = self.json(*arguments[:-1])["letters"]

        def there() -> bool:
            if not found:
                found[:] = json.loads(self._commanded(arguments, (0,)))["letters"]
            return bool(found)

        self.until(there, LETTER_SECONDS_MAX, f"a dead letter of {sink}")
        return found

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Waits, the seconds it took. What fails with OSError is not so yet. Raises LocalError after `seconds`."""
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

    def play(self, fault: Fault) -> Played:
        """The whole of it; what went wrong is its `trouble`, and then everything is put right by force."""
        played = Played(fault.name, fault.alert)
        self._steps, self._seen = played.steps, played.seen
        began, began_unix = time.monotonic(), time.time()
        self.say(f"{fault.name}: {fault.alert} should fire")
        try:
            fault.inject(self)
            alert = self._wait_fired(fault.alert)
            played.fired_seconds = time.monotonic() - began
            played.summary, played.section = alert.summary, alert.runbook_url
            self.say(f"  {alert.name} fires after {played.fired_seconds:.1f} s: {alert.summary}")
            if not runbook_has(alert.runbook_url):
                raise LocalError(f"the runbook has no section {alert.runbook_url}")
            fault.mend(self)
            ends, mended = dict(self.load.ends), time.monotonic()
            self.until(lambda: not self.fires(fault.alert), RESOLVE_SECONDS_MAX, f"{fault.alert} to go")
            played.resolved_seconds = time.monotonic() - mended
            self.fleet.wait_committed(ends, CALM_SECONDS_MAX)
            played.drained_seconds = time.monotonic() - mended
            self.see(f"{fault.alert} gone, {sum(ends.values()):,} offsets committed on {len(ends)} partitions")
            fault.after(self)
            self._healthy(fault.healthy)
            self.see(self.calm())
            self.say(f"  all is well {time.monotonic() - mended:.1f} s after the last step")
        except (LocalError, LoadError, OSError, subprocess.TimeoutExpired, ValueError) as error:
            played.trouble = str(error)
            self.say(f"  FAILED: {played.trouble.splitlines()[0]}")
            if not self.ending.is_set():
                self._force()
        played.others = sorted(self.prometheus.fired(began_unix, time.time()) - {fault.alert})
        return played

    def calm(self) -> str:
        """Waits until no alert fires, and says so; raises LocalError.

        After `quiet_seconds_max` it is also well when only BUSY ones are left.
        """
        began = time.monotonic()
        left: set[str] = set()

        def quiet() -> bool:
            left.clear()
            left.update(self.prometheus.firing())
            return not left or (left <= BUSY and time.monotonic() - began > self.quiet_seconds_max)

        self.until(quiet, RESOLVE_SECONDS_MAX, "all alerts to go")
        return (
            f"no alert fires but {', '.join(sorted(left))}, for the machine is busy" if left else "no alert fires"
        )

    def _healthy(self, expression: str) -> None:
        found: list[dict[str, Any]] = []

        def holds() -> bool:
            found[:] = self.prometheus.query(expression)
            return bool(found)

        self.until(holds, HEALTHY_SECONDS_MAX, expression)
        self.see(f"{expression}: it is {float(found[0]['value'][1]):g}")

    def _wait_fired(self, name: str) -> Alert:
        found: list[Alert] = []

        def fires() -> bool:
            found[:] = [alert for alert in self.prometheus.firing().values() if alert.name == name]
            return bool(found)

        self.until(fires, FIRE_SECONDS_MAX, f"{name} to fire; there is {self.prometheus.alerts()}")
        return found[0]

    def _force(self) -> None:
        """After a failure, so that the next fault meets a healthy system."""
        self.load.garbage_share = 0.0
        for proxy in self.proxies.values():
            proxy.set(Pass())
        with suppress(LocalError, OSError):
            self.redis_server.restart(kill=True)
        for child in self.fleet.children.values():
            with suppress(LocalError, OSError):
                if child.name in self.ports:
                    self.fleet.kill(child, keep=False)
                    self.run(child.name)
        with suppress(LocalError, OSError):
            self.fleet.migrate()
            self.calm()


def play(
    faults: Sequence[Fault],
    *,
    console: Console,
    rate: float = MESSAGES_PER_SECOND,
    kafka: KafkaKind,
    directory: Path | None = None,
    minutes_max: float = MINUTES_MAX,
    quiet_seconds_max: float = QUIET_SECONDS_MAX,
) -> Result:
    """The game day with these faults. What went wrong is in the result, also that its time was up.

    After `minutes_max` no fault is begun any more; a little later the one that is played is broken off.
    """
    result = Result(rate=rate, kafka=kafka)
    began = time.monotonic()
    with temporary_files_in_memory(directory is None), ending_on_signals() as ending:
        game = Game(console, result, ending, directory, quiet_seconds_max)
        clock = threading.Timer(minutes_max * 60 * HARD_END, ending.set)
        clock.daemon = True
        clock.start()
        try:
            game.start(kafka, rate)
            game.until(lambda: game.load.messages > rate * 5, CALM_SECONDS_MAX, "load")
            game.fleet.wait_committed(dict(game.load.ends), CALM_SECONDS_MAX)
            game.calm()
            game.say("all is well")
            for fault in faults:
                if time.monotonic() - began > minutes_max * 60:
                    result.error = f"the time was up before: {fault.name}"
                    break
                result.played.append(game.play(fault))
                if ending.is_set():
                    raise LocalError("interrupted, or the time was up")
            _account(game, result)
        except (LocalError, LoadError, OSError, ValueError) as error:
            result.error = str(error)
        finally:
            clock.cancel()
            game.close()
    result.seconds = time.monotonic() - began
    return result


def _account(game: Game, result: Result) -> None:
    """The dashboard over the run; then the topic against the sinks."""
    result.panels = asked_panels(game.prometheus, game.began_unix, time.time())
    game.load.close()
    result.messages = game.load.messages
    game.fleet.wait_committed(dict(game.load.ends), CALM_SECONDS_MAX)
    game._steps = []
    result.reconciled = game.command("reconcile", codes=(0, 1))
    if game._steps[-1].endswith(")"):
        result.error = "something is missing in a sink"


# --------------------------------------------------------------------------------------------------------- showing


def show(console: Console, result: Result) -> None:
    """The table of faults, the panels without data, the account of the sinks, and a verdict."""

    def seconds(number: float | None) -> str:
        return "never" if number is None else f"{number:.0f}"

    table = Table(title="faults", title_justify="left", show_lines=True)
    for name in ("fault", "alert", "fired after s", "others that fired", "runbook", "what mended it"):
        table.add_column(name, justify="right" if name.endswith(" s") else "left")
    table.add_column("gone after s", justify="right")
    table.add_column("lag zero after s", justify="right")
    for each in result.played:
        table.add_row(
            each.fault,
            each.alert,
            seconds(each.fired_seconds),
            "\n".join(each.others),
            each.section.partition("#")[2] and "#" + each.section.partition("#")[2],
            "\n".join(each.steps) + (f"\nFAILED: {each.trouble.splitlines()[0]}" if each.trouble else ""),
            seconds(each.resolved_seconds),
            seconds(each.drained_seconds),
        )
    console.print(table)
    empty = [asked for asked in result.panels if not asked.values]
    console.print(f"dashboard: {len(result.panels)} expressions asked, {len(result.panels) - len(empty)} had data")
    for asked in empty:
        console.print(f"  no data: {asked.panel}: {asked.expression}", markup=False, soft_wrap=True)
    console.print(result.reconciled.strip(), markup=False)
    if result.error:
        console.print(f"error: {result.error.splitlines()[0]}", markup=False)
    verdict = "each fault was told of and mended" if result.ok else "NOT everything went as it should, see above"
    console.print(f"{len(result.played)} faults, {result.messages:,} messages, {result.seconds:.0f} s: {verdict}")


def as_dict(result: Result) -> dict[str, Any]:
    """For --json."""
    return {"ok": result.ok, **asdict(result)}


def main() -> int:
    """python -m tools.gameday.run [--json FILE] [--only NAME] [--kafka tansu|apache] [--minutes N]"""
    from tools.gameday.faults import FAULTS

    parser = argparse.ArgumentParser(
        description="Ten faults and more: the alert, the runbook's steps, the mending."
    )
    parser.add_argument("--json", type=Path, help="write all of it there")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a fault's name or alert")
    parser.add_argument("--kafka", choices=("tansu", "apache"), help="default: apache where Java is")
    parser.add_argument("--rate", type=float, default=MESSAGES_PER_SECOND, help="messages a second")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES_MAX, help="end it after so long, whatever it does"
    )
    parser.add_argument(
        "--quiet-seconds",
        type=float,
        default=QUIET_SECONDS_MAX,
        help="wait so long for alerts to go that a busy machine alone makes fire",
    )
    parser.add_argument("--directory", type=Path, help="keep data and logs there")
    options = parser.parse_args()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    if reason := available():
        console.print(f"not played: {reason}")
        return 1
    names = [name.lower() for name in options.only]
    faults = [fault for fault in FAULTS if not names or {fault.name.lower(), fault.alert.lower()} & set(names)]
    if not faults:
        parser.error("no such fault; there are " + ", ".join(f"{each.name} ({each.alert})" for each in FAULTS))
    kafka: KafkaKind = options.kafka or ("tansu" if java_kafka.available() else "apache")
    result = play(
        faults,
        console=console,
        rate=options.rate,
        kafka=kafka,
        directory=options.directory,
        minutes_max=options.minutes,
        quiet_seconds_max=options.quiet_seconds,
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(as_dict(result), indent=2))
    show(console, result)
    return 0 if result.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
