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
