"""Measures lost and duplicate messages when two readers rebalance under load, on Apache Kafka.

    python -m benchmarks.rebalance                             every case, once
    python -m benchmarks.rebalance --cases killed --runs 3     one case, three times

A *case* is the cause of the rebalance. Messages are produced at a steady rate throughout. Two shares are reported:

- *read again*: messages that readers consumed again. A killed reader can no longer be queried. It is assumed to
  have read to the end of the log, so its share is an upper bound.
- *sent again*: repeated packets of a metric that is sent once per stored segment. DogStatsD does not deduplicate,
  so these packets show each flush that ran twice. In the other sinks, a repeated write has no effect.

At the end, every sink is compared with the manifest of the load. The exit code is 1 if an item is missing from a
sink, if a committed offset decreased, or if the load ended before the rebalance.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as KafkaPartition

from benchmarks.common import machine, show, write_json
from ingest.local.compare.metrics import read_metrics
from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.reconcile import reconcile
from ingest.local.compare.report import ReconcileError
from ingest.local.fleet import DRAIN_SECONDS, SESSION_SECONDS, Fleet, isolated, log_lines_of
from ingest.local.launch import SHORT_TIMEOUTS, temporary_files_in_memory
from ingest.local.load.expectation import SIZES, Expectation
from ingest.local.load.produce import PROFILES, ProducedTotals, produce
from ingest.local.servers import java_kafka
from ingest.local.servers.processes import Child, free_port, wait_until
from ingest.local.servers.statsd import Statsd
from ingest.local.stack import Stack
from ingest.observe.metrics import SNAPSHOT_SECONDS
from tasks.connection import connect
from tasks.kafka.options import kafka_options
from tasks.migrate.kafka import SOURCE_PARTITIONS

POLL_SECONDS = 0.05
BATCH_SECONDS = float(SHORT_TIMEOUTS["REPLAYS_BATCH_AGE_SECONDS_MAX"])
WAIT_SECONDS_MAX = 90.0
DATABASES = 15
CONSUMED = "replays_reader_messages_consumed_total"
ASSIGNED = "replays_reader_partitions_assigned"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one case. Counts are messages, packets or objects; seconds are wall-clock time."""

    case: str
    messages: int
    consumed: int
    """Messages taken from Kafka by all readers together."""
    packets: int
    packets_expected: int
    moved: int
    """Number of assignments of a partition after the load began."""
    still_seconds_max: float
    """The longest time without a commit while messages arrived."""
    fell: bool
    """True if a committed offset decreased."""
    amid: bool
    """True if messages were still arriving after the last rebalance."""
    missing: str
    """Items of the manifest that the comparison did not find; empty if nothing is lost."""

    @property
    def read_again(self) -> float:
        """Messages read again as a share of all messages; may exceed 1."""
        return max(0, self.consumed - self.messages) / self.messages

    @property
    def sent_again(self) -> float:
        """Repeated metrics packets as a share of the packets of a run without repetition; may exceed 1."""
        return max(0, self.packets - self.packets_expected) / self.packets_expected

    @property
    def ok(self) -> bool:
        """True if nothing was lost and the run was valid."""
        return self.amid and not self.fell and not self.missing


def longest_standstill_seconds(samples: Sequence[tuple[float, int]], until: float) -> float:
    """Returns the longest time without an increase of a count, from the first sample to `until`. `samples`: pairs
    (seconds, count), in order.
    """
    if not samples:
        return 0.0
    rises = [samples[0][0]]
    rises += [at for (_, before), (at, after) in itertools.pairwise(samples) if after > before and at <= until]
    return max(after - before for before, after in itertools.pairwise([*rises, max(until, rises[-1])]))


def metric_values(page: str) -> dict[str, float]:
    """Returns sums over all series, by name, from the text of a /metrics page."""
    sums: dict[str, float] = {}
    for line in page.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name = series.split("{")[0]
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


