"""What has to exist before the first batch: ClickHouse's schema, BigQuery's tables, the bucket, the topics.

Everything here may run again, at any time, from several places at once: what is there stays as it is, what is
missing is added. Nothing is ever dropped or narrowed. Each step answers with one line about what it did (or, on a
dry run, would do).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from google.api_core.exceptions import Conflict, NotFound
from google.cloud import bigquery

from tasks.errors import PermanentSinkError, SinkError
from tasks.kafka.options import kafka_options
from tasks.settings import MiB, Settings
from tasks.sinks.bigquery import sink as bigquery_sink
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.clickhouse import sink as clickhouse_sink
from tasks.sinks.dead_letter import errors as kafka_errors
from tasks.sinks.dead_letter import sink as dead_letter
from tasks.sinks.gcs import sink as gcs_sink
from tasks.sinks.google import errors as google_errors
from tasks.sinks.outcome import Trouble

SCHEMA = Path(clickhouse_sink.__file__).parents[1] / "schema"
RETENTION_DAYS = (30, 60, 90)

SOURCE_PARTITIONS = 4
SOURCE_MESSAGE_BYTES_MAX = 15_000_000
SOURCE_RETENTION_HOURS = 24
DEAD_LETTER_PARTITIONS = 1
DEAD_LETTER_MESSAGE_BYTES_MAX = 17 * MiB
DEAD_LETTER_RETENTION_HOURS = 14 * 24
HOUR_MILLISECONDS = 3_600_000

_MIGRATIONS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations {on_cluster}
(version UInt32, name String, checksum String, applied_at DateTime DEFAULT now())
ENGINE = {replicated}ReplacingMergeTree ORDER BY version
"""


def migrate(settings: Settings, *, dry_run: bool = False, topics: bool = False) -> Iterator[str]:
    """Yields a line a step. `topics`: also makes the topic that is read, for development.

    Sinks that are switched off are left alone. Raises SinkError, whose text says what to do.
    """
    steps: dict[str, tuple[Callable[[], Iterator[str]], Callable[[BaseException], Trouble]]] = {
        "clickhouse": (lambda: clickhouse(settings, dry_run), clickhouse_errors.sort),
        "bigquery": (lambda: big_query(settings, dry_run), google_errors.sort),
        "gcs": (lambda: bucket(settings, dry_run), google_errors.sort),
        "dead_letter": (lambda: kafka(settings, dry_run, topics), kafka_errors.sort),
    }
    for name, (step, sort) in steps.items():
        if name not in settings.sinks:
            continue
        try:
            for line in step():
                yield f"{name}: {'would ' if dry_run and not line.startswith('=') else ''}{line.lstrip('= ')}"
        except SinkError:
            raise
        except Exception as error:
            trouble = sort(error)
            raise Trouble(trouble.kind, f"{name}: {trouble.message}").error() from error


