"""Every setting of the reader, typed, with unit, bounds and why. The fleet's come with it by inheritance."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.loading import SettingsError, load_strictly
from tasks.settings import ENV_PREFIX, not_above
from tasks.settings import Settings as FleetSettings
from tasks.units import KiB, MiB

__all__ = ["Settings", "SettingsError", "load"]


CLASSIC_OPTIONS = frozenset(("heartbeat.interval.ms",))
"""librdkafka's properties that the protocol consumer has no use for, and refuses."""


class GroupProtocol(StrEnum):
    """How the consumer group agrees on who reads what."""

    CLASSIC = "classic"
    CONSUMER = "consumer"


class Settings(FleetSettings):
    """What `replays-ingest` needs to know."""

    # Kafka consumer group
    kafka_group: str = Field("replays-ingest", min_length=1, description="Consumer group.")
    kafka_instance_id: str = Field(
        "",
        description="group.instance.id: static membership, so that a rolling restart moves no partition. A reader "
        "that dies in a rebalance can leave a partition without an owner for "
        "REPLAYS_KAFKA_UNOWNED_SECONDS_MAX, and the partitions of one that does not come back wait for the "
        "session time-out.",
    )
    kafka_group_protocol: GroupProtocol = Field(
        GroupProtocol.CLASSIC,
        description="group.protocol. consumer is KIP-848, for Apache Kafka 4 and later: the brokers assign "
        "partitions, and the session time-out is theirs (group.consumer.session.timeout.ms).",
    )
    kafka_session_timeout_seconds: float = Field(
        30.0,
        ge=1,
        le=1800,
        description="session.timeout.ms, under the protocol classic. The drain deadline must be shorter.",
    )
    kafka_max_poll_interval_seconds: float = Field(
        300.0,
        ge=10,
        le=86_400,
        description="max.poll.interval.ms: a loop that does not poll for this long loses its partitions. Under "
        "the protocol consumer the drain deadline must be shorter; under classic it is at least the session "
        "time-out.",
    )
    kafka_metadata_refresh_seconds: float = Field(
        30.0,
        ge=1,
        le=240,
        description="topic.metadata.refresh.interval.ms: how soon partitions that were added are noticed.",
    )
    kafka_offset_reset: Literal["earliest", "latest", "error"] = Field(
        "earliest",
        description="Where to start when the committed offset was lost or is not in the log, and where a group "
        "without commits begins. A partition that is new to its group, or whose topic was created again, starts "
        "at its beginning whatever this says.",
    )
    kafka_unowned_seconds_max: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="A partition without an owner for this long, in a group that does not rebalance, makes a "
        "reader join the group again. It can only happen to static members (REPLAYS_KAFKA_INSTANCE_ID) under the "
        "classic protocol.",
    )
    kafka_queued_bytes_max: int = Field(
        32 * MiB, ge=1 * MiB, le=1024 * MiB, description="What librdkafka may prefetch."
    )

    # Batches
    batch_messages_max: int = Field(1000, ge=1, le=100_000, description="Messages in a batch.")
    batch_bytes_max: int = Field(16 * MiB, ge=64 * KiB, le=256 * MiB, description="Staged bytes that end a batch.")
    staged_bytes_max: int = Field(
        32 * MiB,
        ge=64 * KiB,
        le=256 * MiB,
        description="Staged bytes that no batch exceeds, a single message aside: recordings, rows, and the keys "
        "and headers of dead letters. A recorded batch that would exceed it is cut again, smaller. Keep it below "
        "a fifth of Redis' maxmemory.",
    )
    batch_age_seconds_max: float = Field(2.0, gt=0, le=600, description="How long a batch stays open.")
    batch_age_idle_seconds: float = Field(
        0.5,
        gt=0,
        le=600,
        description="Age at which a batch is cut while the reader has no batch in flight. Not below "
        "REPLAYS_BATCH_AGE_SECONDS_MAX: batches are never cut early.",
    )
    early_cuts_per_second_max: float = Field(
        8.0,
        gt=0,
        le=1000,
        description="Maximum early cuts (REPLAYS_BATCH_AGE_IDLE_SECONDS) per second and reader. Each cut is a "
        "part per ClickHouse table: lower it if ClickHouse reports too many parts.",
    )
    in_flight_batches_max: int = Field(16, ge=1, le=1024, description="Batches cut and not yet settled.")
    in_flight_bytes_max: int = Field(
        128 * MiB, ge=1 * MiB, le=16 * 1024 * MiB, description="Bytes of open and unsettled batches."
    )

    pause_after_seconds: float = Field(
        0.5,
        ge=0,
        le=60,
        description="How long one of these bounds is reached before the consumer pauses. Until then the reader "
        "only stops polling: a pause throws prefetched messages away, and they are fetched again.",
    )
    pending_ranges_max: int = Field(
        512,
        ge=8,
        le=100_000,
        description="Batches of one partition behind one that does not settle; then no more of it is fetched. "
        "A crash reads so many again, and the cut record has to hold their ends.",
    )

    # Deadlines and retries of batches
    flush_deadline_seconds: float = Field(
        120.0, ge=1, le=3600, description="A chord that is not heard of for this long is started again."
    )
    drain_deadline_seconds: float = Field(
        20.0, ge=0.1, le=600, description="How long a revocation or SIGTERM waits for batches in flight."
    )
    retry_backoff_seconds: float = Field(5.0, gt=0, le=600, description="First wait before a batch's retry.")
    retry_backoff_seconds_max: float = Field(60.0, gt=0, le=3600, description="Longest wait before it.")
    undispatched_seconds_max: float = Field(
        15.0,
        gt=0,
        le=600,
        description="Longest wait before a batch is tried again that Redis did not take. Short: once Redis is "
        "back, nothing moves for up to this long.",
    )

    # Commits, and the batch boundaries (the cut record) that Kafka stores with them
    commit_interval_seconds: float = Field(0.5, ge=0.01, le=60, description="Shortest time between commits.")
    commit_answer_seconds_max: float = Field(
        10.0,
        ge=1,
        le=300,
        description="A commit without an answer for this long is given up, the next one says the same or more. "
        "Raise it for brokers that are slow to answer, not for safety.",
    )
    cut_record_seconds_max: float = Field(
        5.0,
        ge=0,
        le=300,
        description="How long a batch waits for its boundary to be recorded before it is flushed all the same. "
        "Then a crash may cut elsewhere, and what was flushed is written again under another batch id.",
    )
    cut_record_bytes_max: int = Field(
        4000,
        ge=64,
        le=65_536,
        description="Longest cut record, an end taking about three bytes; what does not fit is left out. A record "
        "that the brokers refuse (offset.metadata.max.bytes, 4096 unless set) is followed by a shorter one.",
    )
    plan_seconds_max: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="How long the reader waits at the end of a partition for the rest of a batch that a "
        "predecessor had cut; then the batch is cut as it is. Only time in which the partition is fetched counts.",
    )

    # Dead letters
    reject_ratio_max: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Share of the projects among the last reject_window messages. When the messages of more "
        "projects than this are mostly rejects, the reader halts: a deploy is bad. 1: never.",
    )
    reject_projects_min: int = Field(
        3,
        ge=1,
        le=100_000,
        description="Fewer projects than this never halt a reader by reject_ratio_max, so that no single project "
        "can halt it for the others. 1 suits an installation with one project.",
    )
    reject_unattributed_ratio_max: float = Field(
        0.1,
        gt=0,
        le=1,
        description="More rejects than this share of the last reject_window messages that name no project: halt.",
    )
    reject_window: int = Field(1000, ge=10, le=1_000_000, description="Messages that rejects are counted over.")
    reject_policy: Literal["dead_letter", "drop"] = Field(
        "dead_letter",
        description="What becomes of the rejects of a project that is shed because most of its messages are "
        "rejects: dead_letter keeps them, drop counts them and loses them.",
    )

    # Parsing
    message_bytes_max: int = Field(16 * MiB, ge=1 * KiB, le=256 * MiB, description="A larger message: reject.")
    inflated_bytes_max: int = Field(
        100 * MiB, ge=1 * MiB, le=1024 * MiB, description="A segment that inflates to more: reject."
    )
    clicks_per_segment_max: int = Field(20, ge=0, le=10_000, description="Clicks kept of a segment.")
    taps_per_segment_max: int = Field(20, ge=0, le=10_000, description="Taps kept of a segment.")
    facts_per_segment_max: int = Field(
        2000,
        ge=1,
        le=100_000,
        description="BigQuery facts kept of a segment: bounds what one hostile recording can make of rows.",
    )
    rows_bytes_max: int = Field(
        4 * MiB,
        ge=64 * 1024,
        le=256 * MiB,
        description="Bytes of rows and metrics kept of a segment; the rest is left out (warning rows_over_limit).",
    )
    sample_segment_rate: float = Field(
        1 / 500, ge=0, le=1, description="Share of segments whose canvas, mutation and option facts are kept."
    )
    sample_event_rate: float = Field(
        0.002, ge=0, le=1, description="Share of multi clicks and rage clicks that become BigQuery facts."
    )
    parse_processes: int = Field(0, ge=0, le=64, description="Processes that parse; 0: in the reader itself.")
    parse_usual_bytes_max: int = Field(
        8 * MiB,
        ge=64 * KiB,
        le=1024 * MiB,
        description="A segment that inflates to more, or that takes more than a few milliseconds to read, is "
        "parsed in a child process with limits on memory and CPU time; the reader goes on with other partitions.",
    )

    # Surface
    http_host: str = Field("127.0.0.1", description="Address of /livez, /readyz and /metrics.")
    http_port: int = Field(9464, ge=0, le=65535, description="Its port; 0: a free one.")
    loop_silent_seconds_max: float = Field(
        60.0,
        ge=6,
        le=3600,
        description="A loop that stands still for this long fails /livez, stacks are logged. A message is "
        "rejected when parsing it in a child process takes a sixth of this in CPU time, or twice 40 % of it by "
        "the clock.",
    )

    @model_validator(mode="after")
    def _partitions_are_drained_before_they_move(self) -> Self:
        if self.kafka_group_protocol is GroupProtocol.CLASSIC:
            name, seconds = "kafka_session_timeout_seconds", self.kafka_session_timeout_seconds
        else:
            name, seconds = "kafka_max_poll_interval_seconds", self.kafka_max_poll_interval_seconds
        if self.drain_deadline_seconds >= seconds:
            raise ValueError(
                f"{_variable('drain_deadline_seconds')}={self.drain_deadline_seconds:g} is not shorter than "
                f"{_variable(name)}={seconds:g}: the group would take partitions away before they are drained; "
                "lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _bounds_fit_together(self) -> Self:
        not_above(self, "retry_backoff_seconds", "retry_backoff_seconds_max")
        not_above(self, "batch_bytes_max", "in_flight_bytes_max")
        if self.flush_deadline_seconds >= self.staged_ttl_seconds:
            raise ValueError(
                f"{_variable('flush_deadline_seconds')}={self.flush_deadline_seconds:g} is not below "
                f"{_variable('staged_ttl_seconds')}={self.staged_ttl_seconds}: staged bytes would expire before "
                "their batch is tried again; lower the first or raise the second far above it"
            )
        return self

    @model_validator(mode="after")
    def _kafka_options_fit_the_protocol(self) -> Self:
        conflicts = sorted(CLASSIC_OPTIONS & self.kafka_options.keys())
        if self.kafka_group_protocol is GroupProtocol.CONSUMER and conflicts:
            raise ValueError(
                f"{_variable('kafka_options')}: {', '.join(conflicts)} cannot be set with "
                f"{_variable('kafka_group_protocol')}=consumer: the brokers decide on it"
            )
        return self


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def load() -> Settings:
    """The reader's settings from environment and file. Raises SettingsError, whose text is for the operator."""
    return load_strictly(Settings)
