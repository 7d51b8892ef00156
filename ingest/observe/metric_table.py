"""Every metric of the reader, named and explained once: the table that docs/metrics.md is made from.

What feeds them is in `ingest.observe.metrics`.
"""

from __future__ import annotations

from tasks.observe.meters import BYTES, COUNTS, LONG_SECONDS, Definition

READER = _R = "replays.reader."
CONSUMER = _B = "replays.recording_consumer."

DEFINITIONS: tuple[Definition, ...] = (
    # Messages
    Definition(_R + "messages_consumed", "counter", "messages", "Messages taken from Kafka.", ("partition",)),
    Definition(_R + "bytes_consumed", "counter", "bytes", "Their values, as they came.", ("partition",)),
    Definition(
        _R + "messages_parsed",
        "counter",
        "messages",
        "Messages parsed, by outcome: segment, reject (kept as a dead letter) or drop (shed by a tenant rule).",
        ("outcome",),
    ),
    Definition(
        _R + "parse_seconds",
        "counter",
        "seconds",
        "Time spent parsing (waiting for parser processes counts). Over messages_parsed: the mean of one.",
    ),
    Definition(_R + "rejects", "counter", "messages", "Messages that will never parse, by reason.", ("reason",)),
    Definition(
        _R + "warnings",
        "counter",
        "warnings",
        "What was wrong with a message without making it a reject, by stable name.",
        ("warning",),
    ),
    Definition(
        _R + "drops", "counter", "messages", "Messages shed on purpose by a tenant rule, by rule.", ("reason",)
    ),
    Definition(
        _R + "reject_ratio",
        "gauge",
        "ratio",
        "Rejects among the last reject_window messages; past reject_ratio_max the reader halts.",
        across_processes="livemax",
    ),
    # Lag
    Definition(
        _R + "lag_messages",
        "gauge",
        "messages",
        "Log end minus committed offset: what is not durable yet. Grows: the fleet or this reader is too slow.",
        ("partition",),
    ),
    Definition(
        _R + "lag_position_messages",
        "gauge",
        "messages",
        "Log end minus the next offset to take: what was not even read yet.",
        ("partition",),
    ),
    Definition(
        _R + "lag_seconds",
        "gauge",
        "seconds",
        "Age (Kafka timestamp) of the oldest message that is not committed; 0 when all are.",
        ("partition",),
    ),
    Definition(_R + "committed_offset", "gauge", "offset", "The group's committed offset.", ("partition",)),
    Definition(_R + "partitions_assigned", "gauge", "partitions", "Partitions that are ours."),
    # Batches
    Definition(
        _B + "buffer_message_count",
        "histogram",
        "messages",
        "Messages in a batch, at its cut.",
        buckets=COUNTS,
    ),
    Definition(
        _B + "buffer_size_in_bytes",
        "histogram",
        "bytes",
        "Staged bytes of a batch, at its cut.",
        buckets=BYTES,
    ),
    Definition(_B + "exceeded_max_message_count", "counter", "batches", "Cut since batch_messages_max was met."),
    Definition(_B + "exceeded_buffer_byte_size", "counter", "batches", "Cut since batch_bytes_max was met."),
    Definition(
        _B + "exceeded_last_buffer_commit_time",
        "counter",
        "batches",
        "Cut since batch_age_seconds_max was met.",
    ),
    Definition(
        _R + "batches_cut",
        "counter",
        "batches",
        "Batches cut and dispatched, by why: count, bytes, age, planned (a predecessor's boundary), drain.",
        ("reason",),
    ),
    Definition(_R + "batch_age_seconds", "histogram", "seconds", "First message of a batch to its cut."),
    Definition(
        _R + "dispatches",
        "counter",
        "chords",
        "Chords started, by stage and why: first, retry (the last one failed) or deadline (no word of it).",
        ("stage", "why"),
    ),
    Definition(
        _R + "stage_seconds",
        "histogram",
        "seconds",
        "Start of a stage's last chord to its completion, all sinks of the stage together.",
        ("stage",),
    ),
    Definition(
        _R + "stage_failures", "counter", "chords", "Chords that gave up or could not be started.", ("stage",)
    ),
    Definition(_R + "batches_settled", "counter", "batches", "Batches durable in every sink."),
    Definition(_R + "batches_parked", "counter", "batches", "Times that a batch was parked after a failure."),
    Definition(_R + "batches_abandoned", "counter", "batches", "Batches that an operator gave up."),
    Definition(_R + "batches_released", "counter", "batches", "Batches left to the next owner, unsettled."),
    Definition(_R + "retries_requested", "counter", "batches", "Retries that an operator asked for."),
    Definition(
        _R + "in_flight_batches",
        "gauge",
        "batches",
        "Batches cut and unsettled, by phase: recording, waiting (for a slot), flushing, parked.",
        ("phase",),
    ),
    Definition(_R + "in_flight_batches_max", "gauge", "batches", "Its bound; at it consumption stops."),
    Definition(_R + "in_flight_bytes", "gauge", "bytes", "Bytes of open and unsettled batches."),
    Definition(_R + "in_flight_bytes_max", "gauge", "bytes", "Its bound; at it consumption stops."),
    Definition(_R + "staged_bytes", "gauge", "bytes", "Bytes of our batches that lie in Redis."),
    Definition(
        _R + "parked_oldest_seconds",
        "gauge",
        "seconds",
        "Since the oldest parked batch was cut; its partition's commits stand still for that long.",
        across_processes="livemax",
    ),
    Definition(
        _R + "end_to_end_seconds",
        "histogram",
        "seconds",
        "Relay's `received` (whole seconds) of a segment to its durability in every sink; one value a segment.",
        buckets=LONG_SECONDS,
    ),
    # Consumer
    Definition(_R + "paused", "gauge", "0 or 1", "1: the consumer was told to pause.", across_processes="livemax"),
    Definition(_R + "paused_seconds", "counter", "seconds", "Time spent paused."),
    Definition(
        _R + "full_seconds", "counter", "seconds", "Time without room for messages, paused or about to be."
    ),
    Definition(
        _R + "halted",
        "gauge",
        "0 or 1",
        "1: stopped by itself until a person looks (too many rejects).",
        across_processes="livemax",
    ),
    Definition(_R + "commit_seconds", "histogram", "seconds", "Offset commit to the broker's answer."),
    Definition(
        _R + "commits", "counter", "commits", "Commits answered, by outcome: stored, failed.", ("outcome",)
    ),
    Definition(
        _R + "rebalances",
        "counter",
        "events",
        "Group changes seen, by kind: assigned, revoked, lost (evicted: no commit was possible).",
        ("kind",),
    ),
    Definition(
        _R + "offsets_out_of_range",
        "counter",
        "events",
        "The offset to read was not in the log any more (retention) or not yet (topic made anew).",
        ("partition",),
    ),
    Definition(
        _R + "messages_expired",
        "counter",
        "messages",
        "Offsets that were skipped so: LOST, they were never read.",
    ),
    Definition(
        _R + "poll_gap_seconds",
        "histogram",
        "seconds",
        "Between two polls of the consumer; at max.poll.interval.ms the group evicts this reader.",
    ),
    Definition(
        _R + "loop_turned_seconds",
        "gauge",
        "seconds",
        "Since the loop last went round, now. Over a few seconds: it is stuck.",
        across_processes="livemax",
    ),
    Definition(_R + "stuck", "counter", "events", "Times that the loop stood still and all stacks were logged."),
    # What the reader sees of the fleet, every heartbeat
    Definition(
        _R + "redis_up", "gauge", "0 or 1", "1: Redis answered the last heartbeat.", across_processes="livemax"
    ),
    Definition(_R + "redis_used_bytes", "gauge", "bytes", "used_memory of Redis: staged batches, queues, chords."),
    Definition(_R + "redis_max_bytes", "gauge", "bytes", "maxmemory of Redis; 0: unbounded."),
    Definition(_R + "queue_depth", "gauge", "tasks", "Tasks waiting in a queue of the fleet.", ("queue",)),
    Definition(
        _R + "breaker_state",
        "gauge",
        "0, 1 or 2",
        "A sink's circuit breaker: 0 closed (healthy), 1 half open (probing), 2 open (the sink is sick).",
        ("sink",),
    ),
    Definition(_R + "info", "gauge", "1", "Version and name of this reader, as labels.", ("version", "reader")),
)