class Watch:
    """Polls the readers and the committed offsets from a thread."""

    def __init__(self, fleet: Fleet) -> None:
        self.samples: list[tuple[float, int]] = []
        self.partitions: list[tuple[float, dict[int, int]]] = []
        self.fell = False
        self._fleet = fleet
        self._readers: dict[str, tuple[Child, int]] = {}
        self._latest: dict[str, dict[str, float]] = {}
        self._highest: dict[tuple[str, int], int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def reader(self, name: str) -> Child:
        """Starts a reader and watches it."""
        port = free_port()
        child = self._fleet.reader(name, keep=False, REPLAYS_HTTP_PORT=str(port))
        self._readers[name] = (child, port)
        return child

    def wait_until_shared(self, **shares: int) -> None:
        """Waits until these readers own this many partitions each."""
        wait_until(
            lambda: all(self._latest.get(name, {}).get(ASSIGNED) == share for name, share in shares.items()),
            WAIT_SECONDS_MAX,
            f"partitions: {shares}",
        )

    def wait_until_committed(self, messages: int) -> None:
        """Waits until this many messages are below the committed offsets."""
        wait_until(lambda: self.committed >= messages, WAIT_SECONDS_MAX, f"{messages} messages to be committed")

    @property
    def committed(self) -> int:
        """Returns the number of messages below the committed offsets of all partitions."""
        return self.samples[-1][1] if self.samples else 0

    def ended(self, child: Child, positions: Mapping[int, int]) -> None:
        """Records that a reader ended without reporting its final figures. `positions`: by partition, the offset
        at which the reader stopped reading.
        """
        name = next(name for name, (other, _) in self._readers.items() if other is child)
        del self._readers[name]
        read = sum(positions[partition] - start for partition, start in assigned(child).items())
        self._latest[name] = {CONSUMED: read}

    @property
    def consumed(self) -> int:
        """Returns the number of messages taken by all readers."""
        return round(sum(figures.get(CONSUMED, 0.0) for figures in self._latest.values()))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        offsets = CommittedOffsets(self._fleet.settings)
        sources = [(self._fleet.settings.kafka_topic, number) for number in range(SOURCE_PARTITIONS)]
        try:
            while not self._over.wait(POLL_SECONDS):
                for name, (child, port) in list(self._readers.items()):
                    if child.alive:
                        self._poll(name, port)
                try:
                    found = offsets.of(sources)
                except ReconcileError:
                    continue
                self.fell |= any(found[source] < self._highest.get(source, 0) for source in sources)
                self._highest = found
                now = time.monotonic()
                self.samples.append((now, sum(found.values())))
                self.partitions.append((now, {number: offset for (_, number), offset in found.items()}))
        finally:
            offsets.close()

    def _poll(self, name: str, port: int) -> None:
        """Polls a reader. If the reader does not respond, because it is starting, exiting or suspended, its
        previous figures are kept.
        """
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=0.3) as answer:
                found = metric_values(answer.read().decode())
        except (OSError, ValueError, HTTPException):
            return
        if name in self._readers:
            self._latest[name] = found


def assigned(child: Child) -> dict[int, int]:
    """Maps each partition that a reader owned when it ended to the first offset that the reader read, according to
    its log.
    """
    events = ("partitions_assigned", "partitions_revoked", "partitions_lost")
    lines = sorted(
        (line for event in events for line in log_lines_of(child, event)), key=lambda line: line["timestamp"]
    )
    found: dict[int, int] = {}
    for line in lines:
        if line["event"] == "partitions_revoked" and line is lines[-1]:
            break  # this reader is leaving and still drains these partitions
        for partition in map(int, line["partitions"]):
            if line["event"] == "partitions_assigned":
                found[partition] = line["partitions"][str(partition)] or 0
            else:
                found.pop(partition, None)
    return found


def moved(children: Iterable[Child], since: datetime) -> int:
    """Returns how many partitions have been assigned to these readers since that time, according to their logs.

    A partition counts once per assignment.
    """
    lines = (line for child in children for line in log_lines_of(child, "partitions_assigned"))
    return sum(len(line["partitions"]) for line in lines if datetime.fromisoformat(line["timestamp"]) >= since)


def log_ends(fleet: Fleet) -> dict[int, int]:
    """Returns the log end offset of each partition."""
    topic = fleet.settings.kafka_topic
    consumer = Consumer({"group.id": f"{fleet.settings.kafka_group}-ends", **kafka_options(fleet.settings)})
    try:
        marks = {
            number: consumer.get_watermark_offsets(KafkaPartition(topic, number), timeout=10, cached=False)
            for number in range(SOURCE_PARTITIONS)
        }
    finally:
        consumer.close()
    return {number: high for number, (_, high) in marks.items()}


