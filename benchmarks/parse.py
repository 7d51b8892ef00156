"""Compares our parser with a lower bound (the floor) and with other parsers in use, per core and with parser
processes.

    python -m benchmarks.parse [--segments 600] [--rounds 15] [--processes] [--json FILE]

There are three workloads: segments of the generator's `clean` mix, segments of its `small` mix without malformed
messages, and the recordings in REPLAYS_FIXTURES (or ../shared/fixtures), one segment per file. The floor is the
minimum cost of a Python program that inflates and validates a recording: one call to isal, and a decoder that
builds one small object per event. All programs run in turn within one run, so ratios compare measurements of the
same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from isal import isal_zlib

from benchmarks import peers_parse
from benchmarks.common import Timing, machine, show, take_turns, write_json
from ingest.core.model import Message, Segment, TopicPartition
from ingest.core.parse import ParseRules, parse
from ingest.core.parse.envelope import open_envelope
from ingest.core.parse.recording import inflate, split
from ingest.local.load.produce import PROFILES, stream
from ingest.reader.parsing.inline import InlineParser, ProcessParser
from ingest.reader.tenant_gate import TenantGate

RULES = ParseRules()
SOURCE = TopicPartition("benchmark", 0)
STARTED_AT = 1_790_000_000
MB = 1e6
# Facts that our parser samples, and that the peers do not extract.
SAMPLED_ROW_SUFFIXES = ("canvas_size", "sdk_options", "mutations", "rage_click", "multi_click")


class MinimalEvent(msgspec.Struct, gc=False):
    """The smallest object that a validating decoder can build from an event."""

    type: int


_decode_minimal = msgspec.json.Decoder(list[MinimalEvent]).decode


def floor(body: bytes) -> None:
    """Does the minimum work that any parser must do: decompresses a body up to a limit, and scans its JSON."""
    _decode_minimal(isal_zlib.decompressobj().decompress(body, RULES.inflated_bytes_max))


def ours(message: Message) -> None:
    """Runs our parser, which encodes every row of every sink."""
    parse(message, RULES)


@dataclass(frozen=True, slots=True)
class Workload:
    """The same segments in each program's input format."""

    name: str
    messages: list[Message]
    bodies: list[bytes]
    raw_bytes: int

    @property
    def values(self) -> list[bytes]:
        """Kafka values."""
        return [message.value for message in self.messages]


def generated(count: int, name: str = "clean") -> Workload:
    """Returns valid segments generated with this profile; the body of each is a zlib stream of JSON."""
    valid = PROFILES["clean"]
    unwanted = ("broken_body", "odd_event", "trailing_bytes", "replay_event_missing", "replay_event_broken")
    mix = replace(PROFILES[name].mix, **{part: getattr(valid.mix, part) for part in unwanted})
    profile = replace(PROFILES[name], mix=mix, duplicates=valid.duplicates, malformed=valid.malformed)
    values = [made.value for made in stream(profile, count, 1, STARTED_AT)]
    return _workload("generated" if name == "clean" else name, values)


def recorded(folder: Path) -> Workload | None:
    """Returns each recorded file with rrweb events as one segment, or None if there is no such file."""
    if not folder.is_dir():
        return None
    values = []
    for path in sorted(
        (
            *folder.glob("rrweb/**/*.json"),
            *folder.glob("relay/rrweb*.json"),
            *folder.glob("sentry-javascript/bit-*"),
        )
    ):
        try:
            events = json.loads(path.read_bytes())
        except ValueError:
            continue
        events = events if isinstance(events, list) else [events]
        if all(isinstance(event, dict) and isinstance(event.get("type"), int) for event in events):
            raw = json.dumps(events, separators=(",", ":"), ensure_ascii=False).encode()
            values.append(enveloped(zlib.compress(raw)))
    return _workload("recorded", values) if values else None


