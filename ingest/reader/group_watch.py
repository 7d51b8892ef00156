"""A thread that looks at the topic and its consumer group, and makes this reader join again when it has to.

That is when a partition has no owner (how a stable group can leave one to nobody is in `ingest.core.ownership`,
which decides), and when the topic was deleted and created again while this reader had partitions of it, which the
group may never notice. This asks the brokers, keeps the gauge for the alert, and orders the consumer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

import structlog

from ingest.core.ownership import GroupView, Ownership
from ingest.core.starting import TopicView
from ingest.observe.metrics import Metrics
from ingest.settings import Settings
from tasks.kafka.cluster import Cluster, ClusterError
from tasks.observe.loops import Loop

LOOKS_PER_BOUND = 3
LOOK_SECONDS_MAX = 10.0

log = structlog.get_logger(__name__)


class Membership(Protocol):
    """The consumer, as far as its group is concerned."""

    @property
    def member_id(self) -> str:
        """As the coordinator knows it; empty before the first assignment. Any thread."""

    @property
    def topic_id(self) -> str:
        """Of the topic whose partitions it reads; empty before the first assignment. Any thread."""

    def rejoin(self) -> None:
        """Asks the loop to give everything back and to join again. Returns at once; any thread."""


class GroupWatch:
    """Looks several times per `kafka_unowned_seconds_max`. It never blocks the loop."""

    def __init__(self, settings: Settings, metrics: Metrics, membership: Membership) -> None:
        self._settings = settings
        self._metrics = metrics
        self._membership = membership
        self._cluster = Cluster(settings)
        self._ownership = Ownership(settings.kafka_unowned_seconds_max)
        self._reported: tuple[int, ...] = ()
        self._trouble = ""
        # Partition without an owner, as last seen -> its lag in messages, -1 where that is unknown. Any thread.
        self.unowned: Mapping[int, int] = {}
        seconds = min(LOOK_SECONDS_MAX, settings.kafka_unowned_seconds_max / LOOKS_PER_BOUND)
        self.loop = Loop("group-watch", self.look, seconds, on_failure=metrics.loop_failed)

    def start(self) -> None:
        """Starts the thread. The brokers need not answer."""
        self.loop.start()

    def stop(self) -> None:
        """Ends the thread, unless a call to the brokers holds it up; then it ends with the process."""
        self.loop.stop(deadline_seconds=1.0)

    def look(self) -> None:
        """Once. What the brokers refuse to say is logged when it changes, never raised."""
        topic = self._settings.kafka_topic
        try:
            described = self._cluster.topic(topic)
            group = self._cluster.group(self._settings.kafka_group, topic)
        except ClusterError as failure:
            if str(failure) != self._trouble:
                self._trouble = str(failure)
                log.warning("group_not_described", error=self._trouble)
            return
        self._trouble = ""
        self._compare(described.id)
        view = GroupView(
            described.partitions, {member.id: member.partitions for member in group.members}, group.stable
        )
        self._metrics.meters.set("replays.reader.partitions_unowned", len(view.unowned))
        self.unowned = self._cluster.lag(self._settings.kafka_group, topic, view.unowned)
        if view.unowned != self._reported:
            self._reported = view.unowned
            if view.unowned:
                log.error("partitions_without_owner", topic=topic, partitions=list(view.unowned))
        if self._ownership.must_rejoin(view, self._membership.member_id, time.monotonic()):
            log.error("rejoining_group", reason="partitions without an owner", partitions=list(view.unowned))
            self._metrics.meters.count("replays.reader.group_rejoins")
            self._membership.rejoin()

    def _compare(self, topic_id: str) -> None:
        """Joining again makes the consumer find out where to start, and `topic_recreated` says where."""
        read = self._membership.topic_id
        if read and topic_id and topic_id != read:
            log.error("rejoining_group", reason="the topic was created again", former=read, now=topic_id)
            self._metrics.meters.count("replays.reader.group_rejoins")
            self._membership.rejoin()


class TopicDescriber:
    """What the brokers say about the topic now. A view without content when they do not answer."""

    def __init__(self, settings: Settings) -> None:
        self._cluster = Cluster(settings)
        self._topic = settings.kafka_topic
        self._trouble = ""

    def __call__(self) -> TopicView:
        """One request, bounded. A refusal is logged when it changes."""
        try:
            found = self._cluster.topic(self._topic)
        except ClusterError as failure:
            if str(failure) != self._trouble:
                self._trouble = str(failure)
                log.warning("topic_not_described", error=self._trouble)
            return TopicView()
        self._trouble = ""
        return TopicView(found.id, found.partitions)
