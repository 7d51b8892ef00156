"""Reader settings, with units and limits, including those that readers and workers share."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from tasks.loading import SettingsError, load_strictly
from tasks.settings import ENV_PREFIX, ensure_not_above
from tasks.settings import Settings as FleetSettings
from tasks.units import KiB, MiB

__all__ = ["Settings", "SettingsError", "load"]


CLASSIC_OPTIONS = frozenset(("heartbeat.interval.ms",))
"""librdkafka properties that `group.protocol=consumer` does not accept."""


class GroupProtocol(StrEnum):
    """Kafka's group rebalance protocol."""

    CLASSIC = "classic"
    CONSUMER = "consumer"


class Settings(FleetSettings):
    """Settings of the reader and of all commands."""

    _from_local_stack: bool = PrivateAttr(default=False)

    # Kafka consumer group
    kafka_group: str = Field("replays-ingest", min_length=1, description="Consumer group.")
    kafka_instance_id: str = Field(
        "",
        description="group.instance.id: enables static membership, so that a rolling restart moves no "
        "partitions. A reader that dies during a rebalance can leave a partition without an owner for "
        "REPLAYS_KAFKA_UNOWNED_SECONDS_MAX. If a reader does not return, its partitions are reassigned only "
        "after the session timeout.",
    )
    kafka_group_protocol: GroupProtocol = Field(
        GroupProtocol.CLASSIC,
        description="group.protocol. `consumer` selects the KIP-848 protocol and needs Apache Kafka 4 or later: "
        "brokers assign the partitions and set the session timeout (group.consumer.session.timeout.ms).",
    )
    kafka_session_timeout_seconds: float = Field(
        30.0,
        ge=1,
        le=1800,
        description="session.timeout.ms, with the classic protocol. Must exceed REPLAYS_DRAIN_DEADLINE_SECONDS.",
    )
    kafka_max_poll_interval_seconds: float = Field(
        90.0,
        ge=10,
        le=86_400,
        description="max.poll.interval.ms: a reader that does not poll for this long loses its partitions. "
        "This is also the rebalance timeout: a member that has not rejoined by then is removed from the group. "
        "With the consumer protocol, it must exceed REPLAYS_DRAIN_DEADLINE_SECONDS; with the classic protocol, "
        "it must be at least the session timeout.",
    )
    kafka_metadata_refresh_seconds: float = Field(
        30.0,
        ge=1,
        le=240,
        description="topic.metadata.refresh.interval.ms: maximum delay before added partitions are discovered.",
    )
    kafka_offset_reset: Literal["earliest", "latest", "error"] = Field(
        "earliest",
        description="Start position if the committed offset is lost or no longer in the log, and for a "
        "group without commits. A partition that is new to its group, or whose topic was recreated, always "
        "starts at its beginning.",
    )
    kafka_unowned_seconds_max: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="Maximum time that a partition may have no owner while the group is stable; a reader "
        "then rejoins to force a rebalance. This occurs only with static members (REPLAYS_KAFKA_INSTANCE_ID) and "
        "the classic protocol.",
    )
    kafka_queued_bytes_max: int = Field(
        32 * MiB, ge=1 * MiB, le=1024 * MiB, description="Maximum bytes that librdkafka prefetches."
    )

    # Batches
    batch_messages_max: int = Field(1000, ge=1, le=100_000, description="Maximum number of messages per batch.")
    batch_bytes_max: int = Field(
        16 * MiB, ge=64 * KiB, le=256 * MiB, description="Staged bytes at which a batch is cut."
    )
    staged_bytes_max: int = Field(
        32 * MiB,
        ge=64 * KiB,
        le=256 * MiB,
        description="Maximum staged bytes per batch: recordings, rows, and keys and headers of dead letters. "
        "Only a batch of a single message may exceed it. A recorded batch that would exceed it is cut into "
        "smaller batches. Keep this value below a fifth of the maxmemory of Redis.",
    )
    batch_age_seconds_max: float = Field(2.0, gt=0, le=600, description="Age at which an open batch is cut.")
    batch_age_idle_seconds: float = Field(
        0.5,
        gt=0,
        le=600,
        description="Age at which a batch is cut while fewer than REPLAYS_EARLY_CUT_IN_FLIGHT_MAX batches are in "
        "flight and none is parked. "
        "If it is not below REPLAYS_BATCH_AGE_SECONDS_MAX, there are no early cuts.",
    )
    early_cuts_per_second_max: float = Field(
        8.0,
        gt=0,
        le=1000,
        description="Maximum number of early cuts (REPLAYS_BATCH_AGE_IDLE_SECONDS) that a reader makes per "
        "second. Each cut creates one part in every ClickHouse table. Lower this value if ClickHouse reports too "
        "many parts.",
    )
    early_cut_in_flight_max: int = Field(
        4,
        ge=1,
        le=1024,
        description="Batches are cut early (REPLAYS_BATCH_AGE_IDLE_SECONDS) only while fewer than this number of "
        "batches are in flight.",
    )
    in_flight_batches_max: int = Field(
        16, ge=1, le=1024, description="Maximum number of batches that are cut but not yet settled."
    )
    in_flight_bytes_max: int = Field(
        128 * MiB, ge=1 * MiB, le=16 * 1024 * MiB, description="Maximum bytes of open and unsettled batches."
    )

    pause_after_seconds: float = Field(
        0.5,
        ge=0,
        le=60,
        description="Time that the reader must stay at an in-flight limit before it pauses the consumer. Until "
        "then the reader only stops polling, because a pause discards prefetched messages.",
    )
    pending_ranges_max: int = Field(
        512,
        ge=8,
        le=100_000,
        description="Maximum number of batches of one partition that may wait behind an unsettled batch before "
        "the partition is paused. After a crash, these batches are read again. The cut record must have room for "
        "the ends of these batches.",
    )

    # Deadlines and retries of batches
    flush_deadline_seconds: float = Field(
        120.0, ge=1, le=3600, description="Time without a completion after which a chord is started again."
    )
    drain_deadline_seconds: float = Field(
        20.0, ge=0.1, le=600, description="Maximum wait for in-flight batches on revocation or SIGTERM."
    )
    retry_backoff_seconds: float = Field(
        5.0, gt=0, le=600, description="Initial wait before a failed batch is retried."
    )
    retry_backoff_seconds_max: float = Field(
        60.0, gt=0, le=3600, description="Maximum wait before a failed batch is retried."
    )
    parked_probe_seconds: float = Field(
        15.0,
        gt=0,
        le=3600,
        description="Interval at which a reader retries one parked batch per stage before its wait ends, to find "
        "out whether the sinks work again. If that retry succeeds, the other parked batches are retried "
        "immediately, except batches that failed while others succeeded.",
    )
    undispatched_seconds_max: float = Field(
        15.0,
        gt=0,
        le=600,
        description="Maximum wait before retrying a batch that could not be staged in Redis. Keep it short: after "
        "Redis becomes available again, ingestion may take this long to resume.",
    )

    # Commits, and the batch boundaries (the cut record) that Kafka stores with them
    commit_interval_seconds: float = Field(0.5, ge=0.01, le=60, description="Minimum interval between commits.")
    commit_answer_seconds_max: float = Field(
        10.0,
        ge=1,
        le=300,
        description="Timeout of one commit. The next commit covers at least the same offsets. Raise it for "
        "slow brokers; safety does not depend on it.",
    )
    cut_record_seconds_max: float = Field(
        5.0,
        ge=0,
        le=300,
        description="Maximum wait for the boundary of a batch to be recorded; after that, the batch is flushed "
        "anyway. If the reader then crashes, the messages may be cut differently and written again under another "
        "batch id.",
    )
    cut_record_bytes_max: int = Field(
        4000,
        ge=64,
        le=65_536,
        description="Maximum size of the cut record, which needs about three bytes per batch end. Ends that do "
        "not fit are left out. If brokers refuse a record (offset.metadata.max.bytes, default 4096), the next "
        "record is shorter.",
    )
    plan_seconds_max: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="Maximum wait, at the end of a partition, for the remaining messages of a batch that the "
        "previous owner had cut. After this wait, the batch is cut without the missing messages. Only time during "
        "which the partition is being fetched counts.",
    )

    # Dead letters
    reject_ratio_max: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Maximum share of projects with more rejects than valid messages, among the projects in the "
        "reject window. Above this share, the reader halts, because a bad deployment is the likely cause. The "
        "value 1 disables this halt.",
    )
    reject_projects_min: int = Field(
        3,
        ge=1,
        le=100_000,
        description="Minimum number of projects with more rejects than valid messages before "
        "REPLAYS_REJECT_RATIO_MAX halts the reader, so that a single project cannot halt it for all projects. Use "
        "1 if there is only one project.",
    )
    reject_unattributed_ratio_max: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Maximum share of messages in the reject window that are rejects without a project id. "
        "Above this share, the reader halts.",
    )
    reject_window: int = Field(
        1000,
        ge=10,
        le=1_000_000,
        description="Reject window: number of recent messages over which reject ratios are computed.",
    )
    reject_policy: Literal["dead_letter", "drop"] = Field(
        "dead_letter",
        description="How rejects of a shed project (one whose messages are mostly rejects) are handled: "
        "dead_letter keeps them; drop counts and discards them.",
    )

    # Parsing
    message_bytes_max: int = Field(
        16 * MiB, ge=1 * KiB, le=256 * MiB, description="Maximum message size; larger messages are rejected."
    )
    inflated_bytes_max: int = Field(
        100 * MiB,
        ge=1 * MiB,
        le=1024 * MiB,
        description="Maximum decompressed size of a segment; larger segments are rejected.",
    )
    clicks_per_segment_max: int = Field(
        20, ge=0, le=10_000, description="Maximum number of clicks stored per segment."
    )
    taps_per_segment_max: int = Field(
        20, ge=0, le=10_000, description="Maximum number of taps stored per segment."
    )
    facts_per_segment_max: int = Field(
        2000,
        ge=1,
        le=100_000,
        description="Maximum number of BigQuery facts stored per segment. This bounds the rows that a hostile "
        "recording can create.",
    )
    rows_bytes_max: int = Field(
        4 * MiB,
        ge=64 * 1024,
        le=256 * MiB,
        description="Maximum bytes of rows and metrics per segment; the rest is left out (warning "
        "rows_over_limit).",
    )
    sample_segment_rate: float = Field(
        1 / 500, ge=0, le=1, description="Share of segments whose canvas, mutation and option facts are kept."
    )
    sample_event_rate: float = Field(
        0.002, ge=0, le=1, description="Share of multi-clicks and rage clicks that become BigQuery facts."
    )
    parse_processes: int = Field(
        0, ge=0, le=64, description="Number of parser processes; 0 parses in the reader process."
    )
    parse_usual_bytes_max: int = Field(
        8 * MiB,
        ge=64 * KiB,
        le=1024 * MiB,
        description="Decompressed size above which a segment is parsed in a child process with memory and "
        "CPU limits, while the reader continues with other partitions. Segments that take more than a few "
        "milliseconds to parse are handled the same way.",
    )

    # Interfaces
    cost_projects_max: int = Field(
        10,
        ge=0,
        le=100,
        description="Maximum number of projects with their own cost series; all other projects share the series "
        "`other`.",
    )
    http_host: str = Field("127.0.0.1", description="Listen address of /livez, /readyz and /metrics.")
    http_port: int = Field(
        9464, ge=0, le=65535, description="Port of /livez, /readyz and /metrics; 0 picks a free one."
    )
    loop_silent_seconds_max: float = Field(
        60.0,
        ge=6,
        le=3600,
        description="Maximum time that the reader loop may go without progress. After that, /livez fails and the "
        "stacks of all threads are logged. A message is rejected if parsing it in a child process uses CPU time "
        "of more than one sixth of this value, or twice in a row takes more than 40 % of this value in wall-clock "
        "time.",
    )

    @property
    def from_local_stack(self) -> bool:
        """Whether a command took the addresses from a running local stack because none were configured."""
        return self._from_local_stack

    def taken_from_local_stack(self) -> Self:
        """Returns a copy of these settings with `from_local_stack`."""
        found = self.model_copy()
        found._from_local_stack = True
        return found

    @model_validator(mode="after")
    def _check_drain_before_rebalance(self) -> Self:
        if self.kafka_group_protocol is GroupProtocol.CLASSIC:
            name, seconds = "kafka_session_timeout_seconds", self.kafka_session_timeout_seconds
        else:
            name, seconds = "kafka_max_poll_interval_seconds", self.kafka_max_poll_interval_seconds
        if self.drain_deadline_seconds >= seconds:
            raise ValueError(
                f"{_variable('drain_deadline_seconds')}={self.drain_deadline_seconds:g} is not shorter than "
                f"{_variable(name)}={seconds:g}: partitions would be reassigned before they are drained; "
                "lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        ensure_not_above(self, "retry_backoff_seconds", "retry_backoff_seconds_max")
        ensure_not_above(self, "batch_bytes_max", "in_flight_bytes_max")
        if self.flush_deadline_seconds >= self.staged_ttl_seconds:
            raise ValueError(
                f"{_variable('flush_deadline_seconds')}={self.flush_deadline_seconds:g} is not below "
                f"{_variable('staged_ttl_seconds')}={self.staged_ttl_seconds}: staged bytes would expire before "
                "their batch is tried again; lower the first or raise the second far above it"
            )
        return self

    @model_validator(mode="after")
    def _check_group_protocol_options(self) -> Self:
        conflicts = sorted(CLASSIC_OPTIONS & self.kafka_options.keys())
        if self.kafka_group_protocol is GroupProtocol.CONSUMER and conflicts:
            raise ValueError(
                f"{_variable('kafka_options')}: {', '.join(conflicts)} cannot be set with "
                f"{_variable('kafka_group_protocol')}=consumer: the brokers set it"
            )
        return self


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def load() -> Settings:
    """Returns the reader's settings, from the environment and the settings file. Raises SettingsError, whose text
    is for the operator."""
    return load_strictly(Settings)
