"""Table schemas: how they are validated at creation, and which changes are permitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ingest.local.servers.bigquery.errors import bad_request
from ingest.local.servers.bigquery.names import TableName
from ingest.local.servers.bigquery.rows import CANONICAL, BadSchema, Field, identifier, schema_of

CLUSTERING_COLUMNS_MAX = 4
# https://cloud.google.com/bigquery/docs/reference/standard-sql/data-definition-language#alter_column_set_data_type_statement
WIDER_TYPES = {
    "INTEGER": ("NUMERIC", "BIGNUMERIC", "FLOAT"),
    "NUMERIC": ("BIGNUMERIC", "FLOAT"),
}
PARTITION_TYPES = ("HOUR", "DAY", "MONTH", "YEAR")


def fields_of(resource: Mapping[str, Any]) -> tuple[Field, ...]:
    """Returns the columns of a stored table resource."""
    return schema_of(resource.get("schema") or {})


def columns_sql(fields: Sequence[Field]) -> str:
    """Returns the column definitions for the storage engine. REQUIRED is checked on insert, not by the engine."""
    return ", ".join(f"{identifier(field.name)} {field.sql_type}" for field in fields)


def checked_schema(resource: Mapping[str, Any]) -> tuple[Field, ...]:
    """Returns the columns of a new table, after a check of types, partitioning and clustering. Raises ApiError."""
    try:
        fields = schema_of(resource.get("schema") or {})
    except BadSchema as error:
        raise bad_request(str(error)) from error
    by_name = {field.name.lower(): field for field in fields}
    partitioning = resource.get("timePartitioning")
    if partitioning:
        if partitioning.get("type") not in PARTITION_TYPES:
            raise bad_request(f"Invalid value for timePartitioning.type: {partitioning.get('type')}.")
        column = partitioning.get("field")
        field = by_name.get(str(column).lower())
        if column and field is None:
            raise bad_request(f"The field specified for partitioning cannot be found in the schema: {column}.")
        if field is not None and (field.type not in ("TIMESTAMP", "DATE", "DATETIME") or field.mode == "REPEATED"):
            raise bad_request(f"The field specified for partitioning has an invalid type: {column} {field.type}.")
    clustering = (resource.get("clustering") or {}).get("fields") or []
    if len(clustering) > CLUSTERING_COLUMNS_MAX:
        raise bad_request(f"Too many clustering columns: {len(clustering)}, limit {CLUSTERING_COLUMNS_MAX}.")
    for column in clustering:
        field = by_name.get(str(column).lower())
        if field is None:
            raise bad_request(f"The field specified for clustering cannot be found in the schema: {column}.")
        if field.mode == "REPEATED" or field.type in ("RECORD", "JSON", "FLOAT", "BYTES"):
            raise bad_request(f"The field specified for clustering has an invalid type: {column} {field.type}.")
    return fields


def added_fields(name: TableName, before: Sequence[Field], after: Sequence[Field]) -> list[Field]:
    """Checks a schema change, and returns the new columns.

    No column may be removed, and no column may change its type, but REQUIRED may become NULLABLE. Raises ApiError.
    """
    by_name = {field.name.lower(): field for field in after}
    for field in before:
        now = by_name.pop(field.name.lower(), None)
        if now is None:
            raise bad_request(f"Provided Schema does not match Table {name}. Field {field.name} is missing.")
        if (now.type, now.fields) != (field.type, field.fields):
            raise bad_request(
                f"Provided Schema does not match Table {name}. Field {field.name} has changed type "
                f"from {field.type} to {now.type}"
            )
        if now.mode != field.mode and (field.mode, now.mode) != ("REQUIRED", "NULLABLE"):
            raise bad_request(
                f"Provided Schema does not match Table {name}. Field {field.name} has changed mode "
                f"from {field.mode} to {now.mode}"
            )
    for field in by_name.values():
        if before and field.mode == "REQUIRED":
            raise bad_request(
                f"Provided Schema does not match Table {name}. Cannot add required fields to an existing schema."
                f" (field: {field.name})"
            )
    return list(by_name.values())


def widened(name: TableName, resource: Mapping[str, Any], column: str, kind: str) -> Field:
    """Changes the type of a column in the resource, and returns the new column. Raises ApiError unless every value
    of the old type fits into the new one."""
    kind = CANONICAL.get(kind, kind)
    entry = next(
        (entry for entry in resource["schema"]["fields"] if entry["name"].lower() == column.lower()), None
    )
    if entry is None:
        raise bad_request(f"Column not found: {column} in {name}", "invalidQuery", "query")
    before = CANONICAL.get(entry["type"].upper(), entry["type"].upper())
    if kind not in WIDER_TYPES.get(before, ()):
        text = f"ALTER TABLE ALTER COLUMN SET DATA TYPE requires that {before} is assignable to {kind}: {column}"
        raise bad_request(text, "invalidQuery", "query")
    entry["type"] = kind
    return next(field for field in fields_of(resource) if field.name == entry["name"])
