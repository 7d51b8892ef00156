"""`python -m ingest.testing.simulation`: tries many seeds, and prints the shortest history of each that fails.

python -m ingest.testing.simulation --seeds 10000
python -m ingest.testing.simulation --seed 138            # only this seed, with its history
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from ingest.testing.simulation.faults import Fault
from ingest.testing.simulation.marks import MARKS
from ingest.testing.simulation.shape import Shape
from ingest.testing.simulation.shrink import Outcome, run_world, shortest

CHUNK_SEEDS = 50
HISTORIES_PRINTED_MAX = 3
START_SEED_MAX = 1_000_000_000


def random_start() -> int:
    """Returns a random first seed."""
    return secrets.randbelow(START_SEED_MAX)


def expected_marks() -> list[str]:
    """Returns the names of all marks: one mark for each known situation and one for each kind of fault."""
    return [*MARKS, *(f"fault:{fault.value}" for fault in Fault)]


def try_seeds(seeds: Iterable[int]) -> tuple[int, float, Counter[str], list[Outcome]]:
    """Tries these seeds. Returns (worlds, simulated seconds, marks, failures)."""
    worlds, simulated, marks, failures = 0, 0.0, Counter[str](), []
    for seed in seeds:
        outcome = run_world(Shape.draw(seed))
        worlds += 1
        simulated += outcome.simulated_seconds
        marks.update(outcome.marks)
        if outcome.checker:
            failures.append(outcome)
    return worlds, simulated, marks, failures


def _chunks(start: int, count: int, jobs: int) -> Iterator[tuple[int, float, Counter[str], list[Outcome]]]:
    ranges = [range(at, min(at + CHUNK_SEEDS, start + count)) for at in range(start, start + count, CHUNK_SEEDS)]
    if min(jobs, len(ranges)) <= 1:
        yield from map(try_seeds, ranges)
        return
    with ProcessPoolExecutor(min(jobs, len(ranges)), initializer=gc.freeze) as pool:
        yield from pool.map(try_seeds, ranges)


def _print_failure(outcome: Outcome, lines_max: int) -> None:
    shape = outcome.shape
    print(f"\nseed {shape.seed}: {outcome.checker}: {outcome.text}")
    print(f"  repeat: python -m ingest.testing.simulation --seed {shape.seed}")
    faults = ", ".join(fault.value for fault in shape.faults) or "none"
    print(
        f"  smallest world: {shape.partitions} partitions, {shape.readers} readers, {shape.messages} messages, "
        f"no faults after {shape.faults_end_at:.1f} s; faults: {faults}\n  {shape.limits}"
    )
    if 0 < lines_max < len(outcome.trace):
        print(f"  (the last {lines_max} of {len(outcome.trace)} lines)")
    if lines_max > 0:
        print("\n".join(outcome.trace[-lines_max:]))


def main(arguments: list[str] | None = None) -> int:
    """Returns exit code 1 if an invariant was violated."""
    parser = argparse.ArgumentParser(prog="python -m ingest.testing.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="number of seeds to try")
    parser.add_argument("--start", type=int, help="first seed; by default a random one, which is printed")
    parser.add_argument("--seed", type=int, help="run only this seed, and print its history")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; one per core by default")
    parser.add_argument("--lines", type=int, default=200, help="maximum number of lines of a history")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        outcome = run_world(Shape.draw(options.seed), recording=True)
        _print_failure(shortest(outcome) if outcome.checker else outcome, options.lines)
        return 1 if outcome.checker else 0
    start = options.start
    if start is None:
        start = random_start()
        print(f"seeds {start} to {start + options.seeds - 1}", file=sys.stderr, flush=True)
    started = time.monotonic()
    worlds, simulated, marks, failures = 0, 0.0, Counter[str](), list[Outcome]()
    for part in _chunks(start, options.seeds, options.jobs):
        worlds += part[0]
        simulated += part[1]
        marks.update(part[2])
        failures += part[3]
        if sys.stderr.isatty():
            print(f"\r{worlds} worlds, {len(failures)} failed", end="\r", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    summary: dict[str, Any] = {
        "seeds": worlds,
        "first_seed": start,
        "seconds": round(seconds, 1),
        "processes": options.jobs,
        "seeds_per_second": round(worlds / seconds, 1),
        "simulated_hours": round(simulated / 3600, 2),
        "failed_seeds": [outcome.shape.seed for outcome in failures],
        "broken": dict(Counter(outcome.checker for outcome in failures)),
        "marks_not_reached": [mark for mark in expected_marks() if not marks[mark]],
        "marks": {mark: marks[mark] for mark in expected_marks()},
    }
    if options.json:
        print(json.dumps(summary))
    else:
        print(
            f"{worlds} worlds in {seconds:.1f} s with {options.jobs} processes "
            f"({summary['seeds_per_second']} per second, "
            f"{summary['simulated_hours']} simulated hours): {len(failures)} failed"
        )
        print("reached: " + ", ".join(f"{mark} {marks[mark]}" for mark in expected_marks() if marks[mark]))
        print("not reached: " + (", ".join(summary["marks_not_reached"]) or "nothing, every mark was reached"))
        if failures:
            print("failed seeds: " + " ".join(str(outcome.shape.seed) for outcome in failures))
        for outcome in failures[:HISTORIES_PRINTED_MAX]:
            _print_failure(shortest(outcome), options.lines)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
