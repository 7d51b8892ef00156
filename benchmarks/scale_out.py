"""Plans a deployment for up to 1,000,000 segments/s by simulation, and checks its cost model on this machine.

    python -m benchmarks.scale_out [--rates 350,10000,1000000] [--costs FILE] [--layout packed] [--json FILE]
    python -m benchmarks.scale_out --check [--rate 300] [--readers 1,2,4,8] [--shards 1,2,4] [--json FILE]

The simulation is benchmarks/scale_out_model.py; it starts no servers.

The check measures the CPU time per segment at the same total rate, with 8 partitions and on all cores: with 1, 2,
4 and 8 readers, and with 1, 2 and 4 groups of readers and workers, each with its own Redis. A first run measures
the CPU time that each reader and each worker uses when idle. The check runs twice:

- With *equal batches* (no early cuts), batches are the same with any number of readers. A segment must
  cost no more than it does with one reader or one group, plus what the added processes use when idle.
- With *early cuts*, the default, batches get smaller as readers are added: the number of batches in flight per
  reader is more often below the limit for early cuts, so each reader cuts early more often, and fewer segments
  share the fixed cost of a batch. The model takes the cost per segment and per batch from the first and the last
  run, at the batch sizes of the simulation, and must predict the runs between them.

The exit code is 1 if the cost of a run exceeds the prediction by more than `--tolerance` (30 %), or, with early
cuts, if it is lower by more than that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import machine, show, write_json
from benchmarks.redis_watch import add_redis_option
from benchmarks.scale_out_model import Cost, Inputs, Plan, batch_segments, plan, with_costs

ALL_SINKS = "gcs,clickhouse,bigquery,dead_letter"
PARTITIONS = 8
TABLES = 3  # inserts per batch, see Inputs.insert_tables
SETTLE_SECONDS = 5.0
TAIL_SECONDS = 3.0
WORKER_PROCESSES = 4
ROLES = ("reader", "worker", "redis")
IDLE_READERS = 2
IDLE_SECONDS = 8.0
MODES = {"equal batches": 2.0, "early cuts": 0.5}


def numbers(text: str) -> list[float]:
    """Parses numbers separated by commas. Raises ArgumentTypeError."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or any(number <= 0 for number in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers above 0")
    return found