def enveloped(body: bytes, segment_id: int = 1) -> bytes:
    """Returns a Kafka value that contains this body."""
    return msgspec.msgpack.encode(
        {
            "type": "replay_recording_not_chunked",
            "replay_id": "0123456789abcdef0123456789abcdef",
            "org_id": 1,
            "project_id": 11,
            "received": STARTED_AT,
            "retention_days": 30,
            "key_id": 7,
            "payload": b'{"segment_id":%d}\n' % segment_id + body,
            "replay_event": b'{"platform":"javascript","urls":["https://shop.example/"]}',
        }
    )


def _workload(name: str, values: Sequence[bytes]) -> Workload:
    messages, bodies, raw_bytes = [], [], 0
    for value in values:
        _, body = split(open_envelope(value).payload)
        if body[0] == 0x5B:
            continue
        raw_bytes += len(inflate(body, RULES.inflated_bytes_max))
        bodies.append(bytes(body))
        messages.append(Message(SOURCE, 1, len(messages), value, timestamp_ms=STARTED_AT * 1000))
    return Workload(name, messages, bodies, raw_bytes)


def check(workload: Workload) -> dict[str, int]:
    """Checks that all programs find the same facts, and therefore do the same work. Returns the counts of
    facts."""
    sums = dict.fromkeys(("clicks", "taps", "facts", "sizes"), 0)
    for message in workload.messages:
        segment, other = parse(message, RULES), peers_parse.typed(message.value)
        assert isinstance(segment, Segment), segment
        ours = {
            "clicks": sum(b"click_tag" in row.json for row in segment.clickhouse),
            "taps": sum(b"tap_view_id" in row.json for row in segment.clickhouse),
            "facts": sum(not row.id.endswith(SAMPLED_ROW_SUFFIXES) for row in segment.bigquery),
            "sizes": sum(metric.name.endswith("_body_size") for metric in segment.metrics),
        }
        peers = {
            "clicks": other.clicks,
            "taps": other.taps,
            "facts": len(other.facts),
            "sizes": sum(size is not None for pair in other.sizes for size in pair),
        }
        assert ours == peers, (message.offset, ours, peers)
        for name in sums:
            sums[name] += peers[name]
    return sums


def compare(workload: Workload, rounds: int) -> dict[str, Timing]:
    """Times all programs on the workload. In each round, the programs run in turn."""
    programs: dict[str, tuple[Callable[[Any], object], Sequence[Any]]] = {
        "floor (inflate and scan)": (floor, workload.bodies),
        "replays-ingest": (ours, workload.messages),
        "P1 typed": (peers_parse.typed, workload.values),
        "P1 full JSON": (peers_parse.full_json, workload.values),
    }
    return take_turns(programs, rounds)


def report(workload: Workload, timings: dict[str, Timing], found: dict[str, int]) -> dict[str, Any]:
    """Prints the table of one workload. Returns the workload's figures for the JSON file."""
    own, least = timings["replays-ingest"], timings["floor (inflate and scan)"]
    count, stored = len(workload.messages), sum(map(len, workload.bodies))
    rows = []
    for name, timing in timings.items():
        rows.append(
            (
                name,
                f"{timing.micros:,.0f}",
                f"{1e6 / timing.micros:,.0f}",
                f"{workload.raw_bytes / timing.seconds / MB:,.0f}",
                f"{least.seconds / timing.seconds:.0%}",
                f"{timing.seconds / own.seconds:.2f}",
            )
        )
    caption = (
        f"{count} segments, on average {workload.raw_bytes / count / 1000:,.0f} kB of JSON from "
        f"{stored / count / 1000:,.1f} kB; in all "
        f"{', '.join(f'{number} {name}' for name, number in found.items())}"
    )
    columns = ("program", "µs/segment", "segments/s/core", "MB/s JSON", "of the floor", "times ours")
    show(f"Parse, {workload.name}", columns, rows, caption)
    return {
        "segments": count,
        "raw_bytes": workload.raw_bytes,
        "compressed_bytes": stored,
        "found": found,
        "micros": {name: round(timing.micros, 1) for name, timing in timings.items()},
        "share_of_floor": round(least.seconds / own.seconds, 3),
        "times_p1_typed": round(timings["P1 typed"].seconds / own.seconds, 3),
        "times_p1_full_json": round(timings["P1 full JSON"].seconds / own.seconds, 3),
    }


