"""The list of planted bugs fits the code as it is; planting them takes minutes and is `make mutants`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation.mutants import MUTANTS, Mutant

INGEST = Path(__file__).parents[2] / "ingest"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug.replace(" ", "_"))
def test_a_bug_can_be_planted_in_exactly_one_place(mutant: Mutant) -> None:
    """Otherwise the table would tell of another bug, or of none."""
    text = (INGEST / mutant.file).read_text()

    assert text.count(mutant.before) == 1
    assert mutant.before != mutant.after
    compile(text.replace(mutant.before, mutant.after), mutant.file, "exec")


def test_there_is_a_bug_of_every_kind() -> None:
    """Every decision of the core has somebody who gets it wrong."""
    assert len({mutant.bug for mutant in MUTANTS}) == len(MUTANTS) >= 20
    assert {mutant.file for mutant in MUTANTS} >= {
        f"core/{name}.py" for name in ("ledger", "pipeline", "batching", "backpressure", "retry", "record")
    }


def test_the_page_on_proof_has_a_line_for_every_bug_and_a_test_that_exists() -> None:
    """`make mutants` prints the table: paste it there when a bug or a test is new or has another name."""
    root = INGEST.parent
    lines = [line.split(" | ") for line in (root / "docs" / "proof.md").read_text().splitlines()]
    killers = {line[0].removeprefix("| "): line[2].strip("`") for line in lines if len(line) == 4}
    tests = "\n".join(path.read_text() for path in (root / "tests" / "unit" / "core").rglob("test_*.py"))

    assert {mutant.bug for mutant in MUTANTS} <= killers.keys()
    for mutant in MUTANTS:
        assert f"def {killers[mutant.bug].split('[')[0]}(" in tests, mutant.bug