class Load:
    """Produces messages at a steady rate from a thread."""

    def __init__(self, fleet: Fleet, manifest: Path, count: int, rate: float, seed: int) -> None:
        self.count, self.ended_at = count, float("inf")
        self.began = datetime.max.replace(tzinfo=UTC)
        self.random = random.Random(seed)
        self._produced: ProducedTotals | None = None
        self._thread = threading.Thread(target=self._run, args=(fleet, manifest, rate, seed))

    def _run(self, fleet: Fleet, manifest: Path, rate: float, seed: int) -> None:
        self._produced = produce(
            fleet.settings, PROFILES["small"], self.count, seed, manifest_path=manifest, rate=rate
        )
        self.ended_at = time.monotonic()

    def start(self) -> None:
        self.began = datetime.now(UTC)
        self._thread.start()

    def wait_random(self) -> None:
        """Waits a random time, up to the maximum age of a batch, so that the next event does not always follow a
        commit."""
        time.sleep(self.random.uniform(0, BATCH_SECONDS))

    def end(self) -> ProducedTotals:
        """Waits until every message is produced and acknowledged."""
        self._thread.join()
        if self._produced is None:
            raise SystemExit("the load could not be produced")
        return self._produced


# Causes of a rebalance. Each function starts the load once its readers are ready.


