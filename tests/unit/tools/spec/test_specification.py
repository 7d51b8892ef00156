"""The specification of the commit protocol holds for every order of its actions, and each of its rules is
needed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.spec import spin

LINES_MAX = 200
needs_spin = pytest.mark.skipif(bool(spin.missing()), reason=spin.missing() or "-")

# Maps the name of each planted bug to two texts: the text to replace in the specification, and its replacement.
# Each bug removes one rule.
PLANTED = {
    "commits unsettled ranges": ("R.safe = (k > R.taken -> R.taken : R.safe)", "R.safe = R.taken"),
    "settles a batch when its blobs are durable": ("B.parked = false; B.left--;", "B.parked = false; B.left = 0;"),
    "settles without its marks": ("&& B.left == stage_ && marked ->", "&& B.left == stage_ ->"),
    "dispatches batches that are not recorded": ("B.left && B.recorded && !B.out", "B.left && !B.out"),
    "cuts across a recorded end": ("(!R.planned || stop == R.planned)", "true"),
    "stores commits of a former owner": ("reader[k].commit[l].is == SENT -> clear(k, l)", "false -> skip"),
    "does not send a refused commit again": (
        "{ clear(r, n); R.waits = false; R.due = true }",
        "{ clear(r, n); R.waits = false }",
    ),
    "does not restart a lost chord": ("B.out && (!C.stage || C.by != r)", "B.out && C.stage == 3"),
}


def test_the_specification_is_short() -> None:
    """The specification has at most 200 lines."""
    assert len(spin.SPECIFICATION.read_text().splitlines()) <= LINES_MAX


@needs_spin
@pytest.mark.timeout(900)
def test_it_holds_in_every_order_of_its_actions(tmp_path: Path) -> None:
    """With the stated number of faults, no order of actions violates an assertion, and in the end everything is
    committed.
    """
    found = spin.search(tmp_path)

    assert found.error == ""
    assert found.states > 1_000_000


@needs_spin
def test_every_run_of_it_terminates(tmp_path: Path) -> None:
    """The specification terminates: no sequence of its actions is infinite."""
    assert spin.search(tmp_path, faults=1, ends=True).error == ""


@needs_spin
@pytest.mark.parametrize("planted", PLANTED)
def test_a_missing_rule_is_detected(planted: str, tmp_path: Path) -> None:
    """If any one rule is removed, an assertion is violated or the end is not reached."""
    before, after = PLANTED[planted]
    text = spin.SPECIFICATION.read_text()
    assert text.count(before) == 1

    assert "assertion violated" in spin.search(tmp_path, faults=1, text=text.replace(before, after)).error
