"""A run passes only if every check passes; each kind of failure is reported by name."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from ingest.local.compare.report import Check, Report
from tools.mixed.phases import NEW, OLD, Phase
from tools.mixed.result import Line, Result, show

WHOLE = Report((Check("objects", 3, 3),))


def good_run(*, expects_refusal: bool = True) -> Result:
    """Returns a run without errors: its second phase upgrades the workers first, which is the documented order,
    and its third phase upgrades the readers first.
    """
    both = "reader a: 1.0, worker b: 2.0"
    lines = [
        Line(Phase("alone", (OLD,), (OLD,)), "1 old", "1 old", messages=9),
        Line(Phase("workers", (OLD,), (NEW,)), "1 old", "1 new", messages=9, check=both),
        Line(
            Phase("wrong", (NEW,), (OLD,), newer=True),
            "1 new",
            "1 old",
            messages=9,
            parked=2,
            refused=2,
            check=both,
        ),
        Line(Phase("follow", (NEW,), (NEW,)), "1 new", "1 new", messages=9, parked=1, refused=1),
    ]
    made = Result({"old": "1.0", "new": "2.0"}, "tansu", expects_refusal, lines=lines, report=WHOLE)
    made.exits = [("reader-1", 0), ("worker-1", 0)]
    return made


def test_a_good_run_passes():
    result = good_run()
    result.judge()

    assert (result.ok, result.error) == (True, "")


def nothing_refused(result: Result) -> None:
    for line in result.lines:
        line.refused = 0


FAULTS: dict[str, tuple[Callable[[Result], object], str]] = {
    "lost": (
        lambda r: setattr(r, "report", Report((Check("rows", 3, 2, missing=1),))),
        "reconciliation failed",
    ),
    "not compared": (lambda r: setattr(r, "report", None), "nothing was reconciled"),
    "backwards": (lambda r: r.violations.append("it fell"), "history of commits: it fell"),
    "killed": (lambda r: r.exits.append(("reader-2", -9)), "reader-2 ended with code -9"),
    "ended": (lambda r: r.unexpected_exits.update({"worker-1": 1}), "worker-1 exited unexpectedly 1 times"),
    "halted": (lambda r: setattr(r, "halted", 1), "a reader halted"),
    "stuck": (lambda r: setattr(r, "never_committed", 1), "1 parked batches were never committed"),
    "silent": (lambda r: setattr(r.lines[0], "messages", 0), "alone: no message"),
    "check is blind": (
        lambda r: setattr(r.lines[1], "check", "reader a: 1.0"),
        "workers: check reported reader a: 1.0",
    ),
    "check is mute": (lambda r: setattr(r.lines[1], "check", ""), "workers: check reported no releases"),
    "not refused": (nothing_refused, "no batch of a newer version was refused"),
    "refused in order": (lambda r: setattr(r.lines[1], "refused", 1), "workers: workers refused 1 batches"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_fails_the_run_and_is_named(name: str):
    """Any single fault fails the run: the result contains its error, and the printed verdict is FAILED."""
    plant, error = FAULTS[name]
    result = good_run()
    plant(result)
    result.judge()
    printed = io.StringIO()
    show(Console(file=printed, width=200), result)

    assert not result.ok
    assert error in result.error
    assert "FAILED" in printed.getvalue()


def test_releases_with_equal_formats_need_no_refusal():
    """A run of two releases with the same formats passes although no batch was refused."""
    result = good_run(expects_refusal=False)
    nothing_refused(result)
    result.judge()

    assert result.ok


def test_check_has_to_run_at_least_once():
    result = good_run()
    for line in result.lines:
        line.check = None
    result.judge()

    assert "check was never run" in result.error


def test_the_table_has_every_phase_and_the_sums():
    """The table has one row per phase, and its last row contains the sums."""
    result = good_run()
    result.judge()
    printed = io.StringIO()
    show(Console(file=printed, width=200), result)

    rows = [line for line in printed.getvalue().splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["alone", "workers", "wrong", "follow", "all"]
    assert [cell.strip() for cell in rows[-1].split("│")[4:7]] == ["36", "3", "3"]
