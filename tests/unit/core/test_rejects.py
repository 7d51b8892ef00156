"""Tests how rejects are attributed: rejects of a single project shed that project; rejects of many projects, or of
none, halt the reader.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.core.limits import RejectPolicy
from ingest.core.rejects import SHED_REJECTS_MIN, ProjectCount, Rejects
from tests.kit.core_reader import limits

GOOD, BAD = False, True


def window(size: int = 20, **changed: float) -> Rejects:
    return Rejects(limits(reject_window=size, **changed))


def count(rejects: Rejects, *messages: tuple[int | None, bool]) -> list[ProjectCount]:
    return [changed for project, bad in messages for changed in rejects.count(project, rejected=bad)]


def test_garbage_of_one_project_never_halts() -> None:
    """Garbage from one project never halts the reader, even if the window contains nothing else."""
    rejects = window()

    count(rejects, *[(1, BAD)] * 100)

    assert rejects.halt_reason() is None


def test_garbage_of_many_projects_halts_and_names_them() -> None:
    """Garbage from many projects indicates a bad deployment: the reader halts, and the projects are named."""
    rejects = window()

    count(rejects, *[(project, BAD) for project in (1, 2, 3, 4)] * 5)

    verdict = rejects.halt_reason()
    assert verdict is not None
    assert "4 of 4 projects" in verdict
    assert "1, 2, 3, 4" in verdict


def test_exactly_the_maximum_share_of_projects_is_allowed() -> None:
    """A share of bad projects that equals the maximum is allowed; the reader halts only above it."""
    rejects = window(20, reject_ratio_max=0.3)
    count(rejects, *[(project, project < 3) for project in range(10)] * 2)
    assert rejects.halt_reason() is None

    count(rejects, *[(3, BAD)] * 3)

    assert rejects.halt_reason() is not None


def test_a_project_with_some_bad_messages_is_not_a_bad_project() -> None:
    """A project counts as bad if more than half of its messages are bad; exactly half does not count."""
    rejects = window(30)

    count(rejects, *[(project, bad) for project in range(5) for bad in (BAD, GOOD)] * 3)

    assert rejects.halt_reason() is None


def test_fewer_projects_than_the_minimum_never_halt() -> None:
    """If there are fewer bad projects than the minimum, the reader never halts; a lower minimum can be configured
    for a small installation.
    """
    for minimum, halts in ((3, False), (2, True)):
        rejects = window(reject_projects_min=minimum)
        count(rejects, *[(1, BAD), (2, BAD), (3, GOOD), (4, GOOD)] * 5)
        assert (rejects.halt_reason() is not None) == halts


def test_garbage_without_a_project_has_its_own_limit() -> None:
    """Garbage without a project, which cannot be shed by project, has its own limit."""
    rejects = window(20, reject_unattributed_ratio_max=0.2)
    count(rejects, *[(1, GOOD)] * 16, *[(None, BAD)] * 4)
    assert rejects.halt_reason() is None

    count(rejects, (None, BAD))

    verdict = rejects.halt_reason()
    assert verdict is not None
    assert "25% of the last 20 messages are rejects that name no project" in verdict


def test_a_window_must_be_full_before_it_counts() -> None:
    """Rejects halt the reader only when the window is full, because a few bad messages at start-up do not indicate
    a bad deployment.
    """
    rejects = window(20)
    count(rejects, *[(project, BAD) for project in range(19)])
    assert rejects.halt_reason() is None

    count(rejects, (19, BAD))

    assert rejects.halt_reason() is not None


def test_shedding_a_project_is_reported_at_start_and_end() -> None:
    """Shedding a project is reported once at its start and once at its end, however many messages arrive."""
    rejects = window(40)

    (shed,) = count(rejects, *[(7, BAD)] * 15)
    assert (shed.project_id, shed.shed, rejects.shed) == (7, True, 1)
    changed = count(rejects, *[(8, GOOD)] * 60)

    assert [(shown.project_id, shown.shed) for shown in changed] == [(7, False)]
    assert rejects.shed == 0


def test_a_few_rejects_shed_no_project() -> None:
    """A project is shed only after SHED_REJECTS_MIN rejects."""
    assert count(window(40), *[(7, BAD)] * (SHED_REJECTS_MIN - 1)) == []


@pytest.mark.parametrize(("policy", "drops"), [(RejectPolicy.DEAD_LETTER, False), (RejectPolicy.DROP, True)])
def test_rejects_of_a_shed_project_are_dropped_by_policy_only(policy: RejectPolicy, drops: bool) -> None:
    """Rejects of a shed project are dropped only if the policy says so, and other projects are unaffected."""
    rejects = window(40, reject_policy=policy)  # type: ignore[arg-type]
    count(rejects, *[(7, BAD)] * 15, (8, BAD), (None, BAD))

    assert rejects.drops(7) == drops
    assert not rejects.drops(8)
    assert not rejects.drops(None)


def test_the_worst_projects_are_listed_first_and_bounded() -> None:
    """The worst projects are listed first, and the number of projects in metrics and logs is bounded."""
    rejects = window(100)
    count(rejects, *[(project, BAD) for project in range(10) for _ in range(project)])

    assert [(shown.project_id, shown.rejects) for shown in rejects.most_rejected_projects(3)] == [
        (9, 9),
        (8, 8),
        (7, 7),
    ]


@given(st.lists(st.tuples(st.sampled_from([None, 0, 1, 2, 3]), st.booleans()), max_size=80))
def test_counts_cover_the_last_messages(messages: list[tuple[int | None, bool]]) -> None:
    """Counts cover the most recent messages of all projects, in a window that slides with every message."""
    rejects = window(10, reject_projects_min=2, reject_ratio_max=0.4, reject_unattributed_ratio_max=0.3)

    for seen, message in enumerate(messages, start=1):
        count(rejects, message)
        held = messages[max(0, seen - 10) : seen]
        total = Counter(project for project, _ in held)
        bad = Counter(project for project, rejected in held if rejected)
        mostly = [project for project in total if project is not None and 2 * bad[project] > total[project]]
        projects = len(total.keys() - {None})
        halts = seen >= 10 and (bad[None] > 3 or (len(mostly) >= 2 and len(mostly) > 0.4 * projects))
        assert (rejects.halt_reason() is not None) == halts
        assert rejects.ratio == sum(bad.values()) / len(held)
        assert rejects.unattributed == bad[None]
        assert {shown.project_id for shown in rejects.most_rejected_projects()} == bad.keys() - {None}
