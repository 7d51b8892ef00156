"""Cost by project: CPU, bytes and rows of the most expensive projects, and of all other projects together.

`Costs` keeps exact sums for the current second, then adds them to two views: the counters and the recent cost. The
counters have series for a limited number of projects and for `other`; each cost is added to exactly one series, so
the series sum to the total. The recent cost decays over RECENT_SECONDS. Decay is a linear operation, so the recent
costs also sum to the total, including the cost of forgotten projects.

Memory is bounded: `Costs` tracks every project that has messages in the current second; at the end of the second,
`Costs` keeps the TRACKED_PROJECTS_MAX most expensive projects and adds the costs of all others to `other`. A
project with its own series loses the series only to a project that costs at least 1.5 times as much, so that
projects with similar costs do not alternate.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

RECENT_SECONDS = 300.0
TRACKED_PROJECTS_MAX = 256
# A listed project keeps its series until another project's cost is this many times as high.
DISPLACEMENT_RATIO = 1.5
NEGLIGIBLE_CPU_SECONDS = 1e-9  # a project whose cost has decayed below this is forgotten
NONE, OTHER = "none", "other"


@dataclass(slots=True)
class Cost:
    """Cost summed over messages. `size_bytes`: staged bytes; `rows`: ClickHouse and BigQuery rows."""

    cpu_seconds: float = 0.0
    size_bytes: float = 0.0
    rows: float = 0.0

    def add(self, other: Cost) -> None:
        self.cpu_seconds += other.cpu_seconds
        self.size_bytes += other.size_bytes
        self.rows += other.rows

    def scale(self, factor: float) -> None:
        self.cpu_seconds *= factor
        self.size_bytes *= factor
        self.rows *= factor

    @property
    def rank(self) -> tuple[float, float]:
        """Key by which projects are sorted: CPU, then bytes."""
        return self.cpu_seconds, self.size_bytes


class ProjectCost(msgspec.Struct, frozen=True):
    """Recent cost of one project, per second. `project`: the project's id, `other`, or `none` for messages without
    a project."""

    project: str
    cpu_seconds: float = 0.0
    bytes_per_second: float = 0.0
    rows_per_second: float = 0.0


class Costs:
    """Tracks the cost by project. `second` has the sums of the current second by project id (None for messages
    without a project).

    The loop adds to `second` directly for every message, and calls `tick` about once per second. `listed_max`:
    maximum number of projects with their own series.
    """

    def __init__(self, listed_max: int) -> None:
        self.second: defaultdict[int | None, Cost] = defaultdict(Cost)
        self._listed_max = listed_max
        self._listed: set[str] = set()
        self._recent: dict[str, Cost] = {NONE: Cost(), OTHER: Cost()}
        self._weight_seconds = 0.0

    def tick(self, elapsed_seconds: float) -> tuple[Mapping[str, Cost], set[str]]:
        """Ends a second. Returns the cost to add to each series, and the series to remove."""
        factor = math.exp(-max(0.0, elapsed_seconds) / RECENT_SECONDS)
        self._weight_seconds = self._weight_seconds * factor + elapsed_seconds
        recent = self._recent
        for cost in recent.values():
            cost.scale(factor)
        second = {NONE if project is None else str(project): cost for project, cost in self.second.items()}
        self.second.clear()
        for name, cost in second.items():
            recent.setdefault(name, Cost()).add(cost)
        self._forget()
        before, self._listed = self._listed, self._listed_projects()
        added = {name: Cost() for name in (*self._listed, NONE, OTHER)}
        for name, cost in second.items():
            added[name if name in added else OTHER].add(cost)
        return added, before - self._listed

    def recent(self) -> tuple[ProjectCost, ...]:
        """Returns the costs of the listed projects, most expensive first, then of `none` and `other`. Each cost is
        averaged over RECENT_SECONDS."""
        if not self._weight_seconds:
            return ()
        named = {name: self._recent[name] for name in self._listed}
        rest = Cost()
        for name, cost in self._recent.items():
            if name not in named and name != NONE:
                rest.add(cost)
        ordered = sorted(named.items(), key=lambda item: item[1].rank, reverse=True)
        return tuple(
            ProjectCost(
                name,
                cost.cpu_seconds / self._weight_seconds,
                cost.size_bytes / self._weight_seconds,
                cost.rows / self._weight_seconds,
            )
            for name, cost in (*ordered, (NONE, self._recent[NONE]), (OTHER, rest))
        )

    def _forget(self) -> None:
        """Keeps only the most expensive projects. The cost of removed projects is added to `other`."""
        recent = self._recent
        projects = [name for name in recent if name not in (NONE, OTHER)]
        kept = heapq.nlargest(TRACKED_PROJECTS_MAX, projects, key=self._sort_key)
        fewer = {name for name in kept if recent[name].rank > (NEGLIGIBLE_CPU_SECONDS, 1.0)}
        for name in projects:
            if name not in fewer:
                recent[OTHER].add(recent.pop(name))

    def _listed_projects(self) -> set[str]:
        projects = (name for name in self._recent if name not in (NONE, OTHER))
        return set(heapq.nlargest(self._listed_max, projects, key=self._sort_key))

    def _sort_key(self, name: str) -> tuple[float, float]:
        cpu_seconds, size_bytes = self._recent[name].rank
        return (
            (cpu_seconds * DISPLACEMENT_RATIO, size_bytes * DISPLACEMENT_RATIO)
            if name in self._listed
            else (cpu_seconds, size_bytes)
        )
