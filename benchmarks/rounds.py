"""Figures for systems that were measured in several rounds: medians, and ratios to a reference.

The systems alternate within each round, and a ratio compares two runs of one round. A change in the machine's
speed between rounds therefore affects both sides of each ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# For each figure of a run: its name in tables, and whether its ratio is inverted (reference / system). The ratio
# of CPU time per segment is inverted, because tables show it as a ratio of segments per core-second.
RATIOS = {
    "segments_per_second": ("segments/s", False),
    "cpu_micros_per_segment": ("segments per core-second", True),
    "memory_bytes": ("memory", False),
}
Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, minimum and maximum of some figures."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of these values; there must be at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, decimals: int = 0) -> str:
        """Returns the median, and the range in brackets if there is one."""
        found = f"{self.median:.{decimals}f}"
        if self.least == self.greatest:
            return found
        return f"{found} [{self.least:.{decimals}f}-{self.greatest:.{decimals}f}]"


def median_run(runs: Sequence[Figures], name: str = "cpu_micros_per_segment") -> int:
    """Returns the position of the run with the median of this figure; for an even number of runs, that of the
    lower middle one.
    """
    order = sorted(range(len(runs)), key=lambda number: float(runs[number][name]))
    return order[(len(order) - 1) // 2]


def spreads(runs: Sequence[Figures], names: Iterable[str]) -> dict[str, Spread]:
    """Returns the spread of each of these figures over the rounds of one system."""
    return {name: Spread.of([float(run[name]) for run in runs]) for name in names}


def ratios(rounds: Mapping[str, Sequence[Figures]], reference: str) -> dict[str, dict[str, Spread]]:
    """Returns, by system and figure, the spread of the ratios to the reference system, with one ratio per round.
    Returns an empty result if `rounds` does not contain the reference system.

    `rounds`: the runs by system, in the order of the rounds. A round without a run of the reference is an error.
    """
    base = rounds.get(reference)
    if base is None:
        return {}
    found: dict[str, dict[str, Spread]] = {}
    for system, runs in rounds.items():
        pairs = list(zip(runs, base, strict=True))
        found[system] = {
            name: Spread.of([_ratio(float(one[name]), float(other[name]), inverse) for one, other in pairs])
            for name, (_, inverse) in RATIOS.items()
        }
    return found


def _ratio(value: float, base: float, inverse: bool) -> float:
    """Returns a ratio; 0 if a run was too short to be measured."""
    above, below = (base, value) if inverse else (value, base)
    return above / below if below else 0.0