# ------------------------------------------------------------------------------------------------- ClickHouse


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of the schema. `checksum` is of its text, so that an edit after the fact is noticed."""

    version: int
    name: str
    statements: tuple[str, ...]
    checksum: str


def migrations() -> list[Migration]:
    """The files `NNNN_name.sql`, in order. Statements end with a semicolon at the end of a line."""
    found = []
    for path in sorted((SCHEMA / "clickhouse").glob("*.sql")):
        text = path.read_text()
        statements = tuple(part.strip() for part in text.split(";\n") if part.strip())
        checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
        found.append(Migration(int(path.name[:4]), path.stem, statements, checksum))
    return found


def rendered(statement: str, cluster: str) -> str:
    """A statement for one node, or for every node of a cluster whose tables replicate each other."""
    on_cluster = f"ON CLUSTER '{cluster}'" if cluster else ""
    return statement.replace("{on_cluster}", on_cluster).replace("{replicated}", "Replicated" if cluster else "")


def clickhouse(settings: Settings, dry_run: bool) -> Iterator[str]:
    """The database, then every migration that `schema_migrations` does not list."""
    database, cluster = settings.clickhouse_database, settings.clickhouse_cluster
    with contextlib.closing(clickhouse_sink.client(settings, database="system")) as server:
        names = {row[0] for row in server.query("SELECT name FROM databases").result_rows}
        if database not in names:
            yield f"create database {database}"
            if not dry_run:
                server.command(rendered(f"CREATE DATABASE IF NOT EXISTS {database} {{on_cluster}}", cluster))
        tables = server.query(
            "SELECT name FROM tables WHERE database = {database:String}", parameters={"database": database}
        )
        has_record = ("schema_migrations",) in {tuple(row) for row in tables.result_rows}
        applied: dict[int, str] = {}
        if has_record:
            rows = server.query(f"SELECT version, checksum FROM {database}.schema_migrations FINAL").result_rows
            applied = {int(version): str(checksum) for version, checksum in rows}
    known = migrations()
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise PermanentSinkError(
                f"clickhouse: {migration.name}.sql was edited after it was applied to {database}; "
                "put the old text back and add a file with the change",
                configuration=True,
            )
    missing = [migration for migration in known if migration.version not in applied]
    if not missing:
        yield f"= schema of {database} is at version {known[-1].version}, nothing to do"
        return
    if dry_run:
        yield from (f"apply {migration.name} to {database}" for migration in missing)
        return
    with contextlib.closing(clickhouse_sink.client(settings)) as server:
        server.command(rendered(_MIGRATIONS_TABLE, cluster))
        for migration in missing:
            for statement in migration.statements:
                server.command(rendered(statement, cluster))
            server.command(
                "INSERT INTO schema_migrations (version, name, checksum) "
                "SELECT {version:UInt32}, {name:String}, {checksum:String}",
                parameters={
                    "version": migration.version,
                    "name": migration.name,
                    "checksum": migration.checksum,
                },
            )
            yield f"apply {migration.name} to {database}"


# --------------------------------------------------------------------------------------------------- BigQuery


def big_query(settings: Settings, dry_run: bool) -> Iterator[str]:
    """The data set, then every table; a table that is there gets the columns that it lacks."""
    timeout: dict[str, Any] = {"timeout": settings.sink_timeout_seconds}
    server: Any = bigquery_sink.client(settings)
    with contextlib.closing(server):
        name = f"{settings.bigquery_project}.{settings.bigquery_dataset}"
        try:
            server.get_dataset(name, **timeout)
        except NotFound:
            yield f"create data set {name}"
            if not dry_run:
                dataset: Any = bigquery.Dataset(name)
                if settings.bigquery_location:
                    dataset.location = settings.bigquery_location
                server.create_dataset(dataset, exists_ok=True, **timeout)
        for path in sorted((SCHEMA / "bigquery").glob("*.json")):
            wanted = table_of(json.loads(path.read_text()), f"{name}.{path.stem}", settings)
            yield from _big_query_table(server, wanted, dry_run, timeout)
            yield from _exact_view(server, wanted, dry_run, timeout)


def table_of(description: dict[str, Any], name: str, settings: Settings) -> Any:
    """The table that a file of `schema/bigquery` describes: partitioned by day, clustered."""
    table: Any = bigquery.Table(name, schema=[_field(field) for field in description["fields"]])
    table.description = description["description"]
    expiration_days = settings.bigquery_expiration_days
    table.time_partitioning = bigquery.TimePartitioning(
        type_=bigquery.TimePartitioningType.DAY,
        field=description["partition_by_day_of"],
        expiration_ms=expiration_days * 24 * HOUR_MILLISECONDS or None,
    )
    table.clustering_fields = description["cluster_by"]
    return table


def _field(description: dict[str, str]) -> Any:
    return bigquery.SchemaField(
        description["name"],
        description["type"],
        mode=description.get("mode", "NULLABLE"),
        description=description.get("description", ""),
    )


def _big_query_table(server: Any, wanted: Any, dry_run: bool, timeout: dict[str, Any]) -> Iterator[str]:
    name = f"{wanted.dataset_id}.{wanted.table_id}"
    try:
        table = server.get_table(wanted.reference, **timeout)
    except NotFound:
        yield f"create table {name}"
        if not dry_run:
            server.create_table(wanted, exists_ok=True, **timeout)
        return
    present = {field.name: field for field in table.schema}
    for field in wanted.schema:
        there = present.get(field.name)
        if there is not None and there.field_type != field.field_type:
            raise PermanentSinkError(
                f"bigquery: column {name}.{field.name} is {there.field_type}, needed is {field.field_type}; "
                "copy the table into a new one",
                configuration=True,
            )
    missing = [field for field in wanted.schema if field.name not in present]
    if not missing:
        yield f"= table {name} is up to date"
        return
    yield f"add to table {name}: {', '.join(field.name for field in missing)}"
    if not dry_run:
        # Rows that are there have no value for it, so BigQuery takes no column that requires one.
        added = [
            bigquery.SchemaField.from_api_repr(field.to_api_repr() | {"mode": "NULLABLE"}) for field in missing
        ]
        table.schema = [*table.schema, *added]
        server.update_table(table, ["schema"], **timeout)


def _exact_view(server: Any, table: Any, dry_run: bool, timeout: dict[str, Any]) -> Iterator[str]:
    """A view that shows each identity once, whatever streaming has stored twice."""
    view: Any = bigquery.Table(f"{table.project}.{table.dataset_id}.{table.table_id}_exact")
    view.view_query = (
        f"SELECT * FROM `{table.project}.{table.dataset_id}.{table.table_id}` "
        "WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY row_id ORDER BY timestamp) = 1"
    )
    try:
        server.get_table(view.reference, **timeout)
    except NotFound:
        yield f"create view {table.dataset_id}.{view.table_id}"
        if not dry_run:
            server.create_table(view, exists_ok=True, **timeout)


# ---------------------------------------------------------------------------------------------- Cloud Storage


def bucket(settings: Settings, dry_run: bool) -> Iterator[str]:
    """The bucket, if it does not exist, with a rule for each retention. One that exists is somebody's: we look."""
    with contextlib.closing(gcs_sink.client(settings)) as server:
        name, timeout_seconds = settings.gcs_bucket, settings.sink_timeout_seconds
        found = server.lookup_bucket(name, timeout=timeout_seconds)
        if found is None:
            yield f"create bucket gs://{name}"
            if dry_run:
                return
            made = server.bucket(name)
            # Recordings are personal data: nobody gets in by accident, and a deletion deletes.
            made.iam_configuration.uniform_bucket_level_access_enabled = True
            made.iam_configuration.public_access_prevention = "enforced"
            made.soft_delete_policy.retention_duration_seconds = 0
            for days in RETENTION_DAYS:
                made.add_lifecycle_delete_rule(age=days, matches_prefix=[f"{days}/"])
                # A packed object that `erase` rewrote is as old as its custom time says.
                made.add_lifecycle_delete_rule(days_since_custom_time=days, matches_prefix=[f"{days}/"])
            with contextlib.suppress(Conflict):  # somebody made it at the same moment
                server.create_bucket(made, location=settings.gcs_location or None, timeout=timeout_seconds)
            return
        missing = [days for days in RETENTION_DAYS if not _expires(found, days)]
        yield f"= bucket gs://{name} is there" + (
            f", but nothing deletes {', '.join(f'{days}/' for days in missing)} after as many days: "
            "add lifecycle rules"
            if missing
            else ""
        )
        if settings.gcs_layout == "packed" and not any(
            "daysSinceCustomTime" in rule.get("condition", {}) for rule in found.lifecycle_rules
        ):
            yield f"= gs://{name} has no rule on daysSinceCustomTime: what `erase` rewrites is kept for longer"


