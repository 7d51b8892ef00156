"""The list of planted bugs matches the current code. `make mutants` runs the tests against each planted bug, which
takes minutes.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.kit.paths import ROOT
from tests.mutation.__main__ import UNIT_TESTS
from tests.mutation.mutants import MUTANTS, Mutant

INGEST = ROOT / "ingest"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.bug.replace(" ", "_"))
def test_a_bug_can_be_planted_in_exactly_one_place(mutant: Mutant) -> None:
    """The text of every bug occurs exactly once in its file; otherwise the table would describe another bug, or
    none.
    """
    text = (INGEST / mutant.file).read_text()

    assert text.count(mutant.before) == 1
    assert mutant.before != mutant.after
    planted = text.replace(mutant.before, mutant.after)
    compile(planted, mutant.file, "exec")
    # A bug that only raises NameError proves nothing about the tests.
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select", "F821", "-"]
    unresolved = subprocess.run(command, input=planted, capture_output=True, text=True, check=False).stdout
    assert unresolved == ""


def test_there_is_a_bug_of_every_kind() -> None:
    """There is at least one mutant for every decision of the core."""
    assert len({mutant.bug for mutant in MUTANTS}) == len(MUTANTS) >= 20
    assert {mutant.file for mutant in MUTANTS} >= {
        f"core/{name}.py" for name in ("ledger", "pipeline", "batching", "backpressure", "retry", "cut_record")
    }


def test_the_tables_of_the_proof_have_a_line_for_every_bug_and_a_test_that_exists() -> None:
    """The tables of the proof have a line for every bug and name tests that exist.

    `make mutants` prints the table; add it to tools/proof_figures.json after a bug or a test has been added.
    """
    lines = [line.split(" | ") for line in (ROOT / "docs" / "proof-tables.md").read_text().splitlines()]
    killers = {
        line[0].removeprefix("| "): line[2].strip("`")
        for line in lines
        if len(line) == 4 and line[2].startswith("`")
    }
    files = [
        file for name in UNIT_TESTS for file in [ROOT / name, *(ROOT / name).rglob("test_*.py")] if file.is_file()
    ]
    tests = "\n".join(file.read_text() for file in files)

    assert {mutant.bug for mutant in MUTANTS} <= killers.keys()
    for mutant in MUTANTS:
        assert f"def {killers[mutant.bug].split('[')[0]}(" in tests, mutant.bug
