"""Functions shared by all benchmarks: fair timing of several programs on one workload, tables, JSON files.

Programs alternate on small chunks of the workload, and a program's time for a chunk is that of its fastest round.
Other processes on the machine therefore slow down all programs equally, and rarely change the results. The garbage
collector is always on, as in production.
"""

from __future__ import annotations

import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CHUNK_ITEMS = 20
Program = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """The CPU time of one program on one workload, in seconds for all of its items."""

    name: str
    items: int
    seconds: float

    @property
    def micros(self) -> float:
        """Microseconds per item."""
        return self.seconds / self.items * 1e6


def take_turns(
    programs: Mapping[str, tuple[Program, Sequence[Any]]], rounds: int, chunk_items: int = CHUNK_ITEMS
) -> dict[str, Timing]:
    """Times every program on the same workload, which is passed to each program in its own input format. All
    sequences have equal length.
    """
    assert gc.isenabled()
    items = {len(workload) for _, workload in programs.values()}
    assert len(items) == 1, items
    count = items.pop()
    sums = dict.fromkeys(programs, 0.0)
    for start in range(0, count, chunk_items):
        best: dict[str, float] = {}
        for _ in range(rounds):
            for name, (program, workload) in programs.items():
                chunk = workload[start : start + chunk_items]
                began = time.process_time()
                for item in chunk:
                    program(item)
                best[name] = min(time.process_time() - began, best.get(name, float("inf")))
        for name, seconds in best.items():
            sums[name] += seconds
    return {name: Timing(name, count, seconds) for name, seconds in sums.items()}


def machine() -> dict[str, Any]:
    """Returns the properties of this machine on which the figures depend."""
    return {
        "python": platform.python_version(),
        "processor": _processor(),
        "packages": {name: version(name) for name in ("msgspec", "isal")},
        "gc": gc.isenabled(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Prints a table. The first column is text, and the others are numbers."""
    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def write_json(path: str | None, result: Mapping[str, Any]) -> None:
    """Writes the figures to the file, if one was requested."""
    if path is not None:
        Path(path).write_text(json.dumps(result, indent=2, default=str) + "\n")
