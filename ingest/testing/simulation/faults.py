"""Faults of the simulated world, their probabilities, and the random streams that determine when they occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from random import Random

from ingest.testing.simulation.clock import Timeline


class Fault(StrEnum):
    """All kinds of faults. A seed enables about half of the faults (swarm testing)."""

    COMMIT_REFUSED = "commit_refused"  # the broker refuses one commit
    COMMIT_UNANSWERED = "commit_unanswered"  # the commit is stored, but the response is lost
    COMMIT_VANISHED = "commit_vanished"  # the commit is not stored, and there is no response
    COMMIT_SLOW = "commit_slow"
    RECORD_LOST = "record_lost"  # the offset is stored without its metadata, as if committed by another client
    RETENTION = "retention"  # messages expire before they are read
    READER_CRASH = "reader_crash"
    READER_CRASH_MIDWAY = "reader_crash_midway"  # the reader is killed between two commands of one decision
    READER_FROZEN = "reader_frozen"  # the reader gets SIGSTOP, and SIGCONT after its session has timed out
    READER_STOP = "reader_stop"  # the reader gets SIGTERM, and a new one starts some time later
    BAD_RELEASE = "bad_release"  # the parser of a release rejects everything, and the release is rolled back later
    SHEDDING = "shedding"  # a reader drops the messages of a project on purpose
    REDIS_WIPED = "redis_wiped"  # Redis restarts empty
    REDIS_DOWN = "redis_down"  # Redis is unavailable for a while, without data loss
    STAGING_REFUSED = "staging_refused"  # Redis is at its memory limit
    STAGING_TOO_LARGE = "staging_too_large"  # a batch is permanently too large for this Redis
    STAGED_EVICTED = "staged_evicted"  # the hash of one batch disappears, including its marks
    PARTIALLY_PUBLISHED = "published_half"  # some tasks of the chord are sent, then the connection breaks
    TASK_LOST = "task_lost"
    TASK_DUPLICATED = "task_doubled"
    WORKER_KILLED = "worker_killed"  # a worker is killed before or after its write, or after the mark
    WORKER_ZOMBIE = "worker_zombie"  # a worker writes its payload long after the chord was abandoned
    BODY_LOST = "body_lost"
    BODY_EARLY = "body_early"  # the chord's body runs before all tasks are done
    COMPLETION_LOST = "completion_lost"
    COMPLETION_LATE = "completion_late"
    COMPLETION_DUPLICATED = "completion_doubled"
    SINK_TRANSIENT = "sink_transient"
    SINK_REPLY_LOST = "sink_reply_lost"  # the sink writes, but the response is lost
    SINK_OUTAGE = "sink_outage"  # one sink fails for a while
    SINK_MISCONFIGURED = "sink_misconfigured"  # one sink refuses every item for a while
    OPERATOR_RETRY = "operator_retry"
    OPERATOR_ABANDON = "operator_abandon"
    REPLICA_BEHIND = "replica_behind"  # for a while, the newest messages of a log are not fetched
    KILLED_AMID_REBALANCE = "killed_amid_rebalance"  # a reader is killed in the callback that revokes partitions
    DISCARD_LOST = "discard_lost"  # the entry of a settled batch is not removed, because Redis is unavailable
    COMMIT_STALE_EPOCH = "commit_stale_epoch"  # a commit has a stale member epoch
    FETCH_STALE_EPOCH = "fetch_stale_epoch"  # a request for committed offsets has a stale epoch
    RECORD_REFUSED = "record_refused"  # the brokers store only short metadata
    PARTITION_ADDED = "partition_added"
    OFFSET_READ_NONE = "offset_read_none"  # one response of the brokers contains no committed offset
    OFFSET_READ_ZERO = "offset_read_zero"  # one response of the brokers contains offset 0 and no cut record
    FETCH_EMPTY = "fetch_empty"  # fetches of a partition return nothing until its next assignment
    COMMIT_LOST = "commit_lost"  # a commit is acknowledged but not stored
    CLOCK_SKEW = "clocks_apart"  # a reader's clock is up to a minute off
    TOPIC_RECREATED = "topic_recreated"  # the topic is deleted and created again while readers run


RATES: dict[Fault, float] = {
    Fault.COMMIT_REFUSED: 0.15,
    Fault.COMMIT_UNANSWERED: 0.05,
    Fault.COMMIT_VANISHED: 0.05,
    Fault.COMMIT_SLOW: 0.1,
    Fault.RECORD_LOST: 0.02,
    Fault.RETENTION: 0.03,
    Fault.READER_CRASH: 0.04,
    Fault.READER_CRASH_MIDWAY: 0.01,
    Fault.READER_FROZEN: 0.02,
    Fault.READER_STOP: 0.03,
    Fault.BAD_RELEASE: 0.5,
    Fault.SHEDDING: 0.5,
    Fault.REDIS_WIPED: 0.03,
    Fault.REDIS_DOWN: 0.04,
    Fault.STAGING_REFUSED: 0.1,
    Fault.STAGING_TOO_LARGE: 0.05,
    Fault.STAGED_EVICTED: 0.05,
    Fault.PARTIALLY_PUBLISHED: 0.05,
    Fault.TASK_LOST: 0.03,
    Fault.TASK_DUPLICATED: 0.1,
    Fault.WORKER_KILLED: 0.05,
    Fault.WORKER_ZOMBIE: 0.02,
    Fault.BODY_LOST: 0.06,
    Fault.BODY_EARLY: 0.15,
    Fault.DISCARD_LOST: 0.2,
    Fault.COMPLETION_LOST: 0.05,
    Fault.COMPLETION_LATE: 0.1,
    Fault.COMPLETION_DUPLICATED: 0.1,
    Fault.SINK_TRANSIENT: 0.15,
    Fault.SINK_REPLY_LOST: 0.1,
    Fault.SINK_OUTAGE: 0.05,
    Fault.SINK_MISCONFIGURED: 0.03,
    Fault.OPERATOR_RETRY: 0.2,
    Fault.OPERATOR_ABANDON: 0.05,
    Fault.KILLED_AMID_REBALANCE: 0.7,
    Fault.REPLICA_BEHIND: 0.5,
    Fault.COMMIT_STALE_EPOCH: 0.05,
    Fault.FETCH_STALE_EPOCH: 0.2,
    Fault.RECORD_REFUSED: 0.4,
    Fault.PARTITION_ADDED: 0.05,
    Fault.OFFSET_READ_NONE: 0.2,
    Fault.OFFSET_READ_ZERO: 0.2,
    Fault.FETCH_EMPTY: 0.2,
    Fault.COMMIT_LOST: 0.05,
    Fault.CLOCK_SKEW: 0.5,
    Fault.TOPIC_RECREATED: 0.05,
}
"""Probability per opportunity: a commit, a task, or half a second, depending on the fault."""


class Dice:
    """One random stream per kind of fault, so that disabling a kind does not change the others."""

    def __init__(self, seed: int, faults: Iterable[Fault], timeline: Timeline, faults_end_at: float) -> None:
        self.struck: Counter[Fault] = Counter()
        self.faults_end_at = faults_end_at
        self._timeline = timeline
        self._streams = {fault: Random(f"{seed}/{fault.value}") for fault in faults}
        self._latency = Random(f"{seed}/latency")

    def occurs(self, fault: Fault) -> bool:
        """Returns whether this fault occurs at this opportunity. The result is always False after
        `faults_end_at`.
        """
        if self._timeline.now >= self.faults_end_at:
            return False
        stream = self._streams.get(fault)
        if stream is None or stream.random() >= RATES[fault]:
            return False
        self.struck[fault] += 1
        return True

    def pick(self, fault: Fault, count: int) -> int:
        """Returns a random index below `count`, which selects the target of the fault."""
        return int(self._streams[fault].random() * count)

    def uniform(self, low: float, high: float) -> float:
        """Returns a random value for fault-free operation, such as a latency."""
        return low + (high - low) * self._latency.random()
