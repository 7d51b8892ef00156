"""`python -m tools.explore`: explores each world completely, and checks that planted bugs are found.

    python -m tools.explore                         (make explore)
    python -m tools.explore --bounds large          (make explore BOUND=large), takes much longer
    python -m tools.explore --world 2+1 --faults 1  one world, without the planted bugs

Each world is printed with its size and time, and each violation with its steps. The exit code is 1 if an invariant
was violated or a planted bug was not found. Progress is shown only if the output is a terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from typing import NamedTuple

from tools.explore import planted
from tools.explore.core_model import CoreModel
from tools.explore.search import Result, Search
from tools.explore.staging_model import StagingModel


class Bound(NamedTuple):
    """Size of a world: the number of messages in each partition (empty for the staging model), and the maximum
    number of faults per run.

    `expiry`: messages may expire, which counts as a fault.
    """

    messages: tuple[int, ...]
    faults: int
    expiry: bool = False

    def __str__(self) -> str:
        faults = f"{self.faults} fault(s)"
        if not self.messages:
            return f"staging: 1 batch in 2 stages, 3 tasks, 2 readers, {faults}"
        counts = " and ".join(map(str, self.messages))
        expiry = ", which may expire" if self.expiry else ""
        return f"core: {len(self.messages)} partition(s) with {counts} message(s){expiry}, 2 readers, {faults}"


# Worlds to explore, in descending order of run time. One more fault adds more states than one more message, and a
# second partition multiplies the number of states.
STAGING = ()
BOUNDS = {
    "usual": (
        Bound((1, 1), 1),
        Bound((1,), 3),
        Bound((2,), 2),
        Bound((4,), 1),
        Bound((2, 2), 0),
        Bound(STAGING, 1),
        Bound((2,), 1, expiry=True),
    ),
    "large": (Bound((2, 2), 1), Bound((1, 1), 2), Bound((3,), 2), Bound((2,), 3), Bound(STAGING, 2)),
}
MESSAGES_MAX = 4
PROGRESS_SECONDS = 1.0


class Exploration(NamedTuple):
    """The result for one bound: the result of its search, the figures of the model as text, and the CPU
    seconds.
    """

    bound: Bound
    result: Result
    figures: str
    cpu_seconds: float


def explore(bound: Bound) -> Exploration:
    """Searches a world completely, or until the first violation."""
    model = CoreModel(bound.messages, bound.faults, expiry=bound.expiry) if bound.messages else StagingModel()
    began = time.process_time()
    result = Search(model, bound.faults, on_terminal()).run()
    return Exploration(bound, result, model.figures, time.process_time() - began)


def on_terminal() -> Callable[[int, int, int], None]:
    """Shows the progress of a search, at most once per second, and only on a terminal."""
    shown_at = time.monotonic()

    def show(states: int, waiting: int, depth: int) -> None:
        nonlocal shown_at
        if sys.stderr.isatty() and time.monotonic() - shown_at >= PROGRESS_SECONDS:
            shown_at = time.monotonic()
            print(f"\r  {states:,} states, {waiting:,} to expand, {depth} steps deep ", end="", file=sys.stderr)

    return show


def as_text(explored: Exploration) -> str:
    """Returns a result as text."""
    result = explored.result
    lines = [
        f"{explored.bound}: {result.states:,} states, {result.steps:,} steps, {result.depth} steps deep, "
        f"{result.seconds:.1f} s ({explored.cpu_seconds:.1f} s of CPU); "
        f"{'complete' if result.complete else 'stopped at a violation'}",
        f"  {explored.figures}",
    ]
    if result.broken:
        lines += ["", f"VIOLATION: {result.broken}", *(f"  {line}" for line in result.trace)]
    return "\n".join(lines)


def as_json(explored: Exploration) -> str:
    """Returns a result as one line of JSON."""
    facts = asdict(explored.result) | {"cpu_seconds": explored.cpu_seconds, "figures": explored.figures}
    return json.dumps({"bound": str(explored.bound), **facts})


def bug_as_text(bug: planted.Bug, found: planted.ExplorationResult) -> str:
    """Returns the result for a planted bug, as text."""
    if found.code != 1 or not found.trace:
        return f"planted: {bug.name}: NOT FOUND\n  {found.broken}"
    lines = [f"planted: {bug.name} ({bug.file}): found in {len(found.trace) - 1} lines"]
    return "\n".join([*lines, *(f"  {line}" for line in found.trace)])


def counts(text: str) -> tuple[int, ...]:
    """Parses the name of a world. In the world `2+1`, one partition has two messages and the other partition has
    one; `staging` is the staging model.
    """
    if text == "staging":
        return STAGING
    found = tuple(int(part) for part in text.split("+"))
    if not 1 <= len(found) <= 2 or not all(1 <= count <= MESSAGES_MAX for count in found):
        raise argparse.ArgumentTypeError(
            "expected 1 to 4 messages, two such numbers (2+2) for two partitions, or staging"
        )
    return found


def explore_all(bounds: Sequence[Bound], jobs: int, *, as_lines: bool) -> list[Exploration]:
    """Explores each world in a separate process, with `jobs` processes in parallel. Prints each result as soon as
    it is complete.
    """
    done = []
    with ProcessPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(explore, bound) for bound in bounds]):
            explored = future.result()
            done.append(explored)
            print(as_text(explored) if as_lines else as_json(explored), flush=True)
    return done


def find_planted(jobs: int, *, as_lines: bool) -> int:
    """Plants each bug. Returns the number of bugs that were found."""
    count = 0
    with ProcessPoolExecutor(jobs) as pool:
        for bug, found in zip(planted.BUGS, pool.map(planted.found, planted.BUGS), strict=True):
            count += found.code == 1 and bool(found.trace)
            facts = {"planted": bug.name, "found": found.broken, "trace": found.trace}
            print(bug_as_text(bug, found) if as_lines else json.dumps(facts), flush=True)
    return count


def main(arguments: list[str] | None = None) -> int:
    """Returns exit code 1 if an invariant was violated or a planted bug was not found."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.explore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bounds", choices=BOUNDS, default="usual", help="set of worlds; the large set takes much longer"
    )
    parser.add_argument(
        "--world",
        type=counts,
        help="explore only this world, for example 2+1 (messages per partition), or staging",
    )
    parser.add_argument(
        "--faults", type=int, choices=range(4), default=1, help="maximum number of faults per run in that world"
    )
    parser.add_argument(
        "--expiry", action="store_true", help="messages in that world may expire, which counts as a fault"
    )
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="worlds explored in parallel"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per world and planted bug")
    options = parser.parse_args(arguments)
    if options.world is not None:
        explored = explore(Bound(options.world, options.faults, options.expiry))
        print(as_json(explored) if options.json else as_text(explored), flush=True)
        return int(bool(explored.result.broken))
    began = time.monotonic()
    done = explore_all(BOUNDS[options.bounds], options.jobs, as_lines=not options.json)
    found = find_planted(options.jobs, as_lines=not options.json)
    broken = sum(bool(explored.result.broken) for explored in done)
    if not options.json:
        states = sum(explored.result.states for explored in done)
        cpu_seconds = sum(explored.cpu_seconds for explored in done)
        verdict = f"violations in {broken} worlds" if broken else "no violation"
        print(
            f"{len(done)} worlds with {states:,} states explored ({cpu_seconds:.0f} s of CPU): {verdict}; "
            f"{found} of {len(planted.BUGS)} planted bugs found; {time.monotonic() - began:.0f} s in all"
        )
    return int(broken > 0 or found < len(planted.BUGS))


if __name__ == "__main__":
    sys.exit(main())