def check(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one run per mode and number of readers, and one per number of shards. Returns one row per run."""
    from benchmarks.servers import Bench
    from benchmarks.shapes import Shape
    from benchmarks.system import run
    from benchmarks.workload import workload

    load = workload(3000, arguments.profile)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    shards_max = int(max(arguments.shards))
    warm = int(SETTLE_SECONDS * arguments.rate) * 2
    tail = int(TAIL_SECONDS * arguments.rate)
    base = Shape(
        sinks=ALL_SINKS,
        partitions=PARTITIONS,
        processes=WORKER_PROCESSES,
        rate=arguments.rate,
        count=warm + int(arguments.seconds * arguments.rate) + tail,
        warm=warm,
        tail=tail,
        cores=cores,
    )
    shapes = [
        (mode, "readers", int(n), replace(base, readers=int(n))) for mode in MODES for n in arguments.readers
    ]
    for shards in map(int, arguments.shards):
        split = replace(base, shards=shards, readers=4, workers=shards, processes=WORKER_PROCESSES // shards)
        shapes.append(("equal batches", "shards", shards, split))
    rows = []
    with Bench(cores, arguments.latency_ms, redis_program=arguments.redis, shards=shards_max) as bench:
        still = replace(base, readers=IDLE_READERS, rate=0.0, count=warm, idle_seconds=IDLE_SECONDS)
        idle = run(bench, still, load)
        micros = {role: seconds / idle.seconds * 1e6 for role, seconds in idle.cpu_seconds.items()}
        print(f"  without load: {sum(micros.values()) / 1e3:.0f} ms of CPU per second", flush=True)
        of_reader = {"reader": micros["reader"] / IDLE_READERS, "redis": micros["redis"] / IDLE_READERS}
        for mode, kind, number, shape in shapes:
            extra = (("REPLAYS_BATCH_AGE_IDLE_SECONDS", str(MODES[mode])),)
            result = run(bench, replace(shape, extra=extra), load)
            micros_of = {role: result.cpu_seconds[role] / result.segments * 1e6 for role in ROLES}
            row = {"mode": mode, "kind": kind, "number": number, "micros": micros_of, "rate": result.rate}
            row["idle"] = {role: shape.readers * value / arguments.rate for role, value in of_reader.items()}
            row["idle"]["worker"] = shape.workers * micros["worker"] / arguments.rate
            row["batch_segments"] = (
                result.segments * TABLES / max(1, result.requests_measured.get("clickhouse", 0))
            )
            print(f"  {mode}, {number} {kind}: {total(row):.0f} µs per segment", flush=True)
            rows.append(row)
    return rows


def judged(rows: list[dict[str, Any]], rate: float, tolerance: float) -> dict[str, Any]:
    """Adds to each row the model's prediction, and whether the measured cost is within the tolerance. Returns the
    costs by role.

    A row's `idle` is the CPU time, by role, that the row's processes would use without load, converted to
    microseconds per segment at the rate of the check.
    """
    for kind in ("readers", "shards"):
        same = [row for row in rows if row["mode"] == "equal batches" and row["kind"] == kind]
        for row in same:
            row["predicted"] = sum(active(same[0]).values()) + sum(row["idle"].values())
            row["ratio"] = total(row) / row["predicted"]
            row["is_within"] = row["ratio"] <= 1 + tolerance
    early = [row for row in rows if row["mode"] == "early cuts"]
    for row in early:
        row["simulated_segments"] = batch_segments(Inputs(), PARTITIONS / row["number"], rate / PARTITIONS)
    if len(early) < 2:
        return {}
    ends = (early[0], early[-1])
    costs = {
        role: Cost.through(*((row["simulated_segments"], active(row)[role]) for row in ends)) for role in ROLES
    }
    for row in early:
        by_batches = sum(cost.at(row["simulated_segments"]) for cost in costs.values())
        row["predicted"] = by_batches + sum(row["idle"].values())
        row["ratio"] = total(row) / row["predicted"]
        row["is_within"] = abs(row["ratio"] - 1) <= tolerance
    return {role: asdict(cost) for role, cost in costs.items()}


def active(row: dict[str, Any]) -> dict[str, float]:
    """Returns the CPU microseconds per segment by role, minus what the processes use when idle."""
    return {role: max(0.0, float(row["micros"][role] - row["idle"][role])) for role in ROLES}


def total(row: dict[str, Any]) -> float:
    """Returns the CPU microseconds per segment, summed over all roles."""
    return float(sum(row["micros"].values()))


def show_check(rows: list[dict[str, Any]], costs: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints the results of the check as a table."""
    lines = [
        [
            f"{row['mode']}, {row['number']} {row['kind']}",
            *(f"{row['micros'][role]:.0f}" for role in ROLES),
            f"{total(row):.0f}",
            f"{sum(row['idle'].values()):.0f}",
            f"{row['predicted']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['batch_segments']:.0f}",
            f"{row['simulated_segments']:.0f}" if "simulated_segments" in row else "",
            "yes" if row["is_within"] else "NO",
        ]
        for row in rows
    ]
    columns = ("run", *ROLES, "total", "idle", "predicted", "ratio", "per batch", "simulated", "within")
    show(f"CPU µs per segment at {arguments.rate:g}/s; tolerance {arguments.tolerance:.0%}", columns, lines)
    for role, cost in costs.items():
        print(f"{role}: {cost['segment']:.0f} µs per segment and {cost['batch']:.0f} µs per batch")


def show_plans(plans: list[Plan]) -> None:
    """Prints the tables of the simulation."""
    lines = [
        [
            f"{one.rate:,.0f}",
            f"{one.batch_segments:.0f}",
            f"{one.readers} at {one.reader_load:.0%}",
            str(one.partitions),
            f"{one.worker_processes} at {one.worker_load:.0%}",
            f"{one.redis_shards} at {one.redis_load:.0%}",
            f"{one.shard_rate:,.0f}",
            f"{one.redis_gb:.1f}",
            " ".join(f"{one.wait_ms[role]:.1f}" for role in ROLES),
        ]
        for one in plans
    ]
    columns = ("segments/s", "per batch", "readers", "partitions", "worker processes", "Redis")
    show("deployment", (*columns, "segments/s per Redis", "Redis GB", "wait ms: reader, worker, Redis"), lines)
    for name in plans[0].sinks:
        lines = [
            [
                f"{one.rate:,.0f}",
                *(f"{one.sinks[name][key]:,.2f}" for key in ("load", "quota", "ratio")),
                _ramp(one, name),
            ]
            for one in plans
        ]
        show(name, ("segments/s", "load", "documented", "ratio", "ramp, minutes"), lines)


def _ramp(one: Plan, name: str) -> str:
    minutes = one.sinks[name].get("ramp_minutes")
    return "" if minutes is None else f"{minutes:.0f}"


def main() -> int:
    """Command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rates", type=numbers, default=[350, 1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--layout", choices=("segment", "packed"), default="segment")
    parser.add_argument("--utilization", type=float, default=0.6, help="share of each core to use")
    parser.add_argument("--costs", type=Path, help="take the costs from this JSON file, written by --check")
    parser.add_argument("--check", action="store_true", help="measure the costs with several readers and shards")
    parser.add_argument("--rate", type=float, default=300.0, help="throughput of the check, segments per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured time of each run, in seconds")
    parser.add_argument("--readers", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--shards", type=numbers, default=[1, 2, 4])
    parser.add_argument("--tolerance", type=float, default=0.3)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--profile", default="clean", help="profile of the load generator")
    add_redis_option(parser)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.check:
        rows = check(arguments)
        costs = judged(rows, arguments.rate, arguments.tolerance)
        show_check(rows, costs, arguments)
        document: dict[str, Any] = {
            "machine": machine(),
            "arguments": vars(arguments),
            "rows": rows,
            "costs": costs,
        }
        write_json(arguments.json, document)
        return 0 if all(row["is_within"] for row in rows) else 1
    inputs = replace(Inputs(), layout=arguments.layout, utilization=arguments.utilization)
    if arguments.costs is not None:
        inputs = with_costs(inputs, json.loads(arguments.costs.read_text())["costs"])
    plans = [plan(rate, inputs) for rate in arguments.rates]
    show_plans(plans)
    write_json(arguments.json, {"inputs": asdict(inputs), "plans": [asdict(one) for one in plans]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
