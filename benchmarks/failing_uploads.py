"""Measures how much a small share of failing uploads reduces the throughput of the whole system.

    python -m benchmarks.failing_uploads                      2 % of responses are 503, 1 % are 429
    python -m benchmarks.failing_uploads --retry-after 1      the 429 responses request a delay of 1 s

One reader and one set of workers, as separate processes, drain one backlog in intervals with and without faults.
After every `--turn-messages` committed messages, the proxy in front of Cloud Storage switches its fault on or off.
Noise on the machine therefore affects both kinds of interval, and neither includes start-up or shutdown. If a
retry is postponed into a later interval, the later interval becomes longer. The duration of an interval is the
time between two commits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import machine, show, write_json
from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.reconcile import reconcile
from ingest.local.launch import settings_of
from ingest.local.load.expectation import Expectation
from ingest.local.load.produce import PROFILES, ProducedTotals, produce
from ingest.local.servers.fault_proxy import Errors, Fault, FaultProxy, NoFault, SeveralErrors
from ingest.local.servers.processes import free_port
from ingest.local.stack import Stack
from tasks.migrate import migrate

PARTS = ("kafka", "redis", "gcs", "clickhouse", "bigquery", "statsd")
QUEUES = {"flush.gcs,control": 8, "flush.clickhouse,flush.bigquery,flush.datadog,flush.dead_letter": 4}
SILENT_SECONDS_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Interval:
    """One interval of the run: whether the proxy injected faults, the number of committed messages, and the
    duration, in seconds.
    """

    faulty: bool
    messages: int
    seconds: float

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


def main() -> int:
    """Runs the benchmark. Returns 1 if a message was lost or parked, or if the ratio is below the requested
    one."""
    args = arguments()
    errors = (Errors(503, args.share_503), Errors(429, args.share_429, args.retry_after))
    with tempfile.TemporaryDirectory() as directory, ExitStack() as opened:
        stack = opened.enter_context(Stack(Path(directory) / "stack"))
        stack.start(PARTS)
        env = {**stack.settings(), "REPLAYS_BATCH_MESSAGES_MAX": str(args.batch_messages)}
        env |= {"REPLAYS_HTTP_PORT": str(free_port()), "REPLAYS_LOG_LEVEL": "warning"}
        settings = settings_of(env)
        for _ in migrate(settings, topics=True):
            pass
        manifest = Path(directory) / "manifest.jsonl"
        produced = produce(settings, PROFILES["small"], args.segments, args.seed, manifest_path=manifest)
        proxy = opened.enter_context(FaultProxy(env["REPLAYS_GCS_ENDPOINT"], http=True, seed=args.seed))
        env["REPLAYS_GCS_ENDPOINT"] = proxy.url
        for number, (queues, processes) in enumerate(QUEUES.items()):
            command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-n", f"w{number}@%h"]
            stack.children.start(f"worker{number}", [*command, "-c", str(processes), "-Q", queues], env=env)
        stack.children.start("reader", [sys.executable, "-m", "ingest.cli"], env=env)
        intervals = list(drain(settings, produced, proxy, SeveralErrors(errors), args.turn_messages))
        parked = metric(env["REPLAYS_HTTP_PORT"], "replays_reader_batches_parked_total")
        whole = None
        if args.reconcile:
            expected = Expectation.from_manifest(manifest, settings=settings)
            whole = reconcile(settings, expected).ok
    return report(intervals, proxy, int(parked), whole, args)


def drain(
    settings: Any, produced: ProducedTotals, proxy: FaultProxy, fault: Fault, turn_messages: int
) -> Iterator[Interval]:
    """Yields intervals of at least `turn_messages` committed messages, alternately without and with faults, until
    everything is committed. The warm-up before the first interval is not yielded.
    """
    offsets = CommittedOffsets(settings)
    sources = [(settings.kafka_topic, partition) for partition in produced.ends]
    warm = faulty = False
    done = start = 0
    began = changed_at = time.monotonic()
    while done < produced.messages:
        time.sleep(0.02)
        now, committed = time.monotonic(), sum(offsets.of(sources).values())
        if committed == done:
            if now - changed_at > SILENT_SECONDS_MAX:
                raise SystemExit(f"no message was committed for {SILENT_SECONDS_MAX:g} s, after {done} messages")
            continue
        done, changed_at = committed, now
        if done - start >= turn_messages:
            if warm:
                yield Interval(faulty, done - start, now - began)
                faulty = not faulty
            proxy.set(fault if faulty else NoFault())
            warm, start, began = True, done, now
    offsets.close()


def report(
    intervals: list[Interval], proxy: FaultProxy, parked: int, whole: bool | None, args: argparse.Namespace
) -> int:
    """Prints the table and writes the file. Returns the exit code. Only complete pairs of intervals count."""
    pairs = list(zip(intervals[0::2], intervals[1::2], strict=False))
    rates = [
        sum(pair[side].messages for pair in pairs) / sum(pair[side].seconds for pair in pairs) for side in (0, 1)
    ]
    ratio = rates[1] / rates[0]
    rows = [
        (f"{number}", f"{clean.rate:.0f}", f"{faulty.rate:.0f}", f"{faulty.rate / clean.rate:.2f}")
        for number, (clean, faulty) in enumerate(pairs, start=1)
    ]
    rows.append(("all", f"{rates[0]:.0f}", f"{rates[1]:.0f}", f"{ratio:.3f}"))
    faults = {name: count for name, count in proxy.counts.items() if name.startswith("status")}
    complete = "not checked" if whole is None else whole
    caption = f"{faults} of {proxy.counts['requests']} requests; {parked} parked; complete: {complete}"
    show(
        "Messages per second, without and with failing uploads",
        ("pair", "clean", "faulty", "ratio"),
        rows,
        caption,
    )
    write_json(
        args.json,
        {
            "ratio": ratio,
            "clean": rates[0],
            "faulty": rates[1],
            "pairs": rows,
            "faults": faults,
            "requests": proxy.counts["requests"],
            "parked": parked,
            "whole": whole,
            "arguments": vars(args),
            "machine": machine(),
        },
    )
    return int(parked > 0 or whole is False or ratio < args.ratio_min)


def metric(port: str, name: str) -> float:
    """Returns the sum over all series with this name on the reader's /metrics page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--segments", type=int, default=34_000)
    parser.add_argument("--turn-messages", type=int, default=4000, help="committed messages per interval")
    parser.add_argument("--batch-messages", type=int, default=100)
    parser.add_argument("--share-503", type=float, default=0.02)
    parser.add_argument("--share-429", type=float, default=0.01)
    parser.add_argument("--retry-after", type=int, default=None, help="Retry-After of each 429, seconds")
    parser.add_argument("--ratio-min", type=float, default=0.0, help="exit with 1 if the ratio is lower than this")
    parser.add_argument("--reconcile", action="store_true", help="compare every object and row afterwards (slow)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write the figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
