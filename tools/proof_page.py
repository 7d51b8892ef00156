"""Generates docs/proof-tables.md: the long tables of docs/proof.md, from measured figures.

The figures are in tools/proof_figures.json. `explored` comes from `make explore`, `mutants` from `make mutants`,
`marks` from `make simulate`, `rebalance` from `python -m benchmarks.rebalance`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tools.explore.judged import JUDGED_BUGS

FIGURES = Path(__file__).with_name("proof_figures.json")


def proof_page() -> Iterator[str]:
    """Yields the sections of the page."""
    figures: dict[str, Any] = json.loads(FIGURES.read_text())
    yield "# Tables of the proof"
    yield "This page has the results of runs whose method and limits are described in [the proof](proof.md)."
    yield "## Every order of events"
    yield figures["explored_when"]
    yield _table(
        ("world", "states", "steps", "depth", "pipeline states", "decisions", "CPU seconds"),
        (_explored_row(world) for world in figures["explored"]),
    )
    yield "## Situations in simulated worlds"
    yield figures["marks_when"]
    yield _table(("situation", "times"), figures["marks"])
    yield "## Rebalances under load"
    yield _table(("event", "partitions that move", "read again", "sent again"), figures["rebalance"])
    yield "## Planted bugs"
    yield figures["mutants_when"]
    yield _table(
        ("bug", "file in `ingest/`", "unit test that detects it", "invariants violated in simulated worlds"),
        ((bug, f"`{file}`", f"`{test}`", broken) for bug, file, test, broken in figures["mutants"]),
    )

    yield "### Bugs that simulated worlds miss"
    yield (
        "The table shows whether each bug breaks safety, and the smallest world in which `make explore` finds it "
        "(`tools/explore/judged.py`). If the table lists no world for a bug that breaks safety, the explorer does "
        "not run the code that has the bug: the loop, or the choice of where a partition starts."
    )
    yield _table(
        ("bug", "breaks", "effect", "smallest world in which the explorer finds it"),
        ((judged.bug, judged.breaks, judged.why, judged.world) for judged in JUDGED_BUGS),
    )


def _explored_row(world: dict[str, Any]) -> tuple[str, ...]:
    """Returns one row of the explorer's table. The columns about pipelines are empty for the staging model."""
    numbers = [world.get("pipelines"), world.get("decisions")]
    return (
        world["bound"],
        *(f"{world[name]:,}" for name in ("states", "steps", "depth")),
        *("" if number is None else f"{number:,}" for number in numbers),
        f"{world['cpu_seconds']:,.0f}",
    )


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = tuple(titles)
    lines = [titles, ("---",) * len(titles), *(tuple(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
