"""Definitions of all reader metrics; docs/metrics.md is generated from them.

`ingest.observe.metrics` updates the metrics.
"""

from __future__ import annotations

from tasks.observe.meters import BYTES, COUNTS, LONG_SECONDS, Definition, Kind, MultiprocessMode

READER = _R = "replays.reader."
CONSUMER = "replays.recording_consumer."

DEFINITIONS: tuple[Definition, ...] = (
    # Messages
    Definition(
        _R + "messages_consumed", Kind.COUNTER, "messages", "Messages consumed from Kafka.", ("partition",)
    ),
    Definition(
        _R + "bytes_consumed", Kind.COUNTER, "bytes", "Total bytes of message values, as received.", ("partition",)
    ),
    Definition(
        _R + "messages_parsed",
        Kind.COUNTER,
        "messages",
        "Messages parsed, by outcome: segment, reject (becomes a dead letter) or drop (by a tenant rule).",
        ("outcome",),
    ),
    Definition(
        _R + "parse_seconds",
        Kind.COUNTER,
        "seconds",
        "Time spent parsing, including waits for parser processes. Divide by messages_parsed to get the "
        "mean per message.",
    ),
    Definition(
        _R + "rejects", Kind.COUNTER, "messages", "Messages that cannot be parsed, by reason.", ("reason",)
    ),
    Definition(
        _R + "messages_deferred",
        Kind.COUNTER,
        "messages",
        "Large or slow messages parsed in a child process with limits, while their partition waits.",
    ),
    Definition(
        _R + "warnings",
        Kind.COUNTER,
        "warnings",
        "Problems in messages that are nevertheless stored, by warning.",
        ("warning",),
    ),
    Definition(
        _R + "drops",
        Kind.COUNTER,
        "messages",
        "Messages dropped by rule: tenant rules, and the reject policy (shed).",
        ("reason",),
    ),
    Definition(
        _R + "reject_ratio",
        Kind.GAUGE,
        "ratio",
        "Share of rejects in the reject window, over all projects.",
        across_processes=MultiprocessMode.LIVE_MAX,
    ),
    Definition(
        _R + "project_rejects",
        Kind.GAUGE,
        "messages",
        "Rejects in the reject window: of the five projects with the most rejects, of all others (other), and "
        "of messages without a project (none).",
        ("project",),
    ),
    Definition(
        _R + "project_shed",
        Kind.GAUGE,
        "bool",
        "1 if most messages of this project are rejects. Series: the five projects with the most rejects.",
        ("project",),
    ),
    Definition(
        _R + "project_cpu_seconds",
        Kind.COUNTER,
        "seconds",
        "CPU time of the reader's loop per project: parsing and adding each message to its batch. Excludes parser "
        "processes and the child process for large messages. Series: the projects that recently used the most "
        "CPU time (at most REPLAYS_COST_PROJECTS_MAX), `other` and `none` (no project); they sum to the total.",
        ("project",),
    ),
    Definition(
        _R + "project_bytes",
        Kind.COUNTER,
        "bytes",
        "Staged bytes per project, for the same projects as project_cpu_seconds.",
        ("project",),
    ),
    Definition(
        _R + "project_rows",
        Kind.COUNTER,
        "rows",
        "ClickHouse and BigQuery rows per project, for the same projects as project_cpu_seconds.",
        ("project",),
    ),
    Definition(_R + "projects_shed", Kind.GAUGE, "projects", "Projects whose messages are mostly rejects."),
    # Lag
    Definition(
        _R + "lag_messages",
        Kind.GAUGE,
        "messages",
        "Log end minus committed offset: messages not yet durable. Grows when workers or this reader are "
        "too slow.",
        ("partition",),
    ),
    Definition(
        _R + "lag_position_messages",
        Kind.GAUGE,
        "messages",
        "Log end minus consumer position: messages not yet read.",
        ("partition",),
    ),
    Definition(
        _R + "lag_seconds",
        Kind.GAUGE,
        "seconds",
        "Age (Kafka timestamp) of the oldest uncommitted message; 0 if there is none.",
        ("partition",),
    ),
    Definition(_R + "committed_offset", Kind.GAUGE, "offset", "The group's committed offset.", ("partition",)),
    Definition(_R + "partitions_assigned", Kind.GAUGE, "partitions", "Partitions assigned to this reader."),
    # Batches
    Definition(
        CONSUMER + "buffer_message_count",
        Kind.HISTOGRAM,
        "messages",
        "Number of messages in a batch when the batch is cut.",
        buckets=COUNTS,
    ),
    Definition(
        CONSUMER + "buffer_size_in_bytes",
        Kind.HISTOGRAM,
        "bytes",
        "Staged bytes of a batch when the batch is cut.",
        buckets=BYTES,
    ),
    Definition(
        CONSUMER + "exceeded_max_message_count",
        Kind.COUNTER,
        "batches",
        "Batches cut because batch_messages_max was reached.",
    ),
    Definition(
        CONSUMER + "exceeded_buffer_byte_size",
        Kind.COUNTER,
        "batches",
        "Batches cut because batch_bytes_max was reached.",
    ),
    Definition(
        CONSUMER + "exceeded_last_buffer_commit_time",
        Kind.COUNTER,
        "batches",
        "Batches cut because batch_age_seconds_max was reached.",
    ),
    Definition(
        _R + "batches_cut",
        Kind.COUNTER,
        "batches",
        "Batches cut and dispatched, by reason: count, bytes, age, idle (early, with nothing in flight), "
        "planned (at the previous owner's boundary), drain.",
        ("reason",),
    ),
    Definition(
        _R + "batch_age_seconds", Kind.HISTOGRAM, "seconds", "Time from a batch's first message to its cut."
    ),
    Definition(
        _R + "dispatches",
        Kind.COUNTER,
        "chords",
        "Chords started, by stage and reason: first, retry (the previous one failed) or deadline (no "
        "completion arrived).",
        ("stage", "why"),
    ),
    Definition(
        _R + "stage_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Time from the start of a stage's last chord until the stage is durable in all of its sinks.",
        ("stage",),
    ),
    Definition(
        _R + "stage_failures", Kind.COUNTER, "chords", "Chords that failed or could not be started.", ("stage",)
    ),
    Definition(_R + "batches_settled", Kind.COUNTER, "batches", "Batches durable in every sink."),
    Definition(_R + "batches_parked", Kind.COUNTER, "batches", "Times a batch was parked after a failure."),
    Definition(_R + "batches_abandoned", Kind.COUNTER, "batches", "Batches abandoned by an operator."),
    Definition(
        _R + "batches_recut",
        Kind.COUNTER,
        "batches",
        "Batches that were too large for Redis and were cut into smaller ones.",
    ),
    Definition(
        _R + "batches_released",
        Kind.COUNTER,
        "batches",
        "Unsettled batches released to the next owner of their partition.",
    ),
    Definition(_R + "retries_requested", Kind.COUNTER, "batches", "Retries requested by operators."),
    Definition(
        _R + "in_flight_batches",
        Kind.GAUGE,
        "batches",
        "Batches cut but not settled, by phase: recording, waiting (for a slot), flushing, parked.",
        ("phase",),
    ),
    Definition(
        _R + "in_flight_batches_max",
        Kind.GAUGE,
        "batches",
        "Maximum batches in flight (REPLAYS_IN_FLIGHT_BATCHES_MAX), at which consumption stops.",
    ),
    Definition(_R + "in_flight_bytes", Kind.GAUGE, "bytes", "Bytes of open and unsettled batches."),
    Definition(
        _R + "in_flight_bytes_max",
        Kind.GAUGE,
        "bytes",
        "Maximum bytes of open and unsettled batches (REPLAYS_IN_FLIGHT_BYTES_MAX), at which consumption stops.",
    ),
    Definition(_R + "staged_bytes", Kind.GAUGE, "bytes", "Bytes of this reader's batches staged in Redis."),
    Definition(
        _R + "parked_oldest_seconds",
        Kind.GAUGE,
        "seconds",
        "Time since the oldest parked batch was cut. Its partition has not committed since.",
        across_processes=MultiprocessMode.LIVE_MAX,
    ),
    Definition(
        _R + "end_to_end_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Time from Relay's `received` (whole seconds) until the segment is durable in every sink; one value "
        "per segment.",
        buckets=LONG_SECONDS,
    ),
    # Consumer
    Definition(
        _R + "paused",
        Kind.GAUGE,
        "0 or 1",
        "1 if the consumer is paused.",
        across_processes=MultiprocessMode.LIVE_MAX,
    ),
    Definition(_R + "paused_seconds", Kind.COUNTER, "seconds", "Time spent paused."),
    Definition(
        _R + "full_seconds",
        Kind.COUNTER,
        "seconds",
        "Time spent at an in-flight limit, including pauses.",
    ),
    Definition(
        _R + "halted",
        Kind.GAUGE,
        "0 or 1",
        "1 if the reader has halted because of too many rejects; an operator must restart it.",
        across_processes=MultiprocessMode.LIVE_MAX,
    ),
    Definition(
        _R + "commit_seconds", Kind.HISTOGRAM, "seconds", "Time from an offset commit to the broker's response."
    ),
    Definition(
        _R + "commits", Kind.COUNTER, "commits", "Offset commits, by outcome: stored, failed.", ("outcome",)
    ),
    Definition(
        _R + "rebalances",
        Kind.COUNTER,
        "events",
        "Rebalance events, by kind: assigned, revoked, lost (without an opportunity to commit).",
        ("kind",),
    ),
    Definition(
        _R + "partitions_unowned",
        Kind.GAUGE,
        "partitions",
        "Partitions without an owner, as reported by the group coordinator; 0 during a rebalance.",
        across_processes=MultiprocessMode.LIVE_MAX,
    ),
    Definition(
        _R + "unowned_lag_messages",
        Kind.GAUGE,
        "messages",
        "Log end minus committed offset of a partition without an owner; no series where it is unknown.",
        ("partition",),
        across_processes=MultiprocessMode.LIVE_MAX,
    ),
    Definition(
        _R + "group_rejoins",
        Kind.COUNTER,
        "events",
        "Rebalances forced by this reader because a partition had no owner or the topic was recreated.",
    ),
    Definition(
        _R + "offsets_out_of_range",
        Kind.COUNTER,
        "events",
        "Number of times that the next offset was before the start of the log (retention) or after its end "
        "(topic recreated).",
        ("partition",),
    ),
    Definition(
        _R + "partitions_recreated",
        Kind.COUNTER,
        "partitions",
        "Partitions whose committed offset belonged to a deleted and recreated topic; they are read from "
        "their beginning.",
    ),
    Definition(
        _R + "messages_expired",
        Kind.COUNTER,
        "messages",
        "Messages lost to retention before they were read.",
    ),
    Definition(
        _R + "poll_gap_seconds",
        Kind.HISTOGRAM,
        "seconds",
        "Time between two consumer polls. If it reaches max.poll.interval.ms, this reader loses its partitions.",
    ),
    Definition(
        _R + "loop_turned_seconds",
        Kind.GAUGE,
        "seconds",
        "Time since the reader loop last completed an iteration. Above a few seconds, the loop is stuck.",
        across_processes=MultiprocessMode.LIVE_MAX,
    ),
    Definition(
        _R + "stuck",
        Kind.COUNTER,
        "events",
        "Number of times that the loop was stuck and all stacks were logged.",
    ),
    Definition(
        _R + "loop_failures",
        Kind.COUNTER,
        "failures",
        "Failed steps of background loops, by loop. Steps are retried; a loop that keeps failing makes /readyz "
        "fail.",
        ("loop",),
    ),
    Definition(
        _R + "unverified",
        Kind.COUNTER,
        "entries",
        "Redis entries ignored because they lack a valid seal, by purpose: completion, mark.",
        ("purpose",),
    ),
    Definition(
        _R + "observer_failures",
        Kind.COUNTER,
        "failures",
        "Exceptions in metrics, tracing or logging code, by observer. They never stop ingestion.",
        ("observer",),
    ),
    # State of the fleet, updated every heartbeat
    Definition(
        _R + "redis_up",
        Kind.GAUGE,
        "0 or 1",
        "1 if the last check of Redis succeeded.",
        across_processes=MultiprocessMode.LIVE_MAX,
    ),
    Definition(
        _R + "redis_used_bytes", Kind.GAUGE, "bytes", "used_memory of Redis: staged batches, queues, chords."
    ),
    Definition(_R + "redis_max_bytes", Kind.GAUGE, "bytes", "maxmemory of Redis; 0 if unlimited."),
    Definition(
        _R + "queue_consumers",
        Kind.GAUGE,
        "workers",
        "Number of workers that consume the queue, according to recent heartbeats. If it is 0, the queue's tasks "
        "wait.",
        ("queue",),
    ),
    Definition(_R + "queue_depth", Kind.GAUGE, "tasks", "Tasks waiting in a queue.", ("queue",)),
    Definition(
        _R + "breaker_state",
        Kind.GAUGE,
        "0, 1 or 2",
        "A sink's circuit breaker: 0 closed (healthy), 1 half open (probing), 2 open (the sink is failing).",
        ("sink",),
    ),
    Definition(_R + "info", Kind.GAUGE, "1", "Version and name of this reader, as labels.", ("version", "reader")),
)
