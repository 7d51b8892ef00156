"""Checks the specification of the commit protocol, and checks that runs of the code follow it.

    python -m tools.spec                       (make spec)
    python -m tools.spec --logs .chaos         (make spec LOGS=.chaos), the readers' logs of a chaos run

First, SPIN tries every interleaving of the actions in spec/commit_protocol.pml. No interleaving may violate an
assertion. Each interleaving must terminate, and everything must then be committed. Then the histories of simulated
worlds, or those in the logs of real readers, are replayed; the specification must allow each of their actions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ingest.observe.steps import Step
from tools.spec import runs, spin
from tools.spec.history import History, UnreadableHistory, histories, partitions

PRECEDING_ACTIONS_SHOWN = 12  # actions shown before the refused one


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns exit code 1 if a check fails, and 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="python -m tools.spec", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="simulated worlds to replay")
    parser.add_argument("--start", type=int, default=0, help="seed of the first world")
    parser.add_argument(
        "--faults", type=int, help="number of faults in the exhaustive check; default: that of the specification"
    )
    parser.add_argument("--logs", type=Path, help="replay the logs in this directory instead of simulated worlds")
    options = parser.parse_args(arguments)
    if spin.missing():
        print(spin.missing())
        return 2
    with tempfile.TemporaryDirectory(prefix="spec-") as name:
        directory = Path(name)
        try:
            holds = options.logs is not None or exhausted(directory, options.faults)
            return 0 if replayed(spin.Checker(directory), _sources(options)) and holds else 1
        except spin.SpinFailed as failure:
            print(f"error: {failure}")
            return 2


def exhausted(directory: Path, faults: int | None) -> bool:
    """Runs both searches. Prints one line for each search."""
    holds = True
    claims = {
        False: "no assertion is violated, and everything is committed in the end",
        True: "every run with one fault ends",
    }
    for ends, claim in claims.items():
        found = spin.search(directory / f"search-{ends}", faults=1 if ends else faults, ends=ends)
        figures = f"{found.states:,} states, {found.transitions:,} transitions, {found.seconds:.1f} s"
        print(f"{claim}: {'NO' if found.error else 'yes'} ({figures})", flush=True)
        if found.error:
            print(found.error)
            holds = False
    return holds


def _sources(options: argparse.Namespace) -> Iterator[tuple[str, list[Step]]]:
    if options.logs is not None:
        yield str(options.logs), runs.logged(options.logs)
        return
    for seed in range(options.start, options.start + options.seeds):
        yield f"seed {seed}", runs.simulated(seed)


def replayed(checker: spin.Checker, sources: Iterator[tuple[str, list[Step]]]) -> bool:
    """Replays every history of every partition. Prints each refused action with the actions before it."""
    count, actions, refused, readers = 0, 0, 0, set[str]()
    for name, steps in sources:
        readers |= {f"{name} {step['reader']}" for step in steps}
        for partition, of_partition in sorted(partitions(steps).items()):
            for part in histories(of_partition):
                error = _refusal(checker, part)
                count, actions = count + 1, actions + len(part)
                if error:
                    refused += 1
                    print(f"{name}, partition {partition}: {error}", file=sys.stderr)
    print(f"{count} histories of {len(readers)} readers with {actions:,} steps replayed: {refused} refused")
    if not count:
        print("no steps were found; readers log them with REPLAYS_LOG_LEVEL=debug")
    return count > 0 and not refused


def _refusal(checker: spin.Checker, steps: Sequence[Step]) -> str:
    try:
        history = History(steps)
    except UnreadableHistory as error:
        return str(error)
    verdict = checker.check(history)
    if verdict.refused is None:
        return ""
    at = verdict.refused
    before = [
        f"  {action.name:<14} {action.line}"
        for action in history.actions[max(0, at - PRECEDING_ACTIONS_SHOWN) : at]
    ]
    refused = history.actions[at]
    last = f"refused: {refused.name} at {refused.line} {verdict.error}".rstrip()
    return "\n".join([f"action {at + 1} of {verdict.actions} is not allowed", *before, last])


if __name__ == "__main__":
    raise SystemExit(main())
