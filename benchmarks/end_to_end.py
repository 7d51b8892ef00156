"""Measures whole systems from Kafka to durable objects: ours and peers, one after another on the same cores.

    python -m benchmarks.end_to_end [--segments 4000] [--latency-ms 20] [--peers] [--matrix]
        [--redis PROGRAM] [--json FILE]

The systems write to one HTTP server with a given latency (benchmarks/latency_server.py) or, with --embedded, to
the stores of the embedded stack. `CPU` is the CPU time of all processes of a system, including Redis but not
broker and stores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from benchmarks.common import machine, show, write_json
from benchmarks.redis_watch import add_redis_option
from benchmarks.servers import Bench
from benchmarks.system import PEERS, Result, Shape, Workload, run, workload

WORKLOAD_SEGMENTS = 3000
ALL_SINKS = "gcs,clickhouse,bigquery,datadog,dead_letter"
REFERENCE = "p1-typed"
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
    """Yields configurations of our system: each layout, with recordings only and with all sinks."""
    for layout in arguments.layouts.split(","):
        for sinks in ("gcs,dead_letter", ALL_SINKS):
            if layout == "packed" and "clickhouse" not in sinks:
                sinks = "gcs,clickhouse,dead_letter"  # needed because the index of packed objects is in ClickHouse
            yield Shape(layout=layout, sinks=sinks, processes=arguments.processes)


def matrix() -> Iterable[Shape]:
    """Yields configurations that vary partitions, readers and worker processes, one at a time and together."""
    for partitions, readers, processes in (
        (1, 1, 1), (1, 1, 2), (1, 1, 4), (2, 1, 2), (2, 2, 2), (2, 2, 4), (4, 1, 1), (4, 1, 4), (4, 2, 4),
    ):  # fmt: skip
        yield Shape(partitions=partitions, readers=readers, processes=processes)


def measure(bench: Bench, shapes: Iterable[Shape], load: Workload, arguments: argparse.Namespace) -> list[Result]:
    """Runs the shapes alternately, `rounds` times each. The round with the least CPU counts."""
    chosen = [
        replace(shape, count=arguments.segments, warm=arguments.segments // 4, cores=bench.cores)
        for shape in shapes
    ]
    best: dict[Shape, Result] = {}
    for _ in range(arguments.rounds):
        for shape in chosen:
            result = run(bench, shape, load)
            figures = f"{result.rate:.0f} seg/s, {result.cpu_micros:.0f} µs CPU, load {result.load_average:.1f}"
            print(f"  {result.label}: {figures}", flush=True)
            if shape not in best or result.cpu_micros < best[shape].cpu_micros:
                best[shape] = result
    return list(best.values())


def ratios(results: Iterable[Result]) -> dict[str, dict[str, float]]:
    """Prints ratios to the reference system of the same run."""
    found = {result.label: result for result in results}
    base = next((result for label, result in found.items() if label.startswith(REFERENCE)), None)
    if base is None:
        return {}
    return {
        label: {
            "segments_per_second": result.rate / base.rate,
            "segments_per_core_second": result.per_core / base.per_core,
            "memory": sum(result.rss_bytes.values()) / sum(base.rss_bytes.values()),
        }
        for label, result in found.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--segments", type=int, default=4000)
    parser.add_argument("--workload", type=int, default=WORKLOAD_SEGMENTS, help="distinct segments")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--layouts", default="segment")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=4, help="worker processes")
    parser.add_argument("--cores", default="0", help="cores of the measured system, comma-separated")
    parser.add_argument("--kafka", choices=("tansu", "apache"), default="tansu")
    add_redis_option(parser)
    parser.add_argument("--peers", nargs="?", const=",".join(PEERS), default="", help="peers to run; default: all")
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
    shapes: list[Shape] = list(matrix() if arguments.matrix else ours(arguments))
    shapes += [Shape(system=peer, threads=arguments.threads) for peer in arguments.peers.split(",") if peer]
    if arguments.delays:
        shapes = [replace(shape, rate=arguments.delays) for shape in shapes]
    with Bench(
        cores,
        arguments.latency_ms,
        kafka=arguments.kafka,
        real_sinks=arguments.embedded,
        redis_program=arguments.redis,
    ) as bench:
        results = measure(bench, shapes, load, arguments)
    report(results, load, arguments)


def report(results: list[Result], load: Workload, arguments: argparse.Namespace) -> None:
    """Prints the table and the ratios, and writes the JSON file."""
    store = "the embedded stores" if arguments.embedded else f"a store of {arguments.latency_ms:g} ms"
    title = f"{arguments.segments} segments of {load.mean_bytes / 1e3:.1f} kB, {store}, cores {arguments.cores}"
    if arguments.matrix:
        for result in results:
            shape = result.shape
            result.label = (
                f"{shape['partitions']} partitions, {shape['readers']} readers, {shape['processes']} processes"
            )
    show(title, COLUMNS, [row(result) for result in results])
    found = ratios(results)
    if found:
        lines = [[label, *(f"{value:.2f}" for value in ratio.values())] for label, ratio in found.items()]
        show(f"relative to {REFERENCE}", ("system", "seg/s", "seg/s per core", "memory"), lines)
    if servers := {
        "{name} {version}, {mem_allocator}".format(**result.redis) for result in results if result.redis
    }:
        print("Redis:", *servers)
    result: dict[str, Any] = {
        "machine": machine(),
        "arguments": vars(arguments),
        "results": [result.as_json() for result in results],
        "ratios": found,
    }
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