def _expires(found: Any, days: int) -> bool:
    """Whether a lifecycle rule deletes objects of this retention in time."""
    for rule in found.lifecycle_rules:
        condition = rule.get("condition", {})
        prefixes = condition.get("matchesPrefix")
        covers = prefixes is None or f"{days}/" in prefixes
        if rule.get("action", {}).get("type") == "Delete" and covers and condition.get("age", days + 1) <= days:
            return True
    return False


# ------------------------------------------------------------------------------------------------------ Kafka


def kafka(settings: Settings, dry_run: bool, topics: bool) -> Iterator[str]:
    """The dead-letter topic; with `topics` the one that is read, too."""
    admin = AdminClient(kafka_options(settings))
    timeout_seconds = settings.sink_timeout_seconds
    present = admin.list_topics(timeout=timeout_seconds).topics
    source_bytes = SOURCE_MESSAGE_BYTES_MAX
    if settings.kafka_topic in present:
        source_bytes = dead_letter.max_message_bytes(admin, settings.kafka_topic, timeout_seconds) or source_bytes
    wanted = {
        settings.dlq_topic: NewTopic(
            settings.dlq_topic,
            num_partitions=DEAD_LETTER_PARTITIONS,
            config={
                "max.message.bytes": str(
                    max(DEAD_LETTER_MESSAGE_BYTES_MAX, source_bytes + dead_letter.HEADERS_BYTES)
                ),
                "retention.ms": str(DEAD_LETTER_RETENTION_HOURS * HOUR_MILLISECONDS),
                "cleanup.policy": "delete",
            },
        )
    }
    if topics:
        wanted[settings.kafka_topic] = NewTopic(
            settings.kafka_topic,
            num_partitions=SOURCE_PARTITIONS,
            config={
                "max.message.bytes": str(SOURCE_MESSAGE_BYTES_MAX),
                "retention.ms": str(SOURCE_RETENTION_HOURS * HOUR_MILLISECONDS),
            },
        )
    for name, topic in wanted.items():
        if name in present and present[name].error is None:
            yield f"= topic {name} is there, {len(present[name].partitions)} partitions"
            continue
        yield f"create topic {name}"
        if dry_run:
            continue
        try:
            admin.create_topics([topic], request_timeout=timeout_seconds)[name].result(timeout_seconds)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
