"""Where consumption of a partition starts at its assignment: docs/decisions/036-where-a-partition-starts.md.

At the group's committed offset, if that belongs to the topic as it is now. At the beginning, if the partition or
its whole topic is new to the group: no message of it was ever the group's to skip. Where the reset policy says, if
neither holds: the group begins here, or its offset was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ingest.core.cut_record import Record, decode


class Place(StrEnum):
    """Where to start."""

    COMMITTED = "committed"
    BEGINNING = "beginning"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class TopicView:
    """The topic as its brokers describe it. Another `id` is another topic of the same name; empty: unknown."""

    id: str = ""
    partitions: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """What the group has committed on a partition. `offset` None: nothing."""

    offset: int | None = None
    text: str = ""

    @property
    def record(self) -> Record:
        """What the commit says beside its offset."""
        return decode(self.offset, self.text) if self.offset is not None else Record()


@dataclass(frozen=True, slots=True)
class Start:
    """`began_with`: partitions that the topic had when the group began, to be recorded; 0: unknown.

    `replaced`: id of the topic to which the committed offset belongs; empty unless that is another topic than now.
    """

    place: Place
    began_with: int = 0
    replaced: str = ""


def is_doubtful(stored: Stored) -> bool:
    """Whether to ask a second time before anything follows from this answer: none, or 0 without a record.

    Either makes the reader start elsewhere than the group ended, and brokers gave such answers once and then the
    right one. What the group commits at 0 has a record, unless another tool or an older release wrote it.
    """
    return stored.offset is None or (stored.offset == 0 and not stored.text)


def is_known(stored: Stored, topic: TopicView) -> bool:
    """Whether the stored offset alone says where to start; otherwise `start` has to see the other partitions'."""
    named = stored.record.topic_id or not topic.id
    return stored.offset is not None and bool(named) and not _replaced(stored, topic)


def start(partition: int, group: Mapping[int, Stored], topic: TopicView, former: str = "") -> Start:
    """Where this partition starts. `group`: what is committed, by partition, of the whole topic.

    `former`: id of the topic that this process read before, if any: brokers may delete offsets with a topic.
    """
    mine = group.get(partition, Stored())
    if is_known(mine, topic):
        return Start(Place.COMMITTED, mine.record.partitions)
    elsewhere = [stored for stored in group.values() if stored.offset is not None]
    replaced = next((stored.record.topic_id for stored in elsewhere if _replaced(stored, topic)), "")
    if former and topic.id and former != topic.id:
        return Start(Place.BEGINNING, 0, mine.record.topic_id or former)
    if replaced:
        unnamed = replaced if mine.offset is not None else ""
        return Start(Place.BEGINNING, 0, mine.record.topic_id or unnamed)
    if mine.offset is not None:
        return Start(Place.COMMITTED, mine.record.partitions)
    if not elsewhere:
        return Start(Place.POLICY, topic.partitions)
    began_with = min(stored.record.partitions for stored in elsewhere)
    return Start(Place.BEGINNING if partition >= began_with else Place.POLICY, began_with)


def _replaced(stored: Stored, topic: TopicView) -> bool:
    recorded = stored.record.topic_id
    return bool(topic.id and recorded and recorded != topic.id)


def first_record(found: Record, topic_id: str, began_with: int) -> Record:
    """What the first commit of an assignment says, after `found`: one more start, and the topic if it is known."""
    return found._replace(
        topic_id=topic_id or found.topic_id,
        partitions=began_with or found.partitions,
        starts=found.starts + 1,
        stops=(),
    )
