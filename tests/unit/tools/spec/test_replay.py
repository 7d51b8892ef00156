"""Runs of the code conform to the specification, and a run that does not conform is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.observe.steps import Step
from tools.spec import runs, spin
from tools.spec.history import History, histories, partitions

pytestmark = pytest.mark.skipif(bool(spin.missing()), reason=spin.missing() or "-")
SEEDS = range(4)


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> spin.Checker:
    """The checker of the specification, compiled once."""
    return spin.Checker(tmp_path_factory.mktemp("replay"))


def calm_steps() -> list[Step]:
    """Returns the steps of one batch from its assignment to its commit."""
    facts: list[Step] = [
        {"step": "assigned", "offset": 0, "ends": [], "new": True},
        {"step": "cut", "start": 0, "stop": 3, "stages": ["blobs", "rows"], "cut_by": "count"},
        {"step": "commit", "offset": 0, "ends": [3], "short": False},
        {"step": "committed", "offset": 0, "ends": [3], "short": False},
        {"step": "dispatch", "stop": 3, "stage": "blobs", "late": False, "short": False},
        {"step": "flushed", "stop": 3, "stage": "blobs"},
        {"step": "dispatch", "stop": 3, "stage": "rows", "late": False, "short": False},
        {"step": "flushed", "stop": 3, "stage": "rows"},
        {"step": "settled", "stop": 3, "by": "sinks"},
        {"step": "commit", "offset": 3, "ends": [], "short": False},
        {"step": "committed", "offset": 3, "ends": [], "short": False},
    ]
    return [{"reader": "one", "partition": 0, **fact} for fact in facts]


def refused_action(checker: spin.Checker, steps: list[Step]) -> str:
    """Returns the name of the first action that is not allowed, or an empty string if all are allowed."""
    history = History(steps)
    at = checker.check(history).refused
    return "" if at is None else history.actions[at].name


@pytest.mark.parametrize("seed", SEEDS)
def test_simulated_worlds_are_allowed(seed: int, checker: spin.Checker) -> None:
    """For every partition of a simulated world, the specification allows all steps from the first assignment to
    the last commit.
    """
    parts = [part for steps in partitions(runs.simulated(seed)).values() for part in histories(steps)]

    assert parts
    assert [refused_action(checker, part) for part in parts] == [""] * len(parts)


def test_an_undisturbed_batch_is_allowed(checker: spin.Checker) -> None:
    """The specification accepts the history of a batch that is cut, recorded, dispatched, marked, settled and
    committed.
    """
    assert refused_action(checker, calm_steps()) == ""


@pytest.mark.parametrize(
    ("moved", "before", "action"),
    [(9, 8, ""), (9, 7, "send"), (9, 4, "send"), (4, 3, "dispatch"), (6, 5, "dispatch"), (8, 7, "settled")],
)
def test_one_altered_step_is_refused(moved: int, before: int, action: str, checker: spin.Checker) -> None:
    """The checker refuses a commit before the batch has settled, a dispatch before the cut record is stored, and
    rows before blobs.
    """
    steps = calm_steps()
    steps.insert(before, steps.pop(moved))

    assert refused_action(checker, steps) == action


def test_a_new_owner_reads_the_stored_record(checker: spin.Checker) -> None:
    """A new owner must read exactly the batch boundaries that the former owner recorded."""
    handed_over: Step = {
        "step": "assigned",
        "offset": 0,
        "ends": [3],
        "new": False,
        "reader": "two",
        "partition": 0,
    }
    others = {**handed_over, "ends": [2]}

    assert refused_action(checker, [*calm_steps()[:4], handed_over]) == ""
    assert refused_action(checker, [*calm_steps()[:4], others]) in ("reads_end", "reads_ends")


def test_an_assignment_that_is_revoked_before_its_reader_receives_it_changes_no_owner(
    checker: spin.Checker,
) -> None:
    """If a suspended reader handles an assignment late, sends one commit that is not stored, and then loses the
    partition, the partition's owner does not change.
    """
    steps = calm_steps()
    late = steps_of(
        "late",
        {"step": "assigned", "offset": 0, "ends": [], "new": False},
        {"step": "commit", "offset": 0, "ends": [], "short": False},
        {"step": "lost"},
    )
    steps[1:1] = late

    (left,) = histories(steps)

    assert left == calm_steps()
    assert refused_action(checker, left) == ""
    assert refused_action(checker, steps) != ""


def steps_of(reader: str, *facts: Step) -> list[Step]:
    """Returns these facts as steps of the given reader on partition 0."""
    return [{"reader": reader, "partition": 0, **fact} for fact in facts]


REVOKED: Step = {"step": "revoked"}
RELEASED: Step = {"step": "released", "late": False, "gave_up": False}


def test_a_response_may_belong_to_an_equal_earlier_commit(checker: spin.Checker) -> None:
    """If a reader resends a commit, the response to the first commit is allowed as the response to the resent
    commit.
    """
    again = steps_of("one", {"step": "commit", "offset": 3, "ends": [], "short": False})
    answer = calm_steps()[-1:]
    steps = [*calm_steps()[:-1], *again, *answer, *steps_of("one", REVOKED, RELEASED)]

    assert refused_action(checker, steps) == ""
    assert refused_action(checker, [*calm_steps()[:-1], *again, *steps_of("one", REVOKED, RELEASED)]) == "release"


def cut_behind_a_gap(committed: int) -> list[Step]:
    """The steps of a reader that commits [0, 3), records a batch [5, 7) with that commit, parks the batch, and
    leaves it to the next owner.
    """
    return steps_of(
        "one",
        {"step": "cut", "start": 5, "stop": 7, "stages": ["rows"], "cut_by": "age"},
        {"step": "commit", "offset": committed, "ends": [7], "short": False},
        {"step": "committed", "offset": committed, "ends": [7], "short": False},
        {"step": "dispatch", "stop": 7, "stage": "rows", "late": False, "short": False},
        {"step": "parked", "stop": 7},
        REVOKED,
        RELEASED,
    )


@pytest.mark.parametrize(("committed", "action"), [(3, ""), (5, ""), (6, "send")])
def test_a_batch_covers_the_gap_before_it(committed: int, action: str, checker: spin.Checker) -> None:
    """A batch after a gap may be recorded with the offset before or after the gap, but not with an offset inside
    the batch.
    """
    assert refused_action(checker, [*calm_steps(), *cut_behind_a_gap(committed)]) == action


def test_commits_of_a_later_assignment_do_not_affect_an_earlier_one(checker: spin.Checker) -> None:
    """If a reader is assigned the same partition again and only then commits the offset after a gap, the steps of
    its first assignment are still accepted.
    """
    back = steps_of(
        "one",
        {"step": "assigned", "offset": 3, "ends": [7], "new": False},
        {"step": "ended", "start": 3, "stop": 5},
        {"step": "commit", "offset": 5, "ends": [7], "short": False},
        {"step": "committed", "offset": 5, "ends": [7], "short": False},
    )

    assert refused_action(checker, [*calm_steps(), *cut_behind_a_gap(3), *back]) == ""


def test_a_plan_of_two_ends_is_abandoned_in_one_step(checker: spin.Checker) -> None:
    """A reader may drop two recorded batch ends in one commit, but only if the log ended before both of them."""
    two = steps_of(
        "one",
        {"step": "assigned", "offset": 0, "ends": [8, 16], "new": True},
        {"step": "ended", "start": 5, "stop": 5},
        {"step": "commit", "offset": 0, "ends": [], "short": False},
        {"step": "committed", "offset": 0, "ends": [], "short": False},
    )

    assert refused_action(checker, two) == ""
    assert refused_action(checker, [two[0], *two[2:]]) == "names_ends"


def test_steps_are_found_in_a_readers_log(tmp_path: Path) -> None:
    """The steps are found among other log lines, and are sorted by time."""
    (tmp_path / "reader-1.log").write_text(
        "no json\n"
        '{"event": "protocol_step", "timestamp": "2026-11-28T00:00:02Z", "step": "lost", "partition": 0}\n'
        '{"event": "reader_started", "timestamp": "2026-11-28T00:00:00Z"}\n'
        '{"event": "protocol_step", "timestamp": "2026-11-28T00:00:01Z", "step": "revoked", "partition": 0}\n'
    )

    assert [step["step"] for step in runs.logged(tmp_path)] == ["revoked", "lost"]


def test_logged_steps_are_ordered_by_time_and_not_by_text(tmp_path: Path) -> None:
    """Logged steps are sorted by time, not as text. Sorted as text, a time in whole seconds would follow all other
    times in the same second, because it has no fraction.
    """
    for name, step, second in (("reader-1.log", "cut", "58.75"), ("reader-2.log", "commit", "58")):
        line = f'{{"event": "protocol_step", "step": "{step}", "timestamp": "2026-11-28T05:28:{second}Z"}}\n'
        (tmp_path / name).write_text(line)

    assert [step["step"] for step in runs.logged(tmp_path)] == ["commit", "cut"]
