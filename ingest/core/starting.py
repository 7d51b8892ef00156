"""Decides where consumption of an assigned partition starts: docs/decisions/036-where-a-partition-starts.md.

Consumption starts at the group's committed offset if that offset belongs to the current topic, and at the
beginning if the partition or its topic is new to the group. Otherwise the group is new or its offset was lost, and
the reset policy applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ingest.core.cut_record import Record, decode


class StartPosition(StrEnum):
    """Where consumption of a partition may start."""

    COMMITTED = "committed"
    BEGINNING = "beginning"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class TopicView:
    """The topic as described by its brokers. A different `id` means a different topic with the same name; `id` is
    empty if unknown."""

    id: str = ""
    partitions: int = 0


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """The group's committed offset for a partition, with its metadata. `offset` is None if nothing is
    committed."""

    offset: int | None = None
    text: str = ""

    @property
    def record(self) -> Record:
        """The parsed metadata of the commit."""
        return decode(self.offset, self.text) if self.offset is not None else Record()


@dataclass(frozen=True, slots=True)
class Start:
    """`partitions_at_start`: number of partitions when the group started, for the record of the first commit; 0 if
    unknown.

    `replaced`: id of the topic to which the committed offset belongs, if that is not the current topic.
    """

    position: StartPosition
    partitions_at_start: int = 0
    replaced: str = ""


def is_doubtful(stored: StoredCommit) -> bool:
    """Returns True if a second request must verify this response: it has no offset, or offset 0 without a record.

    If either response were wrong, the reader would start at a wrong position, and brokers have been seen to return
    such a response once before the correct one. A commit of offset 0 has a record, unless another tool or an older
    release wrote the commit.
    """
    return stored.offset is None or (stored.offset == 0 and not stored.text)


def is_known(stored: StoredCommit, topic: TopicView) -> bool:
    """Returns True if the stored offset alone determines the start; otherwise `start` needs the commits of the
    other partitions."""
    named = stored.record.topic_id or not topic.id
    return stored.offset is not None and bool(named) and not _is_recreated(stored, topic)


def start(partition: int, group: Mapping[int, StoredCommit], topic: TopicView, former: str = "") -> Start:
    """Returns where this partition starts. `group`: the group's commits for the whole topic, by partition.

    `former`: id of the topic that this process read before, if any. It is needed because brokers may delete a
    topic's committed offsets together with the topic.
    """
    commit = group.get(partition, StoredCommit())
    if is_known(commit, topic):
        return Start(StartPosition.COMMITTED, commit.record.partitions)
    with_offset = [stored for stored in group.values() if stored.offset is not None]
    replaced = next((stored.record.topic_id for stored in with_offset if _is_recreated(stored, topic)), "")
    if former and topic.id and former != topic.id:
        return Start(StartPosition.BEGINNING, 0, commit.record.topic_id or former)
    if replaced:
        unnamed = replaced if commit.offset is not None else ""
        return Start(StartPosition.BEGINNING, 0, commit.record.topic_id or unnamed)
    if commit.offset is not None:
        return Start(StartPosition.COMMITTED, commit.record.partitions)
    if not with_offset:
        return Start(StartPosition.POLICY, topic.partitions)
    partitions_at_start = min(stored.record.partitions for stored in with_offset)
    return Start(
        StartPosition.BEGINNING if partition >= partitions_at_start else StartPosition.POLICY, partitions_at_start
    )


def _is_recreated(stored: StoredCommit, topic: TopicView) -> bool:
    recorded = stored.record.topic_id
    return bool(topic.id and recorded and recorded != topic.id)


def first_record(found: Record, topic_id: str, partitions_at_start: int) -> Record:
    """Returns the record for the first commit of an assignment: `found` with its number of starts incremented, and
    with the topic if it is known."""
    return found._replace(
        topic_id=topic_id or found.topic_id,
        partitions=partitions_at_start or found.partitions,
        starts=found.starts + 1,
        stops=(),
    )
