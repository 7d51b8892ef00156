"""Measures the committed shapes and prints a Markdown table.

    python -m tests.cost [--raw-bytes N] [--name TEXT] [--before DIRECTORY]

Each shape is measured in a separate process. With --before, the parser of another checkout (an earlier commit,
from `git worktree add DIRECTORY COMMIT`) is measured on the same bytes in the same run. The exit code is 1 if a
shape exceeds its limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.cost.committed import ALL
from tests.cost.measure import MEASURE_SECONDS_MAX, MEMORY_RATIO_MAX, RATIO_MAX, Cost, measure_separately

RAW_BYTES = 95_000_000
# This program must also run in older checkouts. It prints the lower of two CPU times, and the peak memory of the
# first run in bytes.
MEASURE_PROGRAM = """
import sys, time
from pathlib import Path
from ingest.core.model import Message, TopicPartition
from ingest.core.parse import ParseRules, parse

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

message = Message(TopicPartition("t", 0), 1, 0, Path(sys.argv[1]).read_bytes(), timestamp_ms=1_790_000_000_000)
Path("/proc/self/clear_refs").write_text("5")
before, seconds = status("VmRSS:"), []
for _ in range(2):
    began = time.process_time()
    parse(message, ParseRules())
    seconds.append(time.process_time() - began)
    if len(seconds) == 1:
        taken = status("VmHWM:") - before
print(min(seconds), taken)
"""


def main() -> int:
    """Prints one row per shape as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--raw-bytes", type=int, default=RAW_BYTES, help="Inflated size of each recording, in bytes."
    )
    parser.add_argument("--name", default="", help="Measure only shapes whose name contains this text.")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="DIRECTORY",
        help="Also measure the parser of the checkout in this directory.",
    )
    arguments = parser.parse_args()
    names = [
        "shape",
        "message, kB",
        "inflated, MB",
        "floor, s",
        "parse, s",
        "times floor",
        "memory, times inflated",
    ]
    names += ["before: parse, s", "times floor", "memory, times inflated"] if arguments.before else []
    print(_line(names))
    print(_line(["---"] * len(names)))
    beyond = 0
    for shape in ALL:
        if arguments.name not in shape.name:
            continue
        value = shape.make(arguments.raw_bytes)
        cost = measure_separately(value)
        beyond += cost.ratio > RATIO_MAX or cost.memory_ratio > MEMORY_RATIO_MAX
        cells = [shape.name, f"{cost.message_bytes / 1e3:,.0f}", f"{cost.raw_bytes / 1e6:.1f}"]
        cells += [f"{cost.floor_seconds:.3f}", *_cells(cost)]
        cells += _cells(cost_in_other_checkout(arguments.before, value, cost)) if arguments.before else []
        print(_line(cells), flush=True)
    bound = f"{RATIO_MAX} times the floor plus 50 ms, or {MEMORY_RATIO_MAX} times the size plus 64 MiB"
    print(f"\n{beyond} beyond {bound}")
    return 1 if beyond else 0


def cost_in_other_checkout(checkout: Path, value: bytes, cost: Cost) -> Cost:
    """Measures the other checkout's parser with the same message, and returns the cost relative to the floor (the
    minimum work) that this checkout measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "message"
        path.write_bytes(value)
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        result = subprocess.run(
            [sys.executable, "-c", MEASURE_PROGRAM, str(path)],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=MEASURE_SECONDS_MAX,
            check=True,
        )
    seconds, memory_bytes = result.stdout.split()
    return replace(cost, seconds=float(seconds), memory_bytes=int(memory_bytes))


def _cells(cost: Cost) -> list[str]:
    return [f"{cost.seconds:.3f}", f"{cost.ratio:.2f}", f"{cost.memory_ratio:.2f}"]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