def joins(fleet: Fleet, watch: Watch, load: Load) -> None:
    """Runs the case in which a second reader joins, and leaves after SIGTERM."""
    watch.reader("one")
    watch.wait_until_shared(one=SOURCE_PARTITIONS)
    load.start()
    watch.wait_until_committed(load.count // 10)
    second = watch.reader("two")
    watch.wait_until_shared(one=2, two=2)
    watch.wait_until_committed(watch.committed + load.count // 10)
    code = fleet.stop(second)
    if code:
        raise SystemExit(f"a reader ended with {code} at SIGTERM")
    watch.ended(second, fleet.committed(SOURCE_PARTITIONS))
    watch.wait_until_shared(one=SOURCE_PARTITIONS)


def killed(fleet: Fleet, watch: Watch, load: Load) -> None:
    """Runs the case in which one of two readers is killed (SIGKILL) and not restarted."""
    _kill(fleet, watch, _start_two_readers(watch, load))
    watch.wait_until_shared(one=SOURCE_PARTITIONS)


def killed_with_redis(fleet: Fleet, watch: Watch, load: Load) -> None:
    """Runs the case `killed`, but Redis also loses all of its data: staged batches, queues and done marks."""
    _kill(fleet, watch, _start_two_readers(watch, load))
    connect(fleet.settings).flushdb()
    watch.wait_until_shared(one=SOURCE_PARTITIONS)


def sleeps(fleet: Fleet, watch: Watch, load: Load) -> None:
    """Runs the case in which one of two readers is suspended (SIGSTOP) until the other owns its partitions, then
    resumed.
    """
    second = _start_two_readers(watch, load)
    second.pause()
    watch.wait_until_shared(one=SOURCE_PARTITIONS)
    second.resume()
    watch.wait_until_shared(one=2, two=2)


def _kill(fleet: Fleet, watch: Watch, reader: Child) -> None:
    fleet.kill(reader, keep=False)
    watch.ended(reader, log_ends(fleet))


def _start_two_readers(watch: Watch, load: Load) -> Child:
    watch.reader("one")
    second = watch.reader("two")
    watch.wait_until_shared(one=2, two=2)
    load.start()
    watch.wait_until_committed(load.count // 5)
    load.wait_random()
    return second


CASES: dict[str, Callable[[Fleet, Watch, Load], None]] = {
    "joins": joins,
    "killed": killed,
    "killed-with-redis": killed_with_redis,
    "sleeps": sleeps,
}


def run(stack: Stack, case: str, number: int, directory: Path, args: argparse.Namespace) -> Outcome:
    """Runs one case with its own topics, tables, bucket and Redis database."""
    statsd = stack.servers["statsd"]
    assert isinstance(statsd, Statsd)
    statsd.reset()
    own = isolated(f"run{number}", stack.addresses["redis"], 1 + number % DATABASES)
    with fleet_of(stack, own, f"run{number}-") as fleet:
        manifest = directory / f"manifest-{number}.jsonl"
        load = Load(fleet, manifest, args.segments, args.rate, args.seed + number)
        with Watch(fleet) as watch:
            fleet.worker("worker")
            CASES[case](fleet, watch, load)
            amid = time.monotonic() < load.ended_at
            produced = load.end()
            fleet.wait_until_committed(produced.ends, WAIT_SECONDS_MAX)
            watch.wait_until_committed(sum(produced.ends.values()))
            time.sleep(2 * SNAPSHOT_SECONDS + 4 * POLL_SECONDS)  # to record the last figures of each reader
        expected = Expectation.from_manifest(manifest, settings=fleet.settings)
        statsd_url = stack.addresses["statsd_query"]
        report = reconcile(fleet.settings, expected, statsd_url=statsd_url)
        stored = SIZES + "size_compressed"
        return Outcome(
            case=case,
            messages=produced.messages,
            consumed=watch.consumed,
            packets=read_metrics(statsd_url)[stored].count,
            packets_expected=expected.metrics[stored].count,
            moved=moved(fleet.children.values(), load.began),
            still_seconds_max=longest_standstill_seconds(
                [sample for sample in watch.samples if sample[1] > 0], load.ended_at
            ),
            fell=watch.fell,
            amid=amid,
            missing="" if report.ok else report.failures(),
        )


@contextmanager
def fleet_of(stack: Stack, settings: dict[str, str], tag: str) -> Iterator[Fleet]:
    """Starts a fleet with migrated sinks. Its processes are stopped when the context exits."""
    fleet = Fleet(stack, settings, tag=tag)
    fleet.migrate()
    try:
        yield fleet
    finally:
        for child in fleet.children.values():
            stack.children.release(child)
            child.kill()


def report(outcomes: Sequence[Outcome], args: argparse.Namespace) -> None:
    """Prints the table and writes the file."""
    rows = [
        (
            outcome.case,
            f"{outcome.messages}",
            f"{outcome.moved}",
            f"{outcome.read_again:.2%}",
            f"{outcome.sent_again:.2%}",
            f"{outcome.still_seconds_max:.1f}",
            "no" if not outcome.missing else "YES",
            "yes" if outcome.amid else "NO",
            "YES" if outcome.fell else "no",
        )
        for outcome in outcomes
    ]
    columns = (
        *("case", "messages", "moved", "read again", "sent again", "pause (s)", "lost", "during load"),
        "offset decreased",
    )
    caption = (
        f"{args.rate:g} messages per second, {SOURCE_PARTITIONS} partitions, one worker; "
        f"session {SESSION_SECONDS:g} s, drain {DRAIN_SECONDS:g} s, batches of {BATCH_SECONDS:g} s. "
        "moved: assignments of a partition; pause: longest time without a commit"
    )
    show("Rebalances under load", columns, rows, caption)
    for outcome in outcomes:
        if outcome.missing:
            print(f"{outcome.case}: {outcome.missing}")
    figures = [
        {**asdict(outcome), "read_again": outcome.read_again, "sent_again": outcome.sent_again}
        for outcome in outcomes
    ]
    write_json(args.json, {"machine": machine(), "arguments": vars(args), "outcomes": figures})


def main() -> int:
    """Command line. Returns 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated cases: " + ", ".join(CASES))
    parser.add_argument("--runs", type=int, default=1, help="runs per case")
    parser.add_argument("--segments", type=int, default=4000, help="segments per run")
    parser.add_argument("--rate", type=float, default=150.0, help="messages per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    cases = args.cases.split(",")
    if unknown := set(cases) - set(CASES):
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    if reason := java_kafka.available():
        parser.error(reason)
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        temporary_files_in_memory(wanted=True),
        Stack(kafka="apache") as stack,
    ):
        stack.start()
        for number, case in enumerate(itertools.chain.from_iterable([cases] * args.runs)):
            outcome = run(stack, case, number, Path(directory), args)
            outcomes.append(outcome)
            print(
                f"{number + 1} of {args.runs * len(cases)}: {case}: read again {outcome.read_again:.2%}, "
                f"sent again {outcome.sent_again:.2%}, moved {outcome.moved}, {'ok' if outcome.ok else 'NOT OK'}",
                file=sys.stderr,
                flush=True,
            )
    report(outcomes, args)
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