def memory(raw_mb: int) -> dict[str, Any]:
    """Returns the peak memory of parsing one large segment, excluding its message, as measured by tracemalloc."""
    event = json.dumps({"type": 3, "data": {"source": 2, "text": "x" * 200}, "timestamp": 1}).encode()
    count = raw_mb * 1_000_000 // (len(event) + 1)
    value = enveloped(zlib.compress(b"[" + b",".join([event] * count) + b"]", 1))
    message = Message(SOURCE, 1, 0, value)
    tracemalloc.start()
    outcome = parse(message, RULES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(outcome, Segment), outcome
    raw = next(metric.value for metric in outcome.metrics if metric.name.endswith("size_uncompressed"))
    row = (f"{count:,}", f"{raw / MB:,.0f} MB", f"{peak / MB:,.0f} MB", f"{peak / raw:.2f}")
    show("Memory, the largest segment", ("events", "JSON", "peak", "times its JSON"), [row])
    return {"events": count, "raw_bytes": raw, "peak_bytes": peak, "times_raw": round(peak / raw, 3)}


def processes(workload: Workload, rounds: int) -> dict[str, Any]:
    """Returns the throughput with parser processes, in segments per second of wall-clock time, with polls of 100
    messages.
    """
    gate = TenantGate()
    parsers: dict[str, InlineParser | ProcessParser] = {
        "in the reader": InlineParser(RULES, gate, time.monotonic),
        "one process": ProcessParser(RULES, 1, gate, time.monotonic),
        "two processes": ProcessParser(RULES, 2, gate, time.monotonic),
    }
    best: dict[str, list[float]] = {name: [] for name in parsers}
    try:
        for _ in range(rounds):
            for name, parser in parsers.items():
                began = time.perf_counter()
                for start in range(0, len(workload.messages), 100):
                    for _event in parser.parse(workload.messages[start : start + 100]):
                        pass
                best[name].append(time.perf_counter() - began)
    finally:
        for parser in parsers.values():
            parser.close()
    count = len(workload.messages)
    rates = {name: count / min(seconds) for name, seconds in best.items()}
    paired = [one / two for one, two in zip(best["one process"], best["two processes"], strict=True)]
    rows = [(name, f"{rate:,.0f}", f"{rate / rates['one process']:.2f}") for name, rate in rates.items()]
    caption = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; the best of {rounds} rounds each"
    show(f"Processes, {workload.name}", ("parser", "segments/s", "times one process"), rows, caption)
    return {
        "segments_per_second": {name: round(rate) for name, rate in rates.items()},
        "two_over_one": round(rates["two processes"] / rates["one process"], 3),
        "two_over_one_by_round": {"best": round(max(paired), 3), "median": round(statistics.median(paired), 3)},
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--segments", type=int, default=600, help="segments per generated mix")
    options.add_argument("--rounds", type=int, default=15, help="number of rounds; the best one counts")
    options.add_argument("--memory-mb", type=int, default=100, help="JSON size of the largest segment, MB")
    options.add_argument("--processes", action="store_true", help="also measure parser processes")
    options.add_argument("--json", metavar="FILE", help="write the figures to this file")
    chosen = options.parse_args()

    result: dict[str, Any] = {"benchmark": "parse", "machine": machine(), "rounds": chosen.rounds}
    folder = Path(os.environ.get("REPLAYS_FIXTURES", Path(__file__).parents[2] / "shared/fixtures"))
    workloads = [generated(chosen.segments), generated(chosen.segments, "small"), recorded(folder)]
    for workload in workloads:
        if workload is not None:
            found = check(workload)
            result[workload.name] = report(workload, compare(workload, chosen.rounds), found)
    result["memory"] = memory(chosen.memory_mb)
    if chosen.processes and workloads[0] is not None:
        result["processes"] = processes(workloads[0], chosen.rounds)
    write_json(chosen.json, result)


if __name__ == "__main__":
    main()
