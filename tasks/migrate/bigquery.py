"""Creates the BigQuery dataset, the tables described by `schema/bigquery`, and their de-duplicating views."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from google.api_core.exceptions import NotFound
from google.cloud import bigquery

from tasks.errors import PermanentSinkError
from tasks.migrate.step import DAY_MILLISECONDS, SCHEMA
from tasks.settings import Settings
from tasks.sinks.bigquery import sink as bigquery_sink


def migrate_tables(settings: Settings, *, dry_run: bool) -> Iterator[str]:
    """Creates the dataset and every missing table, and adds missing columns to existing tables."""
    timeout: dict[str, Any] = {"timeout": settings.sink_timeout_seconds}
    server: Any = bigquery_sink.client(settings)
    with contextlib.closing(server):
        name = f"{settings.bigquery_project}.{settings.bigquery_dataset}"
        try:
            server.get_dataset(name, **timeout)
        except NotFound:
            yield f"create dataset {name}"
            if not dry_run:
                dataset: Any = bigquery.Dataset(name)
                if settings.bigquery_location:
                    dataset.location = settings.bigquery_location
                server.create_dataset(dataset, exists_ok=True, **timeout)
        for path in sorted((SCHEMA / "bigquery").glob("*.json")):
            wanted = table_of(json.loads(path.read_text()), f"{name}.{path.stem}", settings)
            yield from _bigquery_table(server, wanted, timeout, dry_run=dry_run)
            yield from _exact_view(server, wanted, timeout, dry_run=dry_run)


def table_of(description: dict[str, Any], name: str, settings: Settings) -> Any:
    """Returns the table described by a file in `schema/bigquery`, partitioned by day and clustered."""
    table: Any = bigquery.Table(name, schema=[_field(field) for field in description["fields"]])
    table.description = description["description"]
    expiration_days = settings.bigquery_expiration_days
    table.time_partitioning = bigquery.TimePartitioning(
        type_=bigquery.TimePartitioningType.DAY,
        field=description["partition_by_day_of"],
        expiration_ms=expiration_days * DAY_MILLISECONDS or None,
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


def _bigquery_table(server: Any, wanted: Any, timeout: dict[str, Any], *, dry_run: bool) -> Iterator[str]:
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
        existing = present.get(field.name)
        if existing is not None and existing.field_type != field.field_type:
            raise PermanentSinkError(
                f"bigquery: column {name}.{field.name} is {existing.field_type}, needed is {field.field_type}; "
                "copy the table into a new one",
                configuration=True,
            )
    missing = [field for field in wanted.schema if field.name not in present]
    if not missing:
        yield f"= table {name} is up to date"
        return
    yield f"add to table {name}: {', '.join(field.name for field in missing)}"
    if not dry_run:
        # Existing rows have no value for a new column, so BigQuery refuses to add it as REQUIRED.
        added = [
            bigquery.SchemaField.from_api_repr(field.to_api_repr() | {"mode": "NULLABLE"}) for field in missing
        ]
        table.schema = [*table.schema, *added]
        server.update_table(table, ["schema"], **timeout)


def _exact_view(server: Any, table: Any, timeout: dict[str, Any], *, dry_run: bool) -> Iterator[str]:
    """Creates or updates a view that returns one row per identity."""
    view: Any = bigquery.Table(f"{table.project}.{table.dataset_id}.{table.table_id}_exact")
    view.view_query = (
        f"SELECT * FROM `{table.project}.{table.dataset_id}.{table.table_id}` "
        "WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY project_id, row_id ORDER BY timestamp) = 1"
    )
    name = f"{table.dataset_id}.{view.table_id}"
    try:
        present = server.get_table(view.reference, **timeout)
    except NotFound:
        yield f"create view {name}"
        if not dry_run:
            server.create_table(view, exists_ok=True, **timeout)
        return
    if present.view_query == view.view_query:
        yield f"= view {name} is up to date"
        return
    yield f"change the query of view {name}"
    if not dry_run:
        present.view_query = view.view_query
        server.update_table(present, ["view_query"], **timeout)
