"""Scales readers from 4 to 1 and back to 4 under load, on Apache Kafka, and measures how long partitions stall.

    python -m benchmarks.scale_readers

A *stall* of a partition is the time between two consecutive commits that advance its offset, while it receives
messages. Three of four readers get SIGTERM at the same time, as when an autoscaler scales down. Once the remaining
reader has all partitions, three readers are started again. At the end, every sink is compared with the manifest of
the load. The exit code is 1 if an item is missing, if a committed offset decreased, if the load ended before the
last rebalance, or if a stall lasted at least `--limit` seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.common import machine, show, write_json
from benchmarks.rebalance import WAIT_SECONDS_MAX, Load, Watch, fleet_of, longest_standstill_seconds
from ingest.local.compare.reconcile import reconcile
from ingest.local.fleet import DRAIN_SECONDS, SESSION_SECONDS, Fleet, isolated
from ingest.local.launch import SHORT_TIMEOUTS, temporary_files_in_memory
from ingest.local.load.expectation import Expectation
from ingest.local.servers import java_kafka
from ingest.local.stack import Stack
from tasks.migrate.kafka import SOURCE_PARTITIONS

READERS = ("one", "two", "three", "four")
JOINING = ("five", "six", "seven")
SHARE = SOURCE_PARTITIONS // len(READERS)
BATCH_SECONDS = float(SHORT_TIMEOUTS["REPLAYS_BATCH_AGE_SECONDS_MAX"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Seconds are wall-clock time. `settled_seconds` maps each change of the number of readers to the
    time until every partition had its new owner. `stopped_seconds` maps each partition to its longest stall during
    the load.
    """

    messages: int
    settled_seconds: dict[str, float]
    stopped_seconds: dict[int, float]
    fell: bool
    amid: bool
    """True if messages were still arriving after the last rebalance."""
    missing: str

    @property
    def longest_seconds(self) -> float:
        """The longest stall of any partition."""
        return max(self.stopped_seconds.values())

    def ok(self, limit_seconds: float) -> bool:
        """Returns True if nothing was lost, the run was valid, and no partition stalled for too long."""
        return self.amid and not self.fell and not self.missing and self.longest_seconds < limit_seconds


def stops(samples: Sequence[tuple[float, Mapping[int, int]]], since: float, until: float) -> dict[int, float]:
    """Returns for each partition the longest time between two consecutive commits that advance its offset, from
    `since` to `until`.
    """
    return {
        partition: longest_standstill_seconds(
            [(at, offsets.get(partition, 0)) for at, offsets in samples if since <= at <= until], until
        )
        for partition in range(SOURCE_PARTITIONS)
    }


def scale(fleet: Fleet, watch: Watch, load: Load) -> tuple[float, dict[str, float]]:
    """Scales from 4 readers to 1 and back to 4 under load. Returns the start time of the first change, and the
    settling time of each change.
    """
    for name in READERS:
        watch.reader(name)
    watch.wait_until_shared(**dict.fromkeys(READERS, SHARE))
    load.start()
    watch.wait_until_committed(load.count // 10)
    load.wait_random()
    began = time.monotonic()
    leaving = [fleet.children[name] for name in READERS[1:]]
    with ThreadPoolExecutor(len(leaving)) as pool:
        codes = pool.map(fleet.stop, leaving)  # in parallel
        watch.wait_until_shared(one=SOURCE_PARTITIONS)
        settled = {"4 to 1": time.monotonic() - began}
        if any(codes):
            raise SystemExit("a reader did not end with 0 at SIGTERM")
    watch.wait_until_committed(watch.committed + load.count // 10)
    joined = time.monotonic()
    for name in JOINING:
        watch.reader(name)
    watch.wait_until_shared(**dict.fromkeys((READERS[0], *JOINING), SHARE))
    return began, {**settled, "1 to 4": time.monotonic() - joined}


def run(stack: Stack, directory: Path, args: argparse.Namespace) -> Outcome:
    """Runs once, with separate topics, tables, bucket and Redis database."""
    with fleet_of(stack, isolated("scale", stack.addresses["redis"], 1), "") as fleet:
        manifest = directory / "manifest.jsonl"
        load = Load(fleet, manifest, args.segments, args.rate, args.seed)
        with Watch(fleet) as watch:
            fleet.worker("worker")
            began, settled = scale(fleet, watch, load)
            amid = time.monotonic() < load.ended_at
            produced = load.end()
            fleet.wait_until_committed(produced.ends, WAIT_SECONDS_MAX)
            watch.wait_until_committed(sum(produced.ends.values()))
        report = reconcile(fleet.settings, Expectation.from_manifest(manifest, settings=fleet.settings))
        return Outcome(
            messages=produced.messages,
            settled_seconds=settled,
            stopped_seconds=stops(watch.partitions, began - BATCH_SECONDS, load.ended_at),
            fell=watch.fell,
            amid=amid,
            missing="" if report.ok else report.failures(),
        )


def report(outcome: Outcome, args: argparse.Namespace) -> None:
    """Prints the table and writes the file."""
    rows = [
        (f"{name} readers, until all partitions had an owner", f"{seconds:.1f}")
        for name, seconds in outcome.settled_seconds.items()
    ]
    rows += [
        (f"longest stall of partition {partition}", f"{seconds:.1f}")
        for partition, seconds in outcome.stopped_seconds.items()
    ]
    caption = (
        f"{outcome.messages} messages at {args.rate:g} per second, {SOURCE_PARTITIONS} partitions, one worker; "
        f"session {SESSION_SECONDS:g} s, drain {DRAIN_SECONDS:g} s, batches of {BATCH_SECONDS:g} s. "
        f"{'Nothing lost' if not outcome.missing else 'LOST: ' + outcome.missing}; committed offsets "
        f"{'DECREASED' if outcome.fell else 'did not decrease'}; "
        f"the load ended {'after the last rebalance' if outcome.amid else 'TOO EARLY'}"
    )
    show("Readers scaled under load", ("figure", "seconds"), rows, caption)
    figures = {**asdict(outcome), "longest_seconds": outcome.longest_seconds}
    write_json(args.json, {"machine": machine(), "arguments": vars(args), "outcome": figures})


def main() -> int:
    """Command line. Returns 1 if the run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--segments", type=int, default=8000)
    parser.add_argument("--rate", type=float, default=100.0, help="messages per second")
    parser.add_argument("--limit", type=float, default=15.0, help="maximum stall of a partition, seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    if reason := java_kafka.available():
        parser.error(reason)
    with (
        tempfile.TemporaryDirectory() as directory,
        temporary_files_in_memory(wanted=True),
        Stack(kafka="apache") as stack,
    ):
        stack.start()
        outcome = run(stack, Path(directory), args)
    report(outcome, args)
    return 0 if outcome.ok(args.limit) else 1


if __name__ == "__main__":
    sys.exit(main())
