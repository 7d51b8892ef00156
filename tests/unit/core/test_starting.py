"""Tests where a partition starts: at its offset, at its beginning if the partition is new, or by policy if the
offset was lost.
"""

from __future__ import annotations

from ingest.core.cut_record import Record, encode
from ingest.core.starting import (
    Start,
    StartPosition,
    StoredCommit,
    TopicView,
    first_record,
    is_doubtful,
    is_known,
    start,
)

CURRENT_TOPIC = TopicView("new", 4)


def stored(offset: int, topic_id: str = "new", partitions: int = 2) -> StoredCommit:
    """Returns a commit of this group as the broker stores it."""
    return StoredCommit(offset, encode(offset, Record(topic_id, partitions, 1, (offset + 5,)), 4000))


def test_a_committed_offset_of_this_topic_is_the_start() -> None:
    """If the committed offset belongs to this topic, consumption starts there, and the record keeps the number of
    partitions that the group started with.
    """
    assert start(0, {0: stored(7)}, CURRENT_TOPIC) == Start(StartPosition.COMMITTED, 2)


def test_a_group_without_commits_starts_by_policy() -> None:
    """In a group without commits, all of the topic's current partitions count as original, and the reset policy
    determines where they start.
    """
    assert start(3, {}, CURRENT_TOPIC) == Start(StartPosition.POLICY, 4)
    assert start(3, {0: StoredCommit(), 3: StoredCommit()}, CURRENT_TOPIC) == Start(StartPosition.POLICY, 4)


def test_a_partition_that_was_added_starts_at_its_beginning() -> None:
    """A third partition of a group that started with two was added later, so it is read from its beginning."""
    group = {0: stored(7), 1: stored(9)}

    assert start(2, group, CURRENT_TOPIC) == Start(StartPosition.BEGINNING, 2)
    assert start(3, {**group, 2: stored(0)}, CURRENT_TOPIC) == Start(StartPosition.BEGINNING, 2)


def test_an_original_partition_with_a_lost_offset_follows_the_policy() -> None:
    """If the offset of an original partition is lost, the reset policy determines where that partition starts,
    even if another reader of the new group has already committed.
    """
    assert start(1, {0: stored(7)}, CURRENT_TOPIC) == Start(StartPosition.POLICY, 2)


def test_commits_without_a_record_make_every_other_partition_new() -> None:
    """If any of the group's commits has no cut record, every partition without an offset counts as new and is read
    from its beginning.

    Such commits are from an older release or another tool, and reading too much loses nothing.
    """
    for text in ("", "1,rs", "hello"):
        assert start(1, {0: StoredCommit(7, text)}, CURRENT_TOPIC) == Start(StartPosition.BEGINNING, 0)
        assert start(0, {0: StoredCommit(7, text)}, CURRENT_TOPIC) == Start(StartPosition.COMMITTED, 0)
    assert start(1, {0: stored(7), 2: StoredCommit(7)}, CURRENT_TOPIC) == Start(StartPosition.BEGINNING, 0)


def test_an_offset_of_a_deleted_topic_is_ignored() -> None:
    """If the committed offset belongs to a deleted topic, the new log is read from its beginning, whatever the
    policy is.
    """
    group = {0: stored(7, "old"), 1: stored(9, "old")}

    assert start(0, group, CURRENT_TOPIC) == Start(StartPosition.BEGINNING, 0, "old")
    assert not is_known(group[0], CURRENT_TOPIC)
    assert start(2, group, CURRENT_TOPIC) == Start(StartPosition.BEGINNING, 0)
    assert start(1, {0: stored(0, partitions=0), 1: StoredCommit()}, CURRENT_TOPIC) == Start(
        StartPosition.BEGINNING, 0
    )


def test_a_recreated_topic_is_recognized_without_its_offsets() -> None:
    """A recreated topic is recognized although Apache Kafka deleted its offsets, so the group does not count as
    new.
    """
    assert start(0, {}, CURRENT_TOPIC, former="old") == Start(StartPosition.BEGINNING, 0, "old")
    assert start(0, {}, CURRENT_TOPIC, former="new").position is StartPosition.POLICY
    assert start(0, {}, TopicView(), former="old").position is StartPosition.POLICY
    assert start(0, {0: stored(7)}, CURRENT_TOPIC, former="old").position is StartPosition.COMMITTED


def test_an_offset_without_a_topic_id_is_ignored_if_a_former_topic_is_known() -> None:
    """If the id of a former topic is known, an offset without a topic id is ignored, and the log is read from its
    beginning.

    Reading too much loses nothing, whereas skipping the beginning loses messages.
    """
    assert start(0, {0: StoredCommit(7), 1: stored(9, "old")}, CURRENT_TOPIC) == Start(
        StartPosition.BEGINNING, 0, "old"
    )
    assert start(0, {0: StoredCommit(7)}, CURRENT_TOPIC, former="old") == Start(StartPosition.BEGINNING, 0, "old")
    assert start(0, {0: StoredCommit(7), 1: stored(9)}, CURRENT_TOPIC) == Start(StartPosition.COMMITTED, 0)
    assert not is_known(StoredCommit(7), CURRENT_TOPIC)
    assert is_known(StoredCommit(7), TopicView())


def test_a_response_that_would_move_the_start_is_doubtful() -> None:
    """A second request must verify a response that has no offset, or offset 0 without a cut record.

    If a reader of this group has committed offset 0, the commit has a cut record.
    """
    assert is_doubtful(StoredCommit())
    assert is_doubtful(StoredCommit(0))
    assert not is_doubtful(stored(0))
    assert not is_doubtful(StoredCommit(7))


def test_an_unknown_topic_id_contradicts_nothing() -> None:
    """An unknown topic id does not invalidate an offset, because some brokers do not report the id every time."""
    assert start(0, {0: stored(7, "old")}, TopicView()).position is StartPosition.COMMITTED
    assert start(0, {0: stored(7, "")}, CURRENT_TOPIC).position is StartPosition.COMMITTED


def test_the_first_record_counts_the_start_and_keeps_the_known_topic_id() -> None:
    """The first record of an assignment increments the number of starts, and keeps the known topic id if the
    broker does not report the id this time.
    """
    found = Record("old", 2, 3, (5,))

    assert first_record(found, "", 0) == Record("old", 2, 4)
    assert first_record(Record(), "new", 4) == Record("new", 4, 1)
