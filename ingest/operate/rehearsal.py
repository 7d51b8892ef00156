"""Runs the operations of readers and workers on Kafka and Redis once, with the same clients, and undoes them.

The command `check` uses this module. The operations create a consumer group, a staged batch, a reader's stream and
a queue under separate names (`check-<random>`), so that production is not affected, and delete them at the end.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable

from ingest.core.ownership import GroupView
from ingest.operate.finding import Finding, Severity
from ingest.reader.configuration import consumer_config
from ingest.settings import Settings
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.faults import START_LOCAL_PROGRAMS_ADVICE, start_reader_advice, start_worker_advice
from tasks.kafka.cluster import Cluster, ClusterError
from tasks.kafka.membership import MetadataDropped, MetadataRefused, NotAMember, join_and_commit
from tasks.names import flush_queue
from tasks.observe.presence import WorkerStatus, consumers, workers
from tasks.release import RELEASE
from tasks.round_trip import NotDelivered, publish_and_consume
from tasks.staging import Staging
from tasks.units import MiB
from tasks.wire import (
    ChordName,
    Completion,
    CompletionKind,
    Manifest,
    SinkName,
    Stage,
    TaskEntry,
    reader_stream,
    reference,
)

JOIN_SECONDS_MAX = 20.0
DELETE_SECONDS_MAX = 5.0
TASK_SECONDS_MAX = 5.0
STAGED_BYTES = MiB


def check_group(settings: Settings) -> Iterable[Finding]:
    """Joins a separate group with the reader's options, and commits metadata of the maximum length of a cut
    record.
    """
    name = f"{settings.kafka_group}-check-{secrets.token_hex(4)}"
    config = {**consumer_config(settings), "group.id": name}
    config.pop("group.instance.id", None)  # a static member would stay in the group until its session times out
    metadata_bytes = settings.cut_record_bytes_max
    refused: NotAMember | None = None
    partitions = 0
    try:
        partitions = join_and_commit(config, settings.kafka_topic, "x" * metadata_bytes, JOIN_SECONDS_MAX)
    except NotAMember as failure:
        refused = failure
    left = _delete_group(settings, name)
    if isinstance(refused, MetadataRefused):
        yield Finding(
            "consumer group",
            Severity.BAD,
            f"the brokers refuse a commit with {metadata_bytes} bytes of metadata: {refused}{left}",
            "raise offset.metadata.max.bytes of the brokers, or lower REPLAYS_CUT_RECORD_BYTES_MAX",
        )
    elif isinstance(refused, MetadataDropped):
        yield Finding(
            "consumer group",
            Severity.WARNING,
            f"joined and committed as {settings.kafka_group_protocol}, but {refused}{left}",
            "batches are cut differently after a crash, so items in flight are written again; use brokers that "
            "store commit metadata",
        )
    elif refused is not None:
        yield Finding(
            "consumer group",
            Severity.BAD,
            f"{name}: {refused}{left}",
            f"grant READ on groups that begin with {settings.kafka_group} and on the topic; check the "
            "REPLAYS_KAFKA_* settings",
        )
    else:
        yield Finding(
            "consumer group",
            Severity.OK,
            f"joined as {settings.kafka_group_protocol}, {partitions} partitions assigned, "
            f"a commit with {metadata_bytes} bytes of metadata read back{left}",
        )


def _delete_group(settings: Settings, name: str) -> str:
    """Deletes the group. Returns a note if the group could not be deleted, otherwise ""."""
    ends_at = time.monotonic() + DELETE_SECONDS_MAX
    while True:
        try:
            Cluster(settings).delete_group(name)
        except ClusterError as failure:
            if time.monotonic() < ends_at and "not empty" in str(failure).lower():
                time.sleep(0.2)
                continue
            if "does not exist" in str(failure).lower() or "not found" in str(failure).lower():
                return ""
            return f" (not tested: deleting a group; {name} stays until its offsets expire: {failure})"
        return ""


def check_owners(settings: Settings) -> Iterable[Finding]:
    """Checks whether every partition of the topic is owned by a member of the production group."""
    cluster, topic = Cluster(settings), settings.kafka_topic
    try:
        partitions = cluster.topic(topic).partitions
        found = cluster.group(settings.kafka_group, topic)
    except ClusterError as failure:
        yield Finding("partition owners", Severity.OK, f"not tested: the brokers do not describe them ({failure})")
        return
    view = GroupView(partitions, {member.id: member.partitions for member in found.members}, found.stable)
    if view.unowned:
        lag = cluster.lag(settings.kafka_group, topic, view.unowned)
        unowned_text = ", ".join(
            f"{partition} (lag {lag[partition] if lag.get(partition, -1) >= 0 else 'unknown'})"
            for partition in view.unowned
        )
        yield Finding(
            "partition owners",
            Severity.BAD,
            f"partitions without an owner: {unowned_text}",
            "see ReplaysPartitionUnowned in docs/runbook.md",
        )
    elif not found.members and found.stable:  # Kafka would report EMPTY
        yield Finding("partition owners", Severity.OK, "not tested: the brokers do not describe members")
    elif not found.members:
        yield Finding(
            "partition owners",
            Severity.WARNING,
            f"group {settings.kafka_group} has no member that the brokers describe",
            start_reader_advice(local=settings.from_local_stack),
        )
    else:
        state = "" if found.stable else f", which is {found.state}"
        yield Finding(
            "partition owners", Severity.OK, f"{len(found.members)} members of {settings.kafka_group}{state}"
        )


def check_staging(settings: Settings) -> Iterable[Finding]:
    """Stages a batch, writes an entry to a reader's stream, reads both back, and deletes them."""
    client = connect(settings)
    stage, coordination = Staging(client, settings), Coordination(client, settings)
    token = secrets.token_hex(6)
    reader, task = f"check-{token}", "rows/clickhouse/0"
    payload = secrets.token_bytes(STAGED_BYTES)
    entry = TaskEntry(task, 1, len(payload), settings.seals.content(payload))
    manifest = Manifest(f"check-{token}", token, settings.kafka_topic, 0, 0, 1, reader, 0, (entry,))
    batch = reference(manifest)
    try:
        stage.stage(manifest, ChordName(batch, Stage.ROWS, 1, token), {task: payload})
        run = stage.begin(batch, task, token)
        same = run is not None and stage.payload(batch, task, run) == payload
        stage.mark(batch, task, token, entry.content)
        coordination.send_completion(reader, Completion(CompletionKind.DONE, manifest.batch_id))
        same = (
            same and not stage.unmarked(manifest, [task]) and stage.client.xlen(_stream_key(reader, settings)) == 1
        )
    finally:
        stage.client.delete(stage.key(batch), _stream_key(reader, settings))
    if same:
        yield Finding("staging", Severity.OK, "a batch of 1 MiB was staged, marked, reported and deleted")
    else:
        yield Finding(
            "staging",
            Severity.BAD,
            "a staged batch is not read back as it was written",
            "REPLAYS_REDIS_URL must name one primary, not a proxy or a replica",
        )


