"""`python -m tools.explore`: explores each bound to its end, prints its size, and the story of what breaks.

Exit code 1: an invariant broke. Progress is shown on a terminal only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

from tools.explore.core_model import CoreModel
from tools.explore.search import Result, Search
from tools.explore.staging_model import StagingModel


class Bound(NamedTuple):
    """How large a world is: messages of each partition, none for the model of staging; faults in one run."""

    messages: tuple[int, ...]
    faults: int

    def __str__(self) -> str:
        faults = f"{self.faults} fault(s)"
        if not self.messages:
            return f"staging: 1 batch in 2 stages, 3 tasks, 2 readers, {faults}"
        counts = " and ".join(map(str, self.messages))
        return f"core: {len(self.messages)} partition(s) with {counts} message(s), 2 readers, {faults}"


# What `make explore` explores: faults cost more states than messages, and two partitions multiply both.
STAGING = ()
BOUNDS = (Bound(STAGING, 1), Bound((2, 2), 0), Bound((3,), 1), Bound((1,), 2))
PROGRESS_SECONDS = 1.0


def explore(bound: Bound, progress: Callable[[int, int, int], None]) -> tuple[Result, str]:
    """What the search of one bound came to, and figures of the model in words."""
    model = CoreModel(bound.messages, bound.faults) if bound.messages else StagingModel(bound.faults)
    return Search(model, progress).run(), model.figures


def on_terminal() -> Callable[[int, int, int], None]:
    """Shows how far a search is, at most once a second, if anybody looks."""
    shown_at = time.monotonic()

    def show(states: int, waiting: int, depth: int) -> None:
        nonlocal shown_at
        if sys.stderr.isatty() and time.monotonic() - shown_at >= PROGRESS_SECONDS:
            shown_at = time.monotonic()
            print(f"\r  {states:,} states, {waiting:,} to expand, {depth} steps deep ", end="", file=sys.stderr)

    return show


def spoken(bound: Bound, result: Result, figures: str) -> str:
    """A result as lines."""
    lines = [
        f"{bound}: {result.states:,} states, {result.steps:,} steps, {result.depth} steps deep, "
        f"{result.seconds:.1f} s; {'all of them' if result.complete else 'ended at what broke'}",
        f"  {figures}",
    ]
    if result.broken:
        lines += ["", f"BROKEN: {result.broken}", *(f"  {line}" for line in result.story)]
    return "\n".join(lines)


def counts(text: str) -> tuple[int, ...]:
    """`2+1`: two messages in one partition and one in the other; `staging`: the model of staging."""
    if text == "staging":
        return STAGING
    found = tuple(int(part) for part in text.split("+"))
    if not 1 <= len(found) <= 2 or not all(1 <= count <= most for count, most in zip(found, (3, 2), strict=False)):
        raise argparse.ArgumentTypeError("1 to 3 messages, 1 to 3 and 1 to 2 like 2+2, or staging")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 when an invariant broke."""
    parser = argparse.ArgumentParser(prog="python -m tools.explore", description=__doc__)
    parser.add_argument("--world", type=counts, help="one bound only: messages per partition, or staging")
    parser.add_argument("--faults", type=int, choices=range(4), default=1, help="faults per run of that bound")
    parser.add_argument("--json", action="store_true", help="one JSON object per bound instead of lines")
    options = parser.parse_args(arguments)
    chosen = (Bound(options.world, options.faults),) if options.world is not None else BOUNDS
    failed = False
    for bound in chosen:
        result, figures = explore(bound, on_terminal())
        failed = failed or bool(result.broken)
        if options.json:
            print(json.dumps({"bound": str(bound), **asdict(result), "figures": figures}), flush=True)
        else:
            print(spoken(bound, result, figures), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
