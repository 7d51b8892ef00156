"""Checks that memory use and cost per segment stay constant at full load or while a long backlog is processed.

    python -m benchmarks.soak [--minutes 10] [--redis PROGRAM] [--json FILE]
    python -m benchmarks.soak --backlog 200000 [--json FILE]

With --minutes, a producer keeps a backlog in the topic until the time is up. The broker keeps all messages in
memory, so the workload uses small segments (--profile small; a backlog of 200,000 takes 1 GB). Apache Kafka
(--kafka apache) writes them to a temporary directory instead.

To explain growth in Redis' memory use, each sample also contains the memory use and the number of keys that Redis
reports.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from typing import Any

from benchmarks.common import machine, show, write_json
from benchmarks.redis_watch import REDIS_MEMORY, add_redis_option
from benchmarks.servers import Bench
from benchmarks.shapes import Shape
from benchmarks.system import Result, run
from benchmarks.workload import workload

LINES = 10


def slope_per_minute(series: list[dict[str, float]], name: str) -> float:
    """Returns the growth in bytes per minute, by least squares over the second half. The first half is ignored,
    because caches are still filling then.
    """
    half = series[len(series) // 2 :]
    if len(half) < 3:
        return 0.0
    line = statistics.linear_regression([sample["seconds"] for sample in half], [sample[name] for sample in half])
    return line.slope * 60


def thirds(series: list[dict[str, float]]) -> list[float]:
    """Returns microseconds of CPU time per segment in each third of the run."""
    size = max(1, len(series) // 3)
    marks = [series[0], series[min(size, len(series) - 1)], series[min(2 * size, len(series) - 1)], series[-1]]
    return [
        (last["cpu"] - first["cpu"]) / max(1.0, last["segments"] - first["segments"]) * 1e6
        for first, last in itertools.pairwise(marks)
    ]


def report(result: Result, path: str | None) -> None:
    """Prints a table of the measurements over time and their slopes, and writes the JSON file."""
    series = result.series
    names = sorted(name for name in series[0] if name.startswith("rss_"))
    step = max(1, len(series) // LINES)
    rows = [
        [
            f"{sample['seconds']:.0f}",
            f"{sample['segments']:.0f}",
            f"{sample['cpu'] / max(1.0, sample['segments']) * 1e6:.0f}",
            *(f"{sample[name] / 1e6:.0f}" for name in names),
        ]
        for sample in series[::step]
    ]
    columns = ("seconds", "segments", "CPU µs/seg so far", *(f"{name[4:]} MB" for name in names))
    show(f"{result.label}: {result.segments} segments, {result.rate:.0f} per second", columns, rows)
    show_redis(result, step)
    memory = (*names, *(f"redis_{name}" for name in REDIS_MEMORY))
    slopes = {name: slope_per_minute(series, name) for name in (*memory, "redis_keys")}
    costs = thirds(series)
    print("growth in the second half, MB per minute:", {n: round(slopes[n] / 1e6, 2) for n in memory})
    print(f"growth of the keys in the second half, per minute: {slopes['redis_keys']:.1f}")
    print("CPU µs per segment, by thirds of the run:", [round(cost) for cost in costs])
    figures: dict[str, Any] = {"machine": machine(), "result": result.as_json(), "slopes": slopes, "thirds": costs}
    write_json(path, figures)


def show_redis(result: Result, step: int) -> None:
    """Prints the memory use of Redis over time, and its keys by kind at the end of the run."""
    rows = [
        [
            f"{sample['seconds']:.0f}",
            f"{sample['redis_keys']:.0f}",
            *(f"{sample[f'redis_{name}'] / 1e6:.1f}" for name in REDIS_MEMORY),
        ]
        for sample in result.series[::step]
    ]
    title = "{name} {version}, {mem_allocator}; memory in MB".format(**result.redis)
    columns = [name.removeprefix("used_memory_").removeprefix("allocator_") for name in REDIS_MEMORY]
    show(title, ("seconds", "keys", *columns), rows)
    kinds = result.redis_kinds.items()
    rows = [[kind, str(found["keys"]), f"{found['bytes'] / 1e3:.1f}"] for kind, found in kinds]
    show("keys at the end", ("kind", "keys", "kB"), rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--backlog", type=int, default=0, help="backlog size, segments")
    parser.add_argument("--rate", type=float, default=1000.0, help="segments per second with --minutes")
    parser.add_argument("--profile", default="small", help="profile of the load generator")
    parser.add_argument("--workload", type=int, default=3000, help="distinct segments")
    parser.add_argument("--layout", default="segment")
    parser.add_argument("--sinks", default="gcs,clickhouse,bigquery,datadog,dead_letter")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--kafka", choices=("tansu", "apache"), default="tansu")
    add_redis_option(parser)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    load = workload(arguments.workload, arguments.profile)
    count = arguments.backlog or int(max(arguments.minutes, 1.0) * 60 * arguments.rate)
    cores = tuple(sorted(os.sched_getaffinity(0))[:1])
    shape = Shape(
        layout=arguments.layout,
        sinks=arguments.sinks,
        processes=arguments.processes,
        count=count,
        warm=min(2000, count // 10),
        tail=min(2000, count // 10),
        rate=0.0 if arguments.backlog else arguments.rate,
        cores=cores,
    )
    with Bench(cores, arguments.latency_ms, kafka=arguments.kafka, redis_program=arguments.redis) as bench:
        report(run(bench, shape, load), arguments.json)


if __name__ == "__main__":
    main()
