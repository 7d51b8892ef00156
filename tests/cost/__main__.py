"""The committed shapes, measured: `python -m tests.cost [--raw-bytes N] [--name TEXT]` prints a Markdown table.

Each shape is measured in a process of its own. Exit code 1 when one is beyond the bound.
"""

from __future__ import annotations

import argparse
import sys

from tests.cost.committed import ALL
from tests.cost.measure import MEMORY_RATIO_MAX, RATIO_MAX, measured

RAW_BYTES = 95_000_000


def main() -> int:
    """Prints one row per shape, as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw-bytes", type=int, default=RAW_BYTES, help="Inflated size of each recording, bytes.")
    parser.add_argument("--name", default="", help="Only shapes whose name contains this.")
    arguments = parser.parse_args()
    print("| shape | message, kB | inflated, MB | floor, s | parse, s | times floor | memory, times inflated |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    beyond = 0
    for shape in ALL:
        if arguments.name not in shape.name:
            continue
        cost = measured(shape.make(arguments.raw_bytes))
        beyond += cost.ratio > RATIO_MAX or cost.memory_ratio > MEMORY_RATIO_MAX
        print(
            f"| {shape.name} | {cost.message_bytes / 1e3:,.0f} | {cost.raw_bytes / 1e6:.1f} "
            f"| {cost.floor_seconds:.3f} | {cost.seconds:.3f} | {cost.ratio:.2f} | {cost.memory_ratio:.2f} |",
            flush=True,
        )
    bound = f"{RATIO_MAX} times the floor plus 50 ms, or {MEMORY_RATIO_MAX} times the size plus 64 MiB"
    print(f"\n{beyond} beyond {bound}")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
