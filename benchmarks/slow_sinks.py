"""Measures the throughput with slow sinks and compares it with a prediction from the amount of work in flight.

    python -m benchmarks.slow_sinks [--latencies-ms 100,500] [--json FILE]

The formula is in benchmarks/slow_sinks_model.py. First, the rate with a latency of 1 ms is measured for each
setting, as an upper bound. The table then shows the predicted and the measured rate for the default settings with
one worker process and for raised settings. In both, batches have up to 256 messages and are cut only when they are
full, so that a short run has many equal batches. Rates are computed from the uploads that the store receives,
because commits advance by whole batches. The limits on batches and bytes in flight are computed and printed, but
no run reaches them.

The exit code is 1 if a measured rate differs from its prediction by more than the tolerance, 25 %. If the
predicted limit is the machine and not a sink, only a rate that is more than 40 % below the prediction counts as a
failure.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, replace
from typing import Any

from benchmarks.common import machine, show, write_json
from benchmarks.redis_watch import add_redis_option
from benchmarks.servers import Bench
from benchmarks.shapes import Shape
from benchmarks.slow_sinks_model import Case
from benchmarks.system import run
from benchmarks.workload import Workload, workload
from ingest.local.launch import settings_of

TOLERANCE = 0.25
CAPACITY_TOLERANCE = 0.4
RUN_SECONDS = 8
CAPACITY_RATE = 500.0
# Rows are staged with the recording. In the profile `small`, a staged segment is about twice as large as the Kafka
# message's value.
STAGED_BYTES_SHARE = 2.0
SEGMENTS_MAX = 6 * 1024
BATCH_MESSAGES = 256
BATCH_AGE_SECONDS = 10
COLUMNS = ("settings", "latency ms", "limit", "predicted/s", "measured/s", "ratio", "within")

SETTINGS: dict[str, tuple[int, dict[str, int]]] = {
    "default, 1 process": (1, {}),
    "raised: 2 processes, 128 connections": (2, {"GCS_CONNECTIONS": 128}),
}


def shape_of(processes: int, extra: dict[str, int], cores: tuple[int, ...]) -> Shape:
    """Returns the shape of one row of the table, without its number of segments."""
    batches = {
        "BATCH_MESSAGES_MAX": BATCH_MESSAGES,
        "BATCH_AGE_SECONDS_MAX": BATCH_AGE_SECONDS,
        "BATCH_AGE_IDLE_SECONDS": BATCH_AGE_SECONDS,
    }
    variables = tuple((f"REPLAYS_{name}", str(value)) for name, value in (batches | extra).items())
    return Shape(processes=processes, cores=cores, by_uploads=True, extra=variables)


def measured(bench: Bench, shape: Shape, load: Workload, expected: float) -> float:
    """Returns the uploads per second of a run that takes about RUN_SECONDS at the expected rate.

    Each partition gets a multiple of BATCH_MESSAGES.
    """
    step = shape.partitions * BATCH_MESSAGES
    count = min(SEGMENTS_MAX, step * max(1, round(expected * RUN_SECONDS / step)))
    return run(bench, replace(shape, count=count, warm=count // 5, tail=count // 5), load).rate


def is_within(limit: str, ratio: float) -> bool:
    """True if the measured rate is within the tolerance of the predicted one."""
    if limit == "capacity":
        return ratio >= 1 - CAPACITY_TOLERANCE
    return abs(ratio - 1) <= TOLERANCE


def compare(bench: Bench, load: Workload, latencies_ms: list[float], segment_bytes: float) -> list[dict[str, Any]]:
    """Measures each setting at each latency, and returns one row per run."""
    cores = bench.cores
    bench.set_latency(1.0)
    capacities = {}
    for name, (processes, extra) in SETTINGS.items():
        capacities[name] = measured(bench, shape_of(processes, extra, cores), load, CAPACITY_RATE)
        print(f"  {name}: {capacities[name]:.0f} segments/s without latency", flush=True)
    rows = []
    for latency_ms in latencies_ms:
        bench.set_latency(latency_ms)
        for name, (processes, extra) in SETTINGS.items():
            shape = shape_of(processes, extra, cores)
            case = Case.of(
                settings_of(shape.settings()),
                latency_seconds=latency_ms / 1000,
                partitions=shape.partitions,
                segment_bytes=segment_bytes,
                capacity=capacities[name],
            )
            limit, predicted = case.predicted
            found = measured(bench, shape, load, predicted)
            ratio = found / predicted
            print(f"  {name}, {latency_ms:g} ms: {found:.0f} of {predicted:.0f} segments/s ({limit})", flush=True)
            row = {"settings": name, "latency_ms": latency_ms, "limit": limit, "predicted": predicted}
            row |= {"measured": found, "ratio": ratio, "is_within": is_within(limit, ratio)}
            rows.append(row | {"case": asdict(case), "limits": case.limits})
            print("    limits:", {name: round(limit) for name, limit in case.limits.items()}, flush=True)
    return rows


def main() -> int:
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--latencies-ms", default="100,500", help="latencies of the store, comma-separated")
    parser.add_argument("--profile", default="small", help="profile of the load generator")
    add_redis_option(parser)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    load = workload(SEGMENTS_MAX, arguments.profile)
    latencies_ms = [float(text) for text in arguments.latencies_ms.split(",")]
    cores = tuple(sorted(os.sched_getaffinity(0)))
    with Bench(cores, 1.0, redis_program=arguments.redis) as bench:
        rows = compare(bench, load, latencies_ms, STAGED_BYTES_SHARE * load.mean_bytes)
    lines = [
        [
            row["settings"],
            f"{row['latency_ms']:g}",
            row["limit"],
            f"{row['predicted']:.0f}",
            f"{row['measured']:.0f}",
            f"{row['ratio']:.2f}",
            "yes" if row["is_within"] else "NO",
        ]
        for row in rows
    ]
    show(f"segments of {load.mean_bytes / 1e3:.1f} kB; tolerance {TOLERANCE:.0%}", COLUMNS, lines)
    write_json(arguments.json, {"machine": machine(), "arguments": vars(arguments), "rows": rows})
    return 0 if all(row["is_within"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
