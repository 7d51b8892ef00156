"""Every metric of the reader, named and explained once: the table that docs/metrics.md is made from.

What feeds them is in `ingest.observe.metrics`.
"""

from __future__ import annotations

from tasks.observe.meters import BYTES, COUNTS, LONG_SECONDS, Across, Definition, Kind

READER = _R = "replays.reader."
CONSUMER = _B = "replays.recording_consumer."

DEFINITIONS: tuple[Definition, ...] = (
    # Messages
    Definition(_R + "messages_consumed", Kind.COUNTER, "messages", "Messages taken from Kafka.", ("partition",)),
    Definition(_R + "bytes_consumed", Kind.COUNTER, "bytes", "Their values, as they came.", ("partition",)),
    Definition(
        _R + "messages_parsed",
        Kind.COUNTER,
        "messages",
        "Messages parsed, by outcome: segment, reject (kept as a dead letter) or drop (shed by a tenant rule).",
        ("outcome",),
    ),
    Definition(
        _R + "parse_seconds",
        Kind.COUNTER,
        "seconds",
        "Time spent parsing (waiting for parser processes counts). Over messages_parsed: the mean of one.",
    ),
    Definition(
        _R + "rejects", Kind.COUNTER, "messages", "Messages that will never parse, by reason.", ("reason",)
    ),
    Definition(
        _R + "messages_deferred",
        Kind.COUNTER,
        "messages",
        "Messages that are not plainly cheap, parsed in a child process with limits while their partition waits.",
    ),
    Definition(
        _R + "warnings",
        Kind.COUNTER,
        "warnings",
        "What was wrong with a message without making it a reject, by stable name.",
        ("warning",),
    ),
    Definition(
        _R + "drops",
        Kind.COUNTER,
        "messages",
        "Messages dropped on purpose, by rule: tenant rules, and the policy on rejects (shed).",
        ("reason",),
    ),
    Definition(
        _R + "reject_ratio",
        Kind.GAUGE,
        "ratio",
        "Rejects among the last reject_window messages, of all projects.",
        across_processes=Across.LIVE_MAX,
    ),
    Definition(
        _R + "project_rejects",
        Kind.GAUGE,
        "messages",
        "Rejects among the last reject_window messages: of the five projects with the most, of all others "
        "(other), and of messages that name no project (none).",
        ("project",),
    ),
    Definition(
        _R + "project_shed",
        Kind.GAUGE,
        "bool",
        "Most messages of this project, one of the five with the most rejects, are rejects.",
        ("project",),
    ),
    Definition(_R + "projects_shed", Kind.GAUGE, "projects", "Projects whose messages are mostly rejects."),
    # Lag
    Definition(
        _R + "lag_messages",
        Kind.GAUGE,
        "messages",
        "Log end minus committed offset: what is not durable yet. Grows: the fleet or this reader is too slow.",
        ("partition",),
    ),
    Definition(
        _R + "lag_position_messages",
        Kind.GAUGE,
        "messages",
        "Log end minus the next offset to take: what was not even read yet.",
        ("partition",),
    ),
    Definition(
        _R + "lag_seconds",
        Kind.GAUGE,
        "seconds",
        "Age (Kafka timestamp) of the oldest message that is not committed; 0 when all are.",
        ("partition",),
    ),
    Definition(_R + "committed_offset", Kind.GAUGE, "offset", "The group's committed offset.", ("partition",)),
    Definition(_R + "partitions_assigned", Kind.GAUGE, "partitions", "Partitions that are ours."),
    # Batches
    Definition(
        _B + "buffer_message_count",
        Kind.HISTOGRAM,
        "messages",
        "Messages in a batch, at its cut.",
        buckets=COUNTS,
    ),
    Definition(
        _B + "buffer_size_in_bytes",
        Kind.HISTOGRAM,
        "bytes",
        "Staged bytes of a batch, at its cut.",
        buckets=BYTES,
    ),
    Definition(
        _B + "exceeded_max_message_count", Kind.COUNTER, "batches", "Cut since batch_messages_max was met."
    ),
    Definition(_B + "exceeded_buffer_byte_size", Kind.COUNTER, "batches", "Cut since batch_bytes_max was met."),
    Definition(
        _B + "exceeded_last_buffer_commit_time",
        Kind.COUNTER,
        "batches",
        "Cut since batch_age_seconds_max was met.",
    ),
    Definition(
        _R + "batches_cut",
        Kind.COUNTER,
        "batches",
        "Batches cut and dispatched, by why: count, bytes, age, idle (early, since nothing was in flight), "
        "planned (a predecessor's boundary), drain, "
        "deferred (the next message is parsed in a child process).",
        ("reason",),
    ),
    Definition(_R + "batch_age_seconds", Kind.HISTOGRAM, "seconds", "First message of a batch to its cut."),
    Definition(
        _R + "dispatches",
        Kind.COUNTER,
        "chords",
        "Chords started, by stage and why: first, retry (the last one failed) or deadline (no word of it).",
        ("stage", "why"),
    ),
    Definition(
        _R + "stage_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Start of a stage's last chord to its completion, all sinks of the stage together.",
        ("stage",),
    ),
    Definition(
        _R + "stage_failures", Kind.COUNTER, "chords", "Chords that gave up or could not be started.", ("stage",)
    ),
    Definition(_R + "batches_settled", Kind.COUNTER, "batches", "Batches durable in every sink."),
    Definition(_R + "batches_parked", Kind.COUNTER, "batches", "Times that a batch was parked after a failure."),
    Definition(_R + "batches_abandoned", Kind.COUNTER, "batches", "Batches that an operator gave up."),
    Definition(
        _R + "batches_recut", Kind.COUNTER, "batches", "Batches too large for Redis that were cut again, smaller."
    ),
    Definition(_R + "batches_released", Kind.COUNTER, "batches", "Batches left to the next owner, unsettled."),
    Definition(_R + "retries_requested", Kind.COUNTER, "batches", "Retries that an operator asked for."),
    Definition(
        _R + "in_flight_batches",
        Kind.GAUGE,
        "batches",
        "Batches cut and unsettled, by phase: recording, waiting (for a slot), flushing, parked.",
        ("phase",),
    ),
    Definition(_R + "in_flight_batches_max", Kind.GAUGE, "batches", "Its bound; at it consumption stops."),
    Definition(_R + "in_flight_bytes", Kind.GAUGE, "bytes", "Bytes of open and unsettled batches."),
    Definition(_R + "in_flight_bytes_max", Kind.GAUGE, "bytes", "Its bound; at it consumption stops."),
    Definition(_R + "staged_bytes", Kind.GAUGE, "bytes", "Bytes of our batches that lie in Redis."),
    Definition(
        _R + "parked_oldest_seconds",
        Kind.GAUGE,
        "seconds",
        "Since the oldest parked batch was cut; its partition's commits stand still for that long.",
        across_processes=Across.LIVE_MAX,
    ),
    Definition(
        _R + "end_to_end_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Relay's `received` (whole seconds) of a segment to its durability in every sink; one value a segment.",
        buckets=LONG_SECONDS,
    ),
    # Consumer
    Definition(
        _R + "paused", Kind.GAUGE, "0 or 1", "1: the consumer was told to pause.", across_processes=Across.LIVE_MAX
    ),
    Definition(_R + "paused_seconds", Kind.COUNTER, "seconds", "Time spent paused."),
    Definition(
        _R + "full_seconds", Kind.COUNTER, "seconds", "Time without room for messages, paused or about to be."
    ),
    Definition(
        _R + "halted",
        Kind.GAUGE,
        "0 or 1",
        "1: stopped by itself until a person looks (too many rejects).",
        across_processes=Across.LIVE_MAX,
    ),
    Definition(_R + "commit_seconds", Kind.HISTOGRAM, "seconds", "Offset commit to the broker's answer."),
    Definition(
        _R + "commits", Kind.COUNTER, "commits", "Commits answered, by outcome: stored, failed.", ("outcome",)
    ),
    Definition(
        _R + "rebalances",
        Kind.COUNTER,
        "events",
        "Group changes seen, by kind: assigned, revoked, lost (evicted: no commit was possible).",
        ("kind",),
    ),
    Definition(
        _R + "partitions_unowned",
        Kind.GAUGE,
        "partitions",
        "Partitions of the topic that no member of the group owns, as its coordinator says; 0 during a rebalance.",
        across_processes=Across.LIVE_MAX,
    ),
    Definition(
        _R + "group_rejoins",
        Kind.COUNTER,
        "events",
        "Rebalances that this reader forced: a partition had no owner, or the topic was created again.",
    ),
    Definition(
        _R + "offsets_out_of_range",
        Kind.COUNTER,
        "events",
        "The offset to read was not in the log any more (retention) or not yet (topic made anew).",
        ("partition",),
    ),
    Definition(
        _R + "partitions_recreated",
        Kind.COUNTER,
        "partitions",
        "Partitions whose committed offset belonged to a topic that was deleted and created again since; they are "
        "read from their beginning.",
    ),
    Definition(
        _R + "messages_expired",
        Kind.COUNTER,
        "messages",
        "Offsets that were skipped so: LOST, they were never read.",
    ),
    Definition(
        _R + "poll_gap_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Between two polls of the consumer; at max.poll.interval.ms the group evicts this reader.",
    ),
    Definition(
        _R + "loop_turned_seconds",
        Kind.GAUGE,
        "seconds",
        "Since the loop last went round, now. Over a few seconds: it is stuck.",
        across_processes=Across.LIVE_MAX,
    ),
    Definition(
        _R + "stuck", Kind.COUNTER, "events", "Times that the loop stood still and all stacks were logged."
    ),
    Definition(
        _R + "loop_failures",
        Kind.COUNTER,
        "failures",
        "Failed steps of background loops, by loop. Each is retried; one that keeps failing makes /readyz fail.",
        ("loop",),
    ),
    Definition(
        _R + "unverified",
        Kind.COUNTER,
        "entries",
        "What Redis held without a seal of the shared key, and was ignored, by purpose: completion, mark.",
        ("purpose",),
    ),
    Definition(
        _R + "observer_failures",
        Kind.COUNTER,
        "failures",
        "Exceptions in metrics, tracing or logging code, by observer. They never stop ingestion.",
        ("observer",),
    ),
    # What the reader sees of the fleet, every heartbeat
    Definition(
        _R + "redis_up",
        Kind.GAUGE,
        "0 or 1",
        "1: Redis answered the last heartbeat.",
        across_processes=Across.LIVE_MAX,
    ),
    Definition(
        _R + "redis_used_bytes", Kind.GAUGE, "bytes", "used_memory of Redis: staged batches, queues, chords."
    ),
    Definition(_R + "redis_max_bytes", Kind.GAUGE, "bytes", "maxmemory of Redis; 0: unbounded."),
    Definition(
        _R + "queue_consumers",
        Kind.GAUGE,
        "workers",
        "Workers that consume a queue and showed themselves within the last heartbeats. 0: its tasks wait.",
        ("queue",),
    ),
    Definition(_R + "queue_depth", Kind.GAUGE, "tasks", "Tasks waiting in a queue of the fleet.", ("queue",)),
    Definition(
        _R + "breaker_state",
        Kind.GAUGE,
        "0, 1 or 2",
        "A sink's circuit breaker: 0 closed (healthy), 1 half open (probing), 2 open (the sink is sick).",
        ("sink",),
    ),
    Definition(_R + "info", Kind.GAUGE, "1", "Version and name of this reader, as labels.", ("version", "reader")),
)
