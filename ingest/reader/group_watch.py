"""Watches the topic and its consumer group from a thread.

This reader rejoins the group if a partition has no owner (decided by `ingest.core.ownership`). This reader also
rejoins if the topic was recreated while this reader owned partitions of it, because brokers may not start a
rebalance in that case.
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

CHECKS_PER_LIMIT = 3
CHECK_SECONDS_MAX = 10.0

log = structlog.get_logger(__name__)


class Membership(Protocol):
    """The interface that `GroupWatch` requires of the consumer: its membership in the group."""

    @property
    def member_id(self) -> str:
        """Id of this member in the group; empty before the first assignment. This property is thread-safe."""

    @property
    def topic_id(self) -> str:
        """Id of the topic being read; empty before the first assignment. This property is thread-safe."""

    def rejoin(self) -> None:
        """Makes the loop release all partitions and rejoin. Returns immediately. This method is thread-safe."""


class GroupWatch:
    """Checks the group several times per `kafka_unowned_seconds_max`, without blocking the loop."""

    def __init__(self, settings: Settings, metrics: Metrics, membership: Membership) -> None:
        self._settings = settings
        self._metrics = metrics
        self._membership = membership
        self._cluster = Cluster(settings)
        self._ownership = Ownership(settings.kafka_unowned_seconds_max)
        self._reported: tuple[int, ...] = ()
        self._last_error = ""
        # Partitions without an owner -> lag in messages, -1 if unknown. Any thread may read this.
        self.unowned: Mapping[int, int] = {}
        seconds = min(CHECK_SECONDS_MAX, settings.kafka_unowned_seconds_max / CHECKS_PER_LIMIT)
        self.loop = Loop("group-watch", self.check, seconds, on_failure=metrics.loop_failed)

    def start(self) -> None:
        """Starts the thread. Brokers need not be reachable."""
        self.loop.start()

    def stop(self) -> None:
        """Ends the thread; a thread that is blocked in a broker call ends with the process."""
        self.loop.stop(deadline_seconds=1.0)

    def check(self) -> None:
        """Checks once. Broker errors are logged when they change, and are never raised."""
        topic = self._settings.kafka_topic
        try:
            described = self._cluster.topic(topic)
            group = self._cluster.group(self._settings.kafka_group, topic)
        except ClusterError as failure:
            if str(failure) != self._last_error:
                self._last_error = str(failure)
                log.warning("group_not_described", error=self._last_error)
            return
        self._last_error = ""
        self._check_topic(described.id)
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

    def _check_topic(self, topic_id: str) -> None:
        """Rejoins if the topic was recreated. The consumer then determines its start offset again,
        and logs `topic_recreated`."""
        read = self._membership.topic_id
        if read and topic_id and topic_id != read:
            log.error("rejoining_group", reason="the topic was created again", former=read, now=topic_id)
            self._metrics.meters.count("replays.reader.group_rejoins")
            self._membership.rejoin()


class TopicDescriber:
    """Requests a description of the topic from the brokers."""

    def __init__(self, settings: Settings) -> None:
        self._cluster = Cluster(settings)
        self._topic = settings.kafka_topic
        self._last_error = ""

    def __call__(self) -> TopicView:
        """Makes one request with a timeout. On failure, returns an empty view and logs the error if it is new."""
        try:
            found = self._cluster.topic(self._topic)
        except ClusterError as failure:
            if str(failure) != self._last_error:
                self._last_error = str(failure)
                log.warning("topic_not_described", error=self._last_error)
            return TopicView()
        self._last_error = ""
        return TopicView(found.id, found.partitions)
