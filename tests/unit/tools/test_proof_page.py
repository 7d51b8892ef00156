"""The tables in docs/proof.md list only bugs that exist and worlds that are explored."""

from __future__ import annotations

import json

from tests.mutation.mutants import MUTANTS
from tools.explore.__main__ import BOUNDS
from tools.explore.judged import JUDGED_BUGS, BrokenProperty
from tools.explore.planted import BUGS
from tools.proof_page import FIGURES, proof_page


def test_every_bug_of_the_table_applies_to_its_file() -> None:
    """Every bug in the table exists in the code, so a renamed or removed bug is noticed."""
    planted = {mutant.bug: mutant.file for mutant in MUTANTS}
    shown = {bug: file for bug, file, _, _ in json.loads(FIGURES.read_text())["mutants"]}

    assert shown == {bug: planted.get(bug) for bug in shown}


def test_every_world_of_the_table_is_one_that_is_explored() -> None:
    """Every world in the table is explored; worlds are matched by the text that the explorer prints."""
    known = {str(bound) for bounds in BOUNDS.values() for bound in bounds}

    assert {world["bound"] for world in json.loads(FIGURES.read_text())["explored"]} <= known


def test_the_page_has_a_table_under_every_heading_with_figures() -> None:
    """Under every heading that has figures, the page has a table with one row per figure."""
    figures, page = json.loads(FIGURES.read_text()), list(proof_page())
    tables = [part for part in page if part.startswith("| ")]

    assert [len(table.splitlines()) - 2 for table in tables] == [
        *(len(figures[name]) for name in ("explored", "marks", "rebalance", "mutants")),
        len(JUDGED_BUGS),
    ]


def test_every_bug_that_simulated_worlds_miss_is_judged() -> None:
    """Every bug that the simulated worlds miss is classified by whether it breaks safety."""
    missed = [bug for bug, _, _, broken in json.loads(FIGURES.read_text())["mutants"] if not broken]

    assert [judgment.bug for judgment in JUDGED_BUGS] == missed


def test_every_bug_that_breaks_safety_where_the_explorer_looks_is_planted() -> None:
    """The explorer plants every known safety bug in the code that it explores.

    The explored code does not include the loop (`reader/runtime.py`), nor the choice of the offset at which a
    partition starts (`core/starting.py`).
    """
    files = {mutant.bug: mutant.file for mutant in MUTANTS}
    elsewhere = {"reader/runtime.py", "core/starting.py"}

    for judgment in JUDGED_BUGS:
        assert bool(judgment.world) == (
            judgment.breaks is BrokenProperty.SAFETY and files[judgment.bug] not in elsewhere
        ), judgment.bug
    texts = {(f"ingest/{mutant.file}", mutant.before, mutant.after) for mutant in MUTANTS}
    judged = {judgment.bug for judgment in JUDGED_BUGS}
    assert all((bug.file, bug.before, bug.after) in texts for bug in BUGS if bug.name in judged)
