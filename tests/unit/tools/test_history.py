"""The check accepts possible histories of committed offsets and refuses impossible ones."""

from __future__ import annotations

import pytest

from tools.history.check import Assignment, Commit, Exemption, History, Read, judge
from tools.history.collect import LoggedOperations


def commit(life: str, offset: int, sent_at: float, answered_at: float | None = None, record: str = "") -> Commit:
    return Commit(life, 0, offset, record, sent_at, answered_at)


def read(offset: int | None, asked_at: float, answered_at: float, record: str = "", by: str = "broker") -> Read:
    return Read(by, 0, offset, record, asked_at, answered_at)


A, B = Assignment("a", 0, 0.0), Assignment("b", 0, 10.0)

GOOD = {
    "nothing at all": History(),
    "read before, while and after it is committed": History(
        [commit("a", 5, 1.0, 2.0)],
        [read(None, 0.0, 0.5), read(None, 1.2, 1.5), read(5, 1.3, 1.6), read(5, 3, 4)],
        [A],
    ),
    "a commit without an answer is seen, later or never": History(
        [commit("a", 5, 1.0), commit("a", 7, 3.0, 4.0), commit("a", 6, 2.0)], [read(7, 5.0, 6.0)], [A]
    ),
    "a commit of unclear fate lands behind a later one of another value": History(
        [commit("a", 5, 1.0, record="x"), commit("a", 5, 2.0, 3.0, record="y")], [read(5, 4.0, 5.0, "x")], [A]
    ),
    "a successor goes on where its predecessor ended": History(
        [commit("a", 5, 1.0, 2.0), commit("b", 5, 11.0, 12.0, "s=1"), commit("b", 8, 13.0, 14.0)],
        [read(5, 10.1, 10.2, by="b"), read(8, 15.0, 16.0)],
        [A, B],
    ),
    "the same value twice, with another between": History(
        [commit("a", 5, 1.0, 2.0), commit("b", 5, 11.0, 12.0, "s=1"), commit("b", 5, 13.0, 14.0)],
        [read(5, 15.0, 16.0)],
        [A, B],
    ),
    "the topic was created again": History(
        [commit("a", 5, 1.0, 2.0), commit("a", 0, 4.0, 5.0)],
        [read(0, 6, 7)],
        [A],
        [Exemption(3.0, "created again")],
    ),
    "an offset beyond the log, committed again by its reader": History(
        [commit("a", 900, 4.0, 5.0), commit("a", 0, 7.0, 8.0)],
        [read(0, 9, 10)],
        [A],
        [Exemption(3.0, "beyond the log", until=7.5)],
    ),
    "brokers that keep no records": History(
        [commit("a", 5, 1.0, 2.0, "s=1")], [read(5, 3.0, 4.0)], [A], has_records=False
    ),
}

IMPOSSIBLE = {
    "which was never committed": History([commit("a", 5, 1.0, 2.0)], [read(6, 3.0, 4.0)], [A]),
    "with record 's=2', which was never committed": History(
        [commit("a", 5, 1.0, 2.0, "s=1")], [read(5, 3, 4, "s=2")], [A]
    ),
    "read 5 before it was sent": History([commit("a", 5, 5.0, 6.0)], [read(5, 1.0, 2.0)], [A]),
    "read None, but a had committed 5": History([commit("a", 5, 1.0, 2.0)], [read(None, 3.0, 4.0)], [A]),
    "read 5, but a had committed 7": History(
        [commit("a", 5, 1.0, 2.0), commit("a", 7, 3.0, 4.0)], [read(5, 5.0, 6.0)], [A]
    ),
    "read 5 after broker read 7": History(
        [commit("a", 5, 1.0), commit("a", 7, 1.0)], [read(7, 3.0, 4.0), read(5, 5.0, 6.0)], [A]
    ),
    "a committed 5 after a committed 7": History([commit("a", 7, 1.0, 2.0), commit("a", 5, 3.0, 4.0)], [], [A]),
    "although b owned it by then": History([commit("b", 7, 11.0, 12.0), commit("a", 8, 13.0, 14.0)], [], [A, B]),
    "without being assigned the partition": History([commit("b", 7, 5.0, 6.0)], [], [A, B]),
    "an excuse that came too late: a committed 5 after a committed 7": History(
        [commit("a", 7, 1.0, 2.0), commit("a", 5, 3.0, 4.0)], [], [A], [Exemption(9.0, "created again")]
    ),
    "an excuse that has ended: a committed 5 after a committed 7": History(
        [commit("a", 7, 4.0, 5.0), commit("a", 5, 6.0, 7.0)],
        [],
        [A],
        [Exemption(1.0, "beyond the log", until=3.0)],
    ),
}
ERROR_BY_NAME = {
    "read 5 before it was sent": "which was never committed",
    "an excuse that came too late: a committed 5 after a committed 7": "a committed 5 after a committed 7",
    "an excuse that has ended: a committed 5 after a committed 7": "a committed 5 after a committed 7",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_history_that_one_register_explains_is_accepted(name: str) -> None:
    """A history that is consistent with a single register is accepted; overlapping operations may take effect in
    any order.
    """
    assert judge(GOOD[name]) == []


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_history_that_no_register_explains_is_refused(name: str) -> None:
    """A history that is inconsistent with a single register is refused with one sentence that names the
    contradiction.
    """
    (sentence,) = judge(IMPOSSIBLE[name])

    assert sentence.startswith("partition 0: ")
    assert ERROR_BY_NAME.get(name, name) in sentence


def test_partitions_are_checked_separately() -> None:
    """Partitions are checked separately, because each is a separate register."""
    other = Commit("a", 1, 3, "", 3.0, 4.0)

    assert judge(History([commit("a", 7, 1.0, 2.0), other], [], [A, Assignment("a", 1, 0.0)])) == []


def line(event: str, second: int, **fields: object) -> dict[str, object]:
    return {"event": event, "timestamp": f"2026-11-27T10:00:{second:02}Z", **fields}


def test_the_log_of_a_reader_has_its_part_of_the_history() -> None:
    """The log of a reader yields its commits with their responses, the offsets that it read, and its assignments.

    A commit is included even if its process ended before the response.
    """
    committed = {"partition": 0, "offset": 5, "record": "s=1"}
    logged = LoggedOperations.of(
        "r",
        [
            line("reader_started", 0),
            line("offsets_read", 3, partitions={"0": [None, ""]}, seconds=1.0),
            line("partitions_assigned", 3, partitions={"0": None}),
            line("commit_sent", 4, **committed),
            line("commit_answered", 5, **committed, error=""),
            line("commit_sent", 6, **committed),
            line("commit_answered", 7, **committed, error="KafkaError{code=ILLEGAL_GENERATION}"),
            line("commit_sent", 8, **committed),
            line("commit_answered", 9, **committed, error="KafkaError{code=_TIMED_OUT}"),
            line("commit_sent", 10, **committed),
            line("reader_started", 20),
        ],
    )

    second = logged.reads[0].answered_at - 3
    assert [(sent.sent_at - second, sent.stored, sent.refused) for sent in logged.commits] == [
        (4, True, False),
        (6, False, True),
        (8, False, False),
        (10, False, False),
    ]
    assert logged.reads == [Read("r.1", 0, None, "", second + 2, second + 3)]
    assert logged.assignments == [Assignment("r.1", 0, second + 3)]