def _stream_key(reader: str, settings: Settings) -> str:
    return reader_stream(reader, settings.key_prefix)


def check_task(settings: Settings) -> Iterable[Finding]:
    """Publishes a task to a separate queue and consumes it, with the fleet's broker configuration."""
    try:
        publish_and_consume(settings, TASK_SECONDS_MAX)
    except NotDelivered as failure:
        yield Finding(
            "tasks",
            Severity.BAD,
            str(failure),
            "check that REPLAYS_REDIS_URL is the same primary for all processes",
        )
    else:
        yield Finding(
            "tasks",
            Severity.OK,
            "a task was published and consumed (not tested: a chord through the workers)",
        )


def check_workers(settings: Settings) -> Iterable[Finding]:
    """Checks whether a worker consumes each queue, and whether all processes run the same release and use the same
    BigQuery API."""
    coordination = Coordination(connect(settings), settings)
    found = workers(coordination, settings)
    yield from _check_releases(coordination, found)
    if SinkName.BIGQUERY in settings.sinks:
        yield from _check_bigquery_writes(coordination, found)
    for worker in found:
        state = f"silent for {worker.silent_seconds:.0f} s" if worker.silent else "up"
        age_seconds = max(0.0, worker.seen_at - worker.started_at)
        yield Finding(
            f"worker {worker.worker}",
            Severity.WARNING if worker.silent else Severity.OK,
            f"{state}, seen {worker.silent_seconds:.0f} s ago, {age_seconds:.0f} s old, consumes "
            f"{', '.join(worker.queues)}",
            "restart it, or ignore it if it was stopped" if worker.silent else "",
        )
    consumed = consumers(found, settings.sinks)
    if not any(consumed.values()):
        yield Finding(
            "workers",
            Severity.BAD,
            f"no worker is running: tasks of {', '.join(consumed)} wait, and nothing is committed",
            start_worker_advice(local=settings.from_local_stack),
        )
        return
    for queue, count in consumed.items():
        if not count:
            advice = (
                START_LOCAL_PROGRAMS_ADVICE
                if settings.from_local_stack
                else f"start `celery -A tasks worker -Q {queue}`"
            )
            yield Finding(
                f"queue {queue}",
                Severity.BAD,
                "no worker consumes it: its tasks wait, and nothing is committed",
                f"{advice}; see ReplaysQueueWithoutWorker in docs/runbook.md",
            )


def _check_releases(coordination: Coordination, found: Iterable[WorkerStatus]) -> Iterable[Finding]:
    """Yields a warning if readers and workers run different releases, as during an upgrade."""
    running = {f"worker {worker.worker}": worker.release for worker in found if not worker.silent}
    running |= {
        f"reader {name}": str(heartbeat.get("release", "")) for name, heartbeat in coordination.readers().items()
    }
    running["this command"] = RELEASE
    if len(set(running.values())) <= 1:
        return
    releases_text = ", ".join(f"{name}: {release or 'unknown'}" for name, release in sorted(running.items()))
    yield Finding(
        "releases", Severity.WARNING, releases_text, "finish the upgrade in the order of docs/upgrades.md"
    )


def _check_bigquery_writes(coordination: Coordination, found: Iterable[WorkerStatus]) -> Iterable[Finding]:
    """Yields a warning if readers encode rows for a BigQuery API that workers do not use."""
    queue = flush_queue(SinkName.BIGQUERY)
    ways = {
        f"worker {worker.worker}": worker.bigquery_write
        for worker in found
        if not worker.silent and queue in worker.queues
    }
    ways |= {
        f"reader {name}": str(heartbeat.get("bigquery_write", ""))
        for name, heartbeat in coordination.readers().items()
    }
    if len({way for way in ways.values() if way}) <= 1:
        return
    yield Finding(
        "bigquery write",
        Severity.WARNING,
        ", ".join(f"{name}: {way or 'unknown'}" for name, way in sorted(ways.items())),
        "give all the same REPLAYS_BIGQUERY_WRITE: workers convert rows that were encoded for the other API",
    )
