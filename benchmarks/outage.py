"""Measures how soon ingestion resumes after a long outage of one sink.

    python -m benchmarks.outage --minutes 30                       Cloud Storage responds with 503 for half an hour
    python -m benchmarks.outage --sink clickhouse --fault refuse   ClickHouse refuses connections

The embedded stack, one worker and one reader run with default settings, and a producer sends recordings at a low
rate the whole time. A proxy in front of the sink injects the fault. Four times are measured from the end of the
fault: until the proxy forwards the first request, until the first commit, until the first message produced after
the fault has been committed (and is therefore stored in every sink), and until the lag is as low as before the
outage. Finally, all objects and rows in the sinks are compared with what the producer sent.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as KafkaPartition

from benchmarks.common import machine, show, write_json
from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.reconcile import reconcile
from ingest.local.launch import settings_of
from ingest.local.load.expectation import Expectation
from ingest.local.load.produce import PROFILES, ProducedTotals, produce
from ingest.local.servers.fault_proxy import Errors, Fault, FaultProxy, NoFault, Refuse
from ingest.local.servers.processes import free_port
from ingest.local.stack import Stack
from ingest.local.stack import settings_of as part_settings
from ingest.settings import Settings
from tasks.kafka.options import kafka_options
from tasks.migrate import migrate

PARTS = ("kafka", "redis", "gcs", "clickhouse", "bigquery", "statsd")
FAULTS: dict[str, Fault] = {"503": Errors(503), "refuse": Refuse()}
START_SECONDS_MAX = 120.0
# The normal lag is the largest lag during NORMAL_SECONDS, measured once the lag is at most the number of messages
# that are produced in SETTLED_SECONDS.
NORMAL_SECONDS = 30.0
SETTLED_SECONDS = 3.0
RECOVERY_SECONDS_MAX = 900.0
POLL_SECONDS = 0.05
FIRST, COMMIT, NEW, NORMAL = "first request forwarded", "first commit", "first new message stored", "lag is normal"


@dataclass(slots=True)
class Outcome:
    """The measurements of a run. `seconds`: time after the end of the outage, by milestone. `lag`: lag in
    messages, before the outage and at its end. `requests_per_minute`: requests sent by the fleet during the last
    half of the outage. `load_average`: the load average of the machine, over 15 minutes at the end of the outage
    and over 1 minute afterwards.
    """

    sink: str
    fault: str
    minutes: float
    rate: float
    seconds: dict[str, float] = field(default_factory=dict)
    lag: tuple[int, int] = (0, 0)
    requests_per_minute: float = 0.0
    load_average: tuple[float, float] = (0.0, 0.0)
    messages: int = 0
    whole: bool = False


def forwarded(counts: Mapping[str, int]) -> int:
    """Returns the number of requests that the proxy forwarded instead of responding with an error."""
    return counts.get("requests", 0) - sum(count for name, count in counts.items() if name.startswith("status "))


def attempted(counts: Mapping[str, int], fault: str) -> int:
    """Returns the number of requests to which the proxy responded with 503; 0 for any other fault."""
    return counts.get("status 503", 0) if fault == "503" else 0


def reached(
    ends: Mapping[int, int],
    committed: Mapping[int, int],
    start: Mapping[int, int],
    current_ends: Mapping[int, int],
) -> dict[str, int]:
    """Returns the milestones that were reached according to these offsets, with the lag in messages.

    `ends` and `start`: log end offsets and committed offsets at the end of the outage, by partition.
    """
    found = {"lag": sum(current_ends[partition] - committed[partition] for partition in current_ends)}
    if any(committed[partition] > start[partition] for partition in start):
        found[COMMIT] = 1
    if any(committed[partition] > ends[partition] for partition in ends):
        found[NEW] = 1
    return found


class Watch:
    """Reads the topic's log end offsets and committed offsets, by partition."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.kafka_topic
        self._committed = CommittedOffsets(settings)
        self._consumer = Consumer({"group.id": "outage-watch", **kafka_options(settings)})
        partitions = self._consumer.list_topics(self._topic, timeout=10).topics[self._topic].partitions
        self._partitions = sorted(partitions)

    def committed(self) -> dict[int, int]:
        """Returns the committed offset of each partition."""
        found = self._committed.of((self._topic, partition) for partition in self._partitions)
        return {partition: offset for (_, partition), offset in found.items()}

    def ends(self) -> dict[int, int]:
        """Returns the log end offset of each partition."""
        return {
            partition: self._consumer.get_watermark_offsets(KafkaPartition(self._topic, partition), timeout=10)[1]
            for partition in self._partitions
        }

    def lag(self) -> int:
        """Returns the number of messages that are not committed."""
        committed = self.committed()
        return sum(end - committed[partition] for partition, end in self.ends().items())

    def close(self) -> None:
        """Closes both clients."""
        self._committed.close()
        self._consumer.close()


class Load:
    """Produces recordings at a constant rate in another thread until `stop`."""

    def __init__(self, settings: Settings, rate: float, seed: int, manifest: Path) -> None:
        self.manifest = manifest
        self.produced = ProducedTotals()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(settings, rate, seed), daemon=True)
        self._thread.start()

    def _run(self, settings: Settings, rate: float, seed: int) -> None:
        count = sys.maxsize // 2
        self.produced = produce(
            settings,
            PROFILES["small"],
            count,
            seed,
            manifest_path=self.manifest,
            rate=rate,
            stop=self._ending.is_set,
        )

    def stop(self) -> ProducedTotals:
        """Stops, and returns what was produced."""
        self._ending.set()
        self._thread.join(60)
        return self.produced


