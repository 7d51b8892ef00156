"""If the topic is recreated while a reader runs, the reader rejoins its group. If the topic id is unchanged or
unknown, the reader does not rejoin.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ingest.observe.metrics import Metrics
from ingest.reader.group_watch import GroupWatch
from ingest.settings import Settings
from tasks.kafka.cluster import ClusterError, Group, Topic


class Member:
    """A consumer with the interface that the watch uses."""

    member_id = "m"

    def __init__(self, topic_id: str) -> None:
        self.topic_id = topic_id
        self.rejoins = 0

    def rejoin(self) -> None:
        self.rejoins += 1


class Brokers:
    """Brokers that describe one topic, or do not respond."""

    def __init__(self, topic_id: str | None) -> None:
        self._topic_id = topic_id

    def topic(self, name: str) -> Topic:
        if self._topic_id is None:
            raise ClusterError("no answer")
        return Topic(self._topic_id, 4)

    def group(self, name: str, topic: str) -> Group:
        return Group("stable", True, ())

    def lag(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 0)


@pytest.mark.parametrize(
    ("read", "now", "rejoins"),
    [("old", "new", 1), ("old", "old", 0), ("", "new", 0), ("old", "", 0), ("old", None, 0)],
)
def test_another_topic_id_makes_the_reader_rejoin(read: str, now: str | None, rejoins: int) -> None:
    """If the topic id changes, the reader rejoins, and at the next assignment it reads the new log from its
    beginning.
    """
    settings, member = Settings(), Member(read)
    metrics = Metrics(settings)
    watch = GroupWatch(settings, metrics, member)
    watch._cluster = Brokers(now)  # type: ignore[assignment]

    watch.check()

    assert member.rejoins == rejoins
    assert metrics.total("replays.reader.group_rejoins") == rejoins
