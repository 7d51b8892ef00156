"""Measures our system and comparable ones from Kafka to durable objects, one at a time on the same cores.

    python -m benchmarks.end_to_end [--segments 4000] [--latency-ms 20] [--peers] [--rounds 3]
        [--profiles default,small] [--matrix] [--redis PROGRAM] [--json FILE]

The systems write to one HTTP server with a given latency (benchmarks/latency_server.py) or, with --embedded, to
the stores of the embedded stack. `CPU` is the CPU time of all processes of a system, including Redis but not the
broker and the stores. With --rounds, the systems alternate within each round, the tables show medians, and each
ratio compares two runs of one round (benchmarks/rounds.py).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.common import machine, show, write_json
from benchmarks.redis_watch import add_redis_option
from benchmarks.rounds import RATIOS, Spread, median_run, ratios, spreads
from benchmarks.servers import Bench
from benchmarks.shapes import PEERS, PROFILE_SETTINGS, REFERENCE, Shape, with_profile
from benchmarks.system import Result, run
from benchmarks.workload import Workload, workload

WORKLOAD_SEGMENTS = 3000
ALL_SINKS = "gcs,clickhouse,bigquery,datadog,dead_letter"
MEDIANS = ("segments_per_second", "cpu_micros_per_segment", "memory_bytes")
COLUMNS = (
    "system",
    "seg/s",
    "MB/s",
    "CPU µs/seg",
    "reader",
    "workers",
    "redis",
    "CPU s/GB",
    "memory MB",
    "p50 ms",
    "p99 ms",
)


def row(result: Result) -> list[str]:
    """Returns one line of the table."""
    figures = result.as_json()
    roles = figures["cpu_micros_by_role"]
    memory = " ".join(f"{role[0]}{size / 1e6:.0f}" for role, size in result.rss_bytes.items())
    roles["reader"] = roles.pop("reader", roles.pop("peer", 0.0))
    first = [f"{roles[name]:.0f}" if name in roles else "" for name in ("reader", "worker", "redis")]
    delays = [f"{result.delays_ms[name]:.0f}" if name in result.delays_ms else "" for name in ("p50", "p99")]
    return [
        result.label,
        f"{result.rate:.0f}",
        f"{figures['mb_per_second']:.1f}",
        f"{result.cpu_micros:.0f}",
        *first,
        f"{figures['cpu_seconds_per_gb']:.1f}",
        memory,
        *delays,
    ]


def ours(arguments: argparse.Namespace) -> Iterable[Shape]:
    """Yields configurations of our system: each layout, with recordings only or all sinks, in each profile and
    variant."""
    for layout in arguments.layouts.split(","):
        for sinks in ("gcs,dead_letter", ALL_SINKS):
            if layout == "packed" and "clickhouse" not in sinks:
                sinks = "gcs,clickhouse,dead_letter"  # needed because the index of packed objects is in ClickHouse
            for profile in arguments.profiles:
                shape = Shape(layout=layout, sinks=sinks, processes=arguments.processes, python=arguments.python)
                shape = with_profile(shape, profile)
                yield shape
                for text, variables in arguments.variant:
                    yield replace(shape, extra=(*shape.extra, *variables), name=f"{shape.label}, {text}")


def matrix() -> Iterable[Shape]:
    """Yields configurations that vary partitions, readers and worker processes, one at a time and together."""
    for partitions, readers, processes in (
        (1, 1, 1), (1, 1, 2), (1, 1, 4), (2, 1, 2), (2, 2, 2), (2, 2, 4), (4, 1, 1), (4, 1, 4), (4, 2, 4),
    ):  # fmt: skip
        name = f"{partitions} partitions, {readers} readers, {processes} processes"
        yield Shape(partitions=partitions, readers=readers, processes=processes, name=name)


def peers(arguments: argparse.Namespace) -> Iterable[Shape]:
    """Yields the chosen peers."""
    for peer in arguments.peers:
        yield Shape(system=peer, threads=arguments.threads, processes=arguments.processes)


def sized(shape: Shape, bench: Bench, arguments: argparse.Namespace) -> Shape:
    """Returns the shape with its segment count set: a fifth of the segments are warm-up, and a fifth are the
    tail.
    """
    count = arguments.segments_of.get(shape.system, arguments.segments)
    return replace(shape, count=count, warm=count // 5, tail=count // 5, cores=bench.cores)


def measure(bench: Bench, shapes: Sequence[Shape], load: Workload, rounds: int) -> dict[str, list[Result]]:
    """Runs the shapes alternately, `rounds` times each, and starts each round with a different shape.

    Returns the results by label.
    """
    found: dict[str, list[Result]] = {shape.label: [] for shape in shapes}
    assert len(found) == len(shapes), "two systems have the same label"
    for number in range(rounds):
        start = number % len(shapes)
        for shape in (*shapes[start:], *shapes[:start]):
            result = run(bench, shape, load)
            figures = f"{result.rate:.0f} seg/s, {result.cpu_micros:.0f} µs CPU, load {result.load_average:.1f}"
            print(f"  {result.label}: {figures}", flush=True)
            found[shape.label].append(result)
    return found


def one_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Returns a parser of comma-separated names. The parser raises ArgumentTypeError for any other name."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        # A peer may be given by the part of its name before the hyphen; p1 selects both variants.
        found = [choice for name in names for choice in known if choice == name or choice.startswith(f"{name}-")]
        if unknown := [
            name for name in names if not any(one.split("-")[0] == name or one == name for one in found)
        ]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
        return list(dict.fromkeys(found))

    return parse


def variant(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Parses NAME=VALUE,... and returns the given text and the (name, value) pairs. Raises ArgumentTypeError."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.isidentifier() and separator for name, separator, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE,...")
    return text, tuple((name, value) for name, _, value in pairs)


def counts(text: str) -> dict[str, int]:
    """Parses SYSTEM=SEGMENTS,... Raises ArgumentTypeError."""
    found = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in ("ours", *PEERS) or not number.isdigit() or int(number) < 10:
            raise argparse.ArgumentTypeError(f"{part!r} is not SYSTEM=SEGMENTS, with at least 10 segments")
        found[name] = int(number)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--segments", type=int, default=4000)
    parser.add_argument(
        "--segments-of",
        type=counts,
        default={},
        metavar="SYSTEM=SEGMENTS,...",
        help="segment counts for slow systems, instead of --segments",
    )
    parser.add_argument("--workload", type=int, default=WORKLOAD_SEGMENTS, help="distinct segments")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--layouts", default="segment")
    parser.add_argument(
        "--profiles",
        type=one_of(PROFILE_SETTINGS),
        default=["default"],
        help="profiles of our system: default, small",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        type=variant,
        metavar="NAME=VALUE,...",
        help="also run our system with these environment variables; may be repeated",
    )
    parser.add_argument(
        "--python",
        default="",
        help="interpreter of our readers and workers, for example that of an environment without extras",
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--processes",
        type=int,
        default=4,
        help="worker processes of our system and of the peer P5 (one Celery task per message)",
    )
    parser.add_argument("--cores", default="0", help="cores of the measured system, comma-separated")
    parser.add_argument("--kafka", choices=("tansu", "apache"), default="tansu")
    add_redis_option(parser)
    parser.add_argument(
        "--peers", nargs="?", const=list(PEERS), default=[], type=one_of(PEERS), help="peers to run; default: all"
    )
    parser.add_argument("--threads", type=int, default=32, help="threads of each peer")
    parser.add_argument("--matrix", action="store_true", help="vary partitions, readers and worker processes")
    parser.add_argument(
        "--delays", type=float, default=0, metavar="RATE", help="measure p50 and p99 of the delay at this rate"
    )
    parser.add_argument("--embedded", action="store_true", help="use the stores of the embedded stack")
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    load = workload(arguments.workload)
    cores = [int(core) for core in arguments.cores.split(",") if int(core) in os.sched_getaffinity(0)]
    cores = cores or sorted(os.sched_getaffinity(0))[:1]
    shapes: list[Shape] = [*(matrix() if arguments.matrix else ours(arguments)), *peers(arguments)]
    if arguments.delays:
        shapes = [replace(shape, rate=arguments.delays) for shape in shapes]
    with Bench(
        cores,
        arguments.latency_ms,
        kafka=arguments.kafka,
        real_sinks=arguments.embedded,
        redis_program=arguments.redis,
    ) as bench:
        found = measure(bench, [sized(shape, bench, arguments) for shape in shapes], load, arguments.rounds)
    report(found, load, arguments)


def report(found: dict[str, list[Result]], load: Workload, arguments: argparse.Namespace) -> None:
    """Prints the tables, and writes the JSON file: the median run of each system, all runs, medians and ratios."""
    figures = {label: [result.as_json() for result in results] for label, results in found.items()}
    chosen = [found[label][median_run(runs)] for label, runs in figures.items()]
    store = "the embedded stores" if arguments.embedded else f"a store of {arguments.latency_ms:g} ms"
    title = f"{arguments.segments} segments of {load.mean_bytes / 1e3:.1f} kB, {store}, cores {arguments.cores}"
    rounds = f", the run with the median CPU of {arguments.rounds}" if arguments.rounds > 1 else ""
    show(title + rounds, COLUMNS, [row(result) for result in chosen])
    medians = {label: spreads(runs, MEDIANS) for label, runs in figures.items()}
    if arguments.rounds > 1:
        lines = [[label, *_texts(one)] for label, one in medians.items()]
        show(f"medians of {arguments.rounds} rounds", ("system", "seg/s", "CPU µs/seg", "memory MB"), lines)
    reference = next((label for label, results in found.items() if results[0].shape["system"] == REFERENCE), "")
    compared = ratios(figures, reference)
    if compared:
        lines = [[label, *(one[name].text(2) for name in RATIOS)] for label, one in compared.items()]
        show(f"relative to {reference}", ("system", *(name for name, _ in RATIOS.values())), lines)
    if servers := {"{name} {version}, {mem_allocator}".format(**one.redis) for one in chosen if one.redis}:
        print("Redis:", *servers)
    document: dict[str, Any] = {
        "machine": machine(),
        "arguments": vars(arguments),
        "results": [result.as_json() for result in chosen],
        "rounds": figures,
        "medians": _plain(medians),
        "ratios": _plain(compared),
    }
    write_json(arguments.json, document)


def _texts(found: dict[str, Spread]) -> list[str]:
    rate, cpu, memory = (found[name] for name in MEDIANS)
    in_mb = Spread(*(value / 1e6 for value in (memory.median, memory.least, memory.greatest)))
    return [rate.text(), cpu.text(), in_mb.text()]


def _plain(found: dict[str, dict[str, Spread]]) -> dict[str, dict[str, dict[str, float]]]:
    return {label: {name: asdict(spread) for name, spread in one.items()} for label, one in found.items()}


if __name__ == "__main__":
    main()
