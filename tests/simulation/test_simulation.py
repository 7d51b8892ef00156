"""In many worlds, each generated from one seed, the invariants hold, and every situation is reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from ingest.testing.simulation.__main__ import expected_marks, main, try_seeds
from ingest.testing.simulation.faults import Fault
from ingest.testing.simulation.shape import Shape
from ingest.testing.simulation.shrink import Outcome, run_world, shortest
from tests.kit.seeds import simulation_start

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "400"))
FIXED_SEEDS = 400
REGRESSIONS = Path(__file__).with_name("regressions.txt")


def regressions() -> list[int]:
    lines = REGRESSIONS.read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


@cache
def worlds(start: int, count: int) -> tuple[Counter[str], list[Outcome]]:
    """The worlds of the given seeds, which are run once for all tests that inspect them."""
    _, _, marks, failures = try_seeds(range(start, start + count))
    return marks, failures


def explain(failures: list[Outcome]) -> str:
    outcome = shortest(failures[0])
    seeds = [failure.shape.seed for failure in failures]
    return f"seeds {seeds} failed; {outcome.checker}: {outcome.text}\n" + "\n".join(outcome.trace[-120:])


def test_every_invariant_holds_in_every_world() -> None:
    """Whatever fails in Kafka, Redis, the fleet, sinks and readers, nothing is lost and nothing is duplicated."""
    _, failures = worlds(0, FIXED_SEEDS)
    assert not failures, explain(failures)


def test_every_invariant_holds_in_new_worlds() -> None:
    """The invariants also hold in worlds with new seeds.

    Each test run starts from a different seed, which is printed in the first lines of the report. To repeat a run,
    set the variable SIMULATION_START to this seed.
    """
    _, failures = worlds(simulation_start(), SEEDS)
    assert not failures, explain(failures)


@pytest.mark.parametrize("mark", expected_marks())
def test_the_worlds_reach_every_situation(mark: str) -> None:
    """The worlds reach every situation; worlds in which no reader ever pauses, for example, would prove nothing
    about pausing.
    """
    marks, _ = worlds(0, FIXED_SEEDS)
    assert marks[mark] > 0


@pytest.mark.parametrize("seed", regressions())
def test_a_seed_that_failed_once_does_not_fail_again(seed: int) -> None:
    """A seed in regressions.txt, which once failed, does not fail again.

    Each line of the file contains a seed and the lesson from its failure.
    """
    outcome = run_world(Shape.draw(seed))
    assert not outcome.checker, explain([outcome])


def test_each_run_has_new_seeds_and_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Each run has new seeds, which are printed before the first world, so that a run that hangs can be
    repeated.
    """
    printed, firsts = set(), set()
    for _ in range(3):
        main(["--seeds", "1", "--json"])
        output = capsys.readouterr()
        printed.add(output.err.splitlines()[0])
        firsts.add(json.loads(output.out)["first_seed"])

    assert printed == {f"seeds {first} to {first}" for first in firsts}
    assert len(firsts) > 1


def test_a_world_is_reproducible_from_its_seed() -> None:
    """The same seed produces the same history twice in this process."""
    shape = Shape.draw(7)
    assert run_world(shape, recording=True).trace == run_world(shape, recording=True).trace


def test_a_world_does_not_depend_on_the_hash_seed() -> None:
    """The same seed produces the same history in every process, regardless of the iteration order of sets."""
    summaries = []
    for hash_seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-m", "ingest.testing.simulation", "--start", "0", "--seeds", "12", "--json"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=120,
        )
        summary = json.loads(result.stdout)
        summaries.append((summary["simulated_hours"], summary["marks"]))
    assert summaries[0] == summaries[1]


def test_a_world_without_faults_parks_nothing_and_repeats_nothing() -> None:
    """In a world without faults, nothing is parked or repeated; this checks the model itself."""
    faultless = [run_world(replace(Shape.draw(seed), faults=(), readers=1)) for seed in range(20)]
    assert [outcome.checker for outcome in faultless] == [""] * len(faultless)
    for mark in ("parked", "undispatched", "commit_fenced", "lost", "out_of_range", "token_skipped"):
        assert not any(outcome.marks.get(mark) for outcome in faultless), mark


def test_a_failure_is_reduced_to_its_smallest_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a bug is planted in the ledger, it is found, and the reduced history is short and has no unnecessary
    fault.
    """
    import ingest.core.ledger as ledger

    def committable(self: ledger.Ledger, source: object) -> int | None:
        line = self._lines.get(source)  # type: ignore[call-overload]
        return None if line is None or line.committable is None else line.committable + 1

    monkeypatch.setattr(ledger.Ledger, "committable", committable)
    failed = next(o for o in (run_world(Shape.draw(seed)) for seed in range(20)) if o.checker == "durability")
    reduced = shortest(failed)

    assert reduced.checker == "durability"
    assert reduced.shape.faults == () or set(reduced.shape.faults) <= set(failed.shape.faults)
    assert len(reduced.shape.faults) <= 1
    assert reduced.shape.messages <= 10
    assert reduced.trace
    assert Fault.REDIS_WIPED not in reduced.shape.faults