def main() -> int:
    """Runs the benchmark. Returns 1 if something was lost, or if the first request came too late."""
    args = arguments()
    outcome = Outcome(args.sink, args.fault, args.minutes, args.rate)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as opened:
        stack = opened.enter_context(Stack(Path(directory) / "stack"))
        stack.start(PARTS)
        env = {**stack.settings(), "REPLAYS_HTTP_PORT": str(free_port()), "REPLAYS_LOG_LEVEL": "warning"}
        settings = settings_of(env)
        for _ in migrate(settings, topics=True):
            pass
        proxy = opened.enter_context(FaultProxy(stack.addresses[args.sink], http=True, seed=args.seed))
        env |= part_settings(args.sink, proxy.url)
        stack.children.start("worker", [sys.executable, "-m", "celery", "-A", "tasks", "worker"], env=env)
        stack.children.start("reader", [sys.executable, "-m", "ingest.cli"], env=env)
        watch = Watch(settings)
        opened.callback(watch.close)
        load = Load(settings, args.rate, args.seed, Path(directory) / "manifest.jsonl")
        measure(outcome, watch, proxy)
        produced = load.stop()
        outcome.messages = produced.messages
        wait(lambda: watch.committed() == produced.ends, RECOVERY_SECONDS_MAX, "everything to be committed")
        outcome.whole = reconcile(settings, Expectation.from_manifest(load.manifest, settings=settings)).ok
    report(outcome, args)
    return int(not outcome.whole or outcome.seconds[FIRST] > args.first_seconds_max)


def measure(outcome: Outcome, watch: Watch, proxy: FaultProxy) -> None:
    """Waits until messages are committed as they arrive, causes the outage, and measures the recovery."""
    wait(lambda: watch.lag() <= SETTLED_SECONDS * outcome.rate, START_SECONDS_MAX, "the backlog of the start")
    normal, ends_at = 0, time.monotonic() + NORMAL_SECONDS
    while time.monotonic() < ends_at:
        normal = max(normal, watch.lag())
        time.sleep(POLL_SECONDS)
    print(f"lag {normal} before the outage of {outcome.minutes:g} minutes", flush=True)
    proxy.set(FAULTS[outcome.fault])
    time.sleep(outcome.minutes * 30)
    failed = attempted(proxy.counts, outcome.fault)
    time.sleep(outcome.minutes * 30)
    outcome.requests_per_minute = (attempted(proxy.counts, outcome.fault) - failed) / (outcome.minutes / 2)
    start, ends, before = watch.committed(), watch.ends(), forwarded(proxy.counts)
    outcome.lag = normal, sum(ends.values()) - sum(start.values())
    busy = os.getloadavg()[2]
    proxy.set(NoFault())
    began = time.monotonic()
    while NORMAL not in outcome.seconds:
        seconds = time.monotonic() - began
        if seconds > RECOVERY_SECONDS_MAX:
            raise SystemExit(f"no recovery within {RECOVERY_SECONDS_MAX:g} s: {outcome.seconds}")
        if FIRST not in outcome.seconds:
            if forwarded(proxy.counts) > before:
                outcome.seconds[FIRST] = seconds
            time.sleep(POLL_SECONDS)
            continue
        found = reached(ends, watch.committed(), start, watch.ends())
        if NEW in found and found["lag"] <= normal:
            found[NORMAL] = 1
        for milestone in (COMMIT, NEW, NORMAL):
            if milestone in found:
                outcome.seconds.setdefault(milestone, time.monotonic() - began)
        time.sleep(POLL_SECONDS)
    outcome.load_average = busy, os.getloadavg()[0]


def wait(condition: Callable[[], bool], seconds_max: float, what: str) -> None:
    """Waits for the condition. Raises SystemExit."""
    ends_at = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > ends_at:
            raise SystemExit(f"{what} did not happen within {seconds_max:g} s")
        time.sleep(0.25)


def report(outcome: Outcome, args: argparse.Namespace) -> None:
    """Prints the table and writes the file."""
    rows = [(milestone, f"{outcome.seconds[milestone]:.1f}") for milestone in (FIRST, COMMIT, NEW, NORMAL)]
    before, after = outcome.lag
    busy, catching_up = outcome.load_average
    caption = (
        f"{outcome.messages} messages at {outcome.rate:g}/s, lag {before} before and {after} at the end of the "
        f"outage; {outcome.requests_per_minute:.0f} failed requests per minute; load {busy:.1f} during and "
        f"{catching_up:.1f} after it; complete: {outcome.whole}"
    )
    title = f"Seconds after {outcome.minutes:g} minutes without {outcome.sink} ({outcome.fault})"
    show(title, ("milestone", "seconds"), rows, caption)
    result: dict[str, Any] = {**asdict(outcome), "arguments": vars(args), "machine": machine()}
    write_json(args.json, result)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30.0, help="duration of the outage")
    parser.add_argument("--sink", choices=("gcs", "clickhouse", "bigquery"), default="gcs")
    parser.add_argument("--fault", choices=tuple(FAULTS), default="503")
    parser.add_argument("--rate", type=float, default=20.0, help="messages per second")
    parser.add_argument(
        "--first-seconds-max",
        type=float,
        default=20.0,
        help="exit with 1 if recovery starts later than this, in seconds",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write the figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
