"""The storage of the BigQuery server: datasets, tables and rows in one DuckDB file, and queries on them.

Resources are stored as the JSON that the API exchanges. A dataset is a DuckDB schema named `project:dataset`.
Every call is one transaction, so if the process is killed, either all changes of a call are stored or none.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
from google.rpc import code_pb2
from sqlglot import exp

from ingest.local.servers.bigquery.dialect import column_changes, query_parameters, table_names, translated
from ingest.local.servers.bigquery.errors import ApiError, bad_request, check_etag
from ingest.local.servers.bigquery.inserts import INSERT_ID_WINDOW_SECONDS, InsertIds, validate_rows
from ingest.local.servers.bigquery.names import TableName
from ingest.local.servers.bigquery.rows import (
    NAME,
    Field,
    arrow_table,
    fields_of_result,
    identifier,
    resource_of,
)
from ingest.local.servers.bigquery.schemas import added_fields, checked_schema, columns_sql, fields_of, widened
from ingest.local.servers.bigquery.streams import Code, RowReader, Stream, StreamError, StreamName

MEMORY_LIMIT = "512MB"
THREADS = 2
ROWS_PER_REQUEST_MAX = 50_000
RESULT_ROWS_MAX = 500_000

# The fields that a PATCH may change. The service sets all others.
TABLE_PARTS = (
    "schema",
    "description",
    "friendlyName",
    "labels",
    "expirationTime",
    "timePartitioning",
    "clustering",
)
DATASET_PARTS = ("description", "friendlyName", "labels", "location", "defaultTableExpirationMs", "access")


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a query.

    `affected` is the number of rows that a DML statement changed, or None for other statements.
    """

    fields: tuple[Field, ...]
    rows: list[tuple[Any, ...]]
    statement: str
    affected: int | None = None


_WHERE_STREAM = "project = ? AND dataset = ? AND name = ? AND id = ?"


def _stream_key(name: StreamName) -> list[str]:
    return [name.table.project, name.table.dataset, name.table.table, name.id]


class Store:
    """The open database. The store is thread-safe: writers run one at a time, and readers do not wait."""

    def __init__(
        self,
        path: Path,
        *,
        insert_id_window_seconds: float = INSERT_ID_WINDOW_SECONDS,
        streaming_buffer_seconds: float = 0.0,
    ) -> None:
        """For `streaming_buffer_seconds` after an insertAll, the table refuses UPDATE, DELETE and MERGE;
        0 disables this.

        The real service refuses such statements if they affect a row streamed in the last 90 minutes.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = duckdb.connect(str(path), config={"memory_limit": MEMORY_LIMIT, "threads": THREADS})
        self._database.execute("SET TimeZone = 'UTC'")
        # A client's query must not read files on this machine.
        self._database.execute("SET enable_external_access = false")
        self._writing = threading.RLock()
        self._insert_ids = InsertIds(insert_id_window_seconds)
        self._streaming_buffer_seconds = streaming_buffer_seconds
        self._streamed_at: dict[TableName, float] = {}
        with self._write() as cursor:
            cursor.execute("CREATE SCHEMA IF NOT EXISTS meta")
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS meta.datasets (project VARCHAR, dataset VARCHAR, resource VARCHAR)"
            )
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS meta.tables "
                "(project VARCHAR, dataset VARCHAR, name VARCHAR, resource VARCHAR)"
            )
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS meta.streams (project VARCHAR, dataset VARCHAR, name VARCHAR, "
                "id VARCHAR, row_count BIGINT, is_finalized BOOLEAN)"
            )
            cursor.execute("ALTER TABLE meta.streams ADD COLUMN IF NOT EXISTS created_seconds DOUBLE DEFAULT 0")

    def close(self) -> None:
        """Flushes the rest of the write-ahead log to the database file."""
        self._database.close()

    @contextmanager
    def _write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Runs a transaction, which applies all changes or none."""
        with self._writing, self._database.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                raise

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._database.cursor() as cursor:
            return cursor.execute(sql, list(values)).fetchall()

    # ---- datasets

    def create_dataset(self, project: str, resource: Mapping[str, Any]) -> dict[str, Any]:
        """Creates a dataset. Raises ApiError 409 if the dataset exists."""
        dataset = str(resource.get("datasetReference", {}).get("datasetId", ""))
        if not NAME.match(dataset) and not dataset.isalnum():
            raise bad_request(f'Invalid dataset ID "{dataset}".')
        now = str(int(time.time() * 1000))
        made = {
            "kind": "bigquery#dataset",
            "id": f"{project}:{dataset}",
            "datasetReference": {"projectId": project, "datasetId": dataset},
            "location": "US",
            "creationTime": now,
            "lastModifiedTime": now,
            "etag": uuid.uuid4().hex,
            **{part: resource[part] for part in DATASET_PARTS if part in resource},
        }
        with self._write() as cursor:
            if self._find_dataset(project, dataset) is not None:
                raise ApiError(409, "duplicate", f"Already Exists: Dataset {project}:{dataset}")
            cursor.execute(f"CREATE SCHEMA {identifier(f'{project}:{dataset}')}")
            cursor.execute("INSERT INTO meta.datasets VALUES (?, ?, ?)", [project, dataset, json.dumps(made)])
        return made

    def dataset(self, project: str, dataset: str) -> dict[str, Any]:
        """Returns the dataset. Raises ApiError 404 if it does not exist."""
        found = self._find_dataset(project, dataset)
        if found is None:
            raise ApiError(404, "notFound", f"Not found: Dataset {project}:{dataset}")
        return found

    def datasets(self, project: str) -> list[dict[str, Any]]:
        """Returns all datasets of a project, ordered by name."""
        rows = self._rows("SELECT resource FROM meta.datasets WHERE project = ? ORDER BY dataset", project)
        return [json.loads(row[0]) for row in rows]

    def update_dataset(
        self, project: str, dataset: str, change: Mapping[str, Any], if_match: str = ""
    ) -> dict[str, Any]:
        """Changes the dataset's description, labels and other DATASET_PARTS. Raises ApiError 412 if the dataset's
        etag is not `if_match`."""
        with self._write() as cursor:
            made = self.dataset(project, dataset)
            check_etag(made, if_match)
            made |= {part: change[part] for part in DATASET_PARTS if part in change}
            made |= {"lastModifiedTime": str(int(time.time() * 1000)), "etag": uuid.uuid4().hex}
            values = [json.dumps(made), project, dataset]
            cursor.execute("UPDATE meta.datasets SET resource = ? WHERE project = ? AND dataset = ?", values)
        return made

    def delete_dataset(self, project: str, dataset: str, *, contents: bool) -> None:
        """Deletes the dataset. Raises ApiError 400 if the dataset has tables and `contents` is false."""
        with self._write() as cursor:
            self.dataset(project, dataset)
            if not contents and self.tables(project, dataset):
                raise bad_request(f"Dataset {project}:{dataset} is still in use", "resourceInUse")
            cursor.execute(f"DROP SCHEMA {identifier(f'{project}:{dataset}')} CASCADE")
            for table in ("datasets", "tables", "streams"):
                cursor.execute(f"DELETE FROM meta.{table} WHERE project = ? AND dataset = ?", [project, dataset])

    def _find_dataset(self, project: str, dataset: str) -> dict[str, Any] | None:
        rows = self._rows("SELECT resource FROM meta.datasets WHERE project = ? AND dataset = ?", project, dataset)
        return json.loads(rows[0][0]) if rows else None

    # ---- tables

    def create_table(self, project: str, dataset: str, resource: Mapping[str, Any]) -> dict[str, Any]:
        """Creates a table or a view.

        Raises ApiError 409 if the table exists, 404 if its dataset does not exist, and 400 for an invalid
        resource.
        """
        self.dataset(project, dataset)
        name = TableName(project, dataset, str(resource.get("tableReference", {}).get("tableId", "")))
        if (
            not name.table
            or len(name.table) > 1024
            or not name.table.replace("_", "a").replace("-", "a").isalnum()
        ):
            raise bad_request(f'Invalid table ID "{name.table}".')
        now = str(int(time.time() * 1000))
        made: dict[str, Any] = {
            "kind": "bigquery#table",
            "id": str(name),
            "tableReference": {"projectId": project, "datasetId": dataset, "tableId": name.table},
            "type": "VIEW" if "view" in resource else "TABLE",
            "creationTime": now,
            "lastModifiedTime": now,
            "etag": uuid.uuid4().hex,
            "location": "US",
            **{part: resource[part] for part in TABLE_PARTS if part in resource},
        }
        with self._write() as cursor:
            if self._find_table(name) is not None:
                raise ApiError(409, "duplicate", f"Already Exists: Table {name}")
            if "view" in resource:
                made |= self._create_view(cursor, name, resource["view"])
            else:
                fields = checked_schema(made)
                # A table without columns exists only as metadata until columns are added, because DuckDB does not
                # support tables without columns.
                if fields:
                    cursor.execute(f"CREATE TABLE {name.sql} ({columns_sql(fields)})")
            values = [project, dataset, name.table, json.dumps(made)]
            cursor.execute("INSERT INTO meta.tables VALUES (?, ?, ?, ?)", values)
        return made

    def _create_view(
        self, cursor: duckdb.DuckDBPyConnection, name: TableName, view: Mapping[str, Any]
    ) -> dict[str, Any]:
        if view.get("useLegacySql"):
            raise bad_request("Legacy SQL is not supported here.")
        sql, _ = translated(str(view.get("query", "")), name.project, name.dataset)
        try:
            cursor.execute(f"CREATE VIEW {name.sql} AS {sql}")
            described = cursor.execute(f"SELECT * FROM {name.sql} LIMIT 0").description or []
        except duckdb.Error as error:
            raise bad_request(str(error), "invalidQuery", "query") from error
        return {"view": {**view, "useLegacySql": False}, "schema": resource_of(fields_of_result(described))}

    def table(self, name: TableName) -> dict[str, Any]:
        """Returns the table resource, including the number of rows.

        Raises ApiError 404 if the table or its dataset does not exist.
        """
        found = self._find_table(name)
        if found is None:
            self.dataset(name.project, name.dataset)
            raise ApiError(404, "notFound", f"Not found: Table {name}")
        if found["type"] == "TABLE":
            count = self._rows(f"SELECT count(*) FROM {name.sql}")[0][0] if fields_of(found) else 0
            found |= {"numRows": str(count), "numBytes": "0"}
        return found

    def tables(self, project: str, dataset: str) -> list[dict[str, Any]]:
        """Returns all tables of a dataset, ordered by name."""
        self.dataset(project, dataset)
        sql = "SELECT resource FROM meta.tables WHERE project = ? AND dataset = ? ORDER BY name"
        return [json.loads(row[0]) for row in self._rows(sql, project, dataset)]

    def update_table(self, name: TableName, change: Mapping[str, Any], if_match: str = "") -> dict[str, Any]:
        """Changes the table's description, labels and schema.

        The schema can only grow, and new columns must be NULLABLE or REPEATED. Raises ApiError 412 if the
        etag is not `if_match`.
        """
        with self._write() as cursor:
            made = self.table(name)
            check_etag(made, if_match)
            if made["type"] == "VIEW":
                self._update_view(cursor, name, made, change)
                return made
            before = fields_of(made)
            made |= {part: change[part] for part in TABLE_PARTS if part in change}
            added = added_fields(name, before, checked_schema(made))
            if before:
                for field in added:
                    cursor.execute(f"ALTER TABLE {name.sql} ADD COLUMN {columns_sql([field])}")
            elif added:
                cursor.execute(f"CREATE TABLE {name.sql} ({columns_sql(added)})")
            self._save_table(cursor, name, made)
        return made

    def _alter_table(self, tree: exp.Alter, project: str, dataset: str) -> None:
        """ALTER TABLE ... ALTER COLUMN ... SET DATA TYPE. Raises ApiError."""
        (name,) = table_names(tree, project, dataset)
        with self._write() as cursor:
            made = self.table(name)
            for column, kind in column_changes(tree):
                field = widened(name, made, column, kind)
                sql = f"ALTER TABLE {name.sql} ALTER COLUMN {identifier(field.name)} TYPE {field.sql_type}"
                cursor.execute(sql)
            self._save_table(cursor, name, made)

    def _update_view(
        self, cursor: duckdb.DuckDBPyConnection, name: TableName, made: dict[str, Any], change: Mapping[str, Any]
    ) -> None:
        made |= {part: change[part] for part in ("description", "friendlyName", "labels") if part in change}
        if "view" in change:
            cursor.execute(f"DROP VIEW {name.sql}")
            made |= self._create_view(cursor, name, change["view"])
        self._save_table(cursor, name, made)

    def _save_table(self, cursor: duckdb.DuckDBPyConnection, name: TableName, made: dict[str, Any]) -> None:
        made |= {"lastModifiedTime": str(int(time.time() * 1000)), "etag": uuid.uuid4().hex}
        values = [json.dumps(made), name.project, name.dataset, name.table]
        cursor.execute(
            "UPDATE meta.tables SET resource = ? WHERE project = ? AND dataset = ? AND name = ?", values
        )

    def delete_table(self, name: TableName) -> None:
        """Deletes a table or a view. Raises ApiError 404 if it does not exist."""
        with self._write() as cursor:
            found = self.table(name)
            if found["type"] == "VIEW":
                cursor.execute(f"DROP VIEW IF EXISTS {name.sql}")
            else:
                cursor.execute(f"DROP TABLE IF EXISTS {name.sql}")
            values = [name.project, name.dataset, name.table]
            for table in ("tables", "streams"):
                cursor.execute(f"DELETE FROM meta.{table} WHERE project = ? AND dataset = ? AND name = ?", values)

    def _find_table(self, name: TableName) -> dict[str, Any] | None:
        sql = "SELECT resource FROM meta.tables WHERE project = ? AND dataset = ? AND name = ?"
        rows = self._rows(sql, name.project, name.dataset, name.table)
        return json.loads(rows[0][0]) if rows else None

    # ---- rows

    def insert_all(
        self, name: TableName, request: Mapping[str, Any], now: float, today: date
    ) -> list[dict[str, Any]]:
        """Returns the `insertErrors`.

        With skipInvalidRows the good rows are stored. Without it, a bad row means that nothing is stored and good
        rows are `stopped`. A row whose insertId was seen before is accepted but not stored again.
        """
        rows = request.get("rows")
        if not isinstance(rows, list) or not rows:
            raise bad_request("No rows present in the request.")
        if len(rows) > ROWS_PER_REQUEST_MAX:
            raise bad_request(f"Too many rows present in the request: {len(rows)}, limit {ROWS_PER_REQUEST_MAX}.")
        if request.get("templateSuffix"):
            raise bad_request("templateSuffix is not supported here.")
        with self._writing:
            resource = self._find_table(name)
            if resource is None or resource["type"] != "TABLE":
                self.table(name)
                raise bad_request(f"Cannot add rows to a view: {name}.")
            valid_rows, errors = validate_rows(resource, rows, bool(request.get("ignoreUnknownValues")), today)
            if errors and not request.get("skipInvalidRows"):
                stopped = {"reason": "stopped", "location": "", "debugInfo": "", "message": ""}
                return [{"index": index, "errors": [errors.get(index, stopped)]} for index in range(len(rows))]
            self._append(name, fields_of(resource), rows, valid_rows, now)
        return [{"index": index, "errors": [error]} for index, error in sorted(errors.items())]

    def _append(
        self,
        name: TableName,
        fields: Sequence[Field],
        rows: Sequence[Mapping[str, Any]],
        valid_rows: Mapping[int, dict[str, Any]],
        now: float,
    ) -> None:
        """Stores the rows whose insertId is new."""
        keys: dict[bytes, None] = {}
        fresh = []
        for index, row in valid_rows.items():
            insert_id = str(rows[index].get("insertId") or "")
            if insert_id:
                key = InsertIds.key(name, insert_id)
                if key in keys or self._insert_ids.seen(key, now):
                    continue
                keys[key] = None
            fresh.append(row)
        if not fresh:
            return
        with self._write() as cursor:
            cursor.register("incoming", arrow_table(fields, fresh))
            cursor.execute(f"INSERT INTO {name.sql} BY NAME SELECT * FROM incoming")
            cursor.unregister("incoming")
        self._insert_ids.add(list(keys), now)
        self._streamed_at[name] = now

    # ---- write streams

    def create_stream(self, table: TableName) -> tuple[Stream, tuple[Field, ...]]:
        """Creates an empty stream. Returns the stream and the columns of its table.

        Raises ApiError 404 if the table does not exist.
        """
        made = Stream(StreamName(table, uuid.uuid4().hex), 0, False, time.time())
        with self._write() as cursor:
            resource = self.table(table)
            if resource["type"] != "TABLE":
                raise bad_request(f"Cannot add rows to a view: {table}.")
            values = [*_stream_key(made.name), made.row_count, made.is_finalized, made.created_seconds]
            cursor.execute("INSERT INTO meta.streams VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return made, fields_of(resource)

    def stream(self, name: StreamName) -> Stream:
        """Returns the stream. Raises StreamError NOT_FOUND."""
        sql = f"SELECT row_count, is_finalized, created_seconds FROM meta.streams WHERE {_WHERE_STREAM}"
        rows = self._rows(sql, *_stream_key(name))
        if not rows:
            text = f"Requested entity was not found. Entity: {name}"
            raise StreamError(code_pb2.NOT_FOUND, text, Code.STREAM_NOT_FOUND, ends_call=True)
        return Stream(name, *rows[0])

    def finalize_stream(self, name: StreamName) -> int:
        """Finalizes the stream, and returns its number of rows; a repeated call returns the same number."""
        with self._write() as cursor:
            count = self.stream(name).row_count
            sql = f"UPDATE meta.streams SET is_finalized = true WHERE {_WHERE_STREAM}"
            cursor.execute(sql, _stream_key(name))
        return count

    def append_to_stream(
        self, name: StreamName, offset: int | None, reader: RowReader, rows: Sequence[bytes]
    ) -> tuple[int, tuple[Field, ...]]:
        """Stores all rows, together with the new length of the stream, or none.

        Unlike rows from insertAll, these rows can be updated and deleted immediately. Returns the offset of the
        rows, and the columns of the table. Raises StreamError.
        """
        with self._write() as cursor:
            stream = self.stream(name)
            count = stream.row_count
            if stream.is_finalized:
                text = f"Stream has been finalized and cannot be appended. Entity: {name}"
                raise StreamError(code_pb2.INVALID_ARGUMENT, text, Code.STREAM_FINALIZED, ends_call=True)
            if offset is not None and offset < count:
                text = f"The offset is within stream, expected offset {count}, received {offset}"
                raise StreamError(code_pb2.ALREADY_EXISTS, text, Code.OFFSET_ALREADY_EXISTS)
            if offset is not None and offset > count:
                text = f"The offset is beyond stream, expected offset {count}, received {offset}"
                raise StreamError(code_pb2.OUT_OF_RANGE, text, Code.OFFSET_OUT_OF_RANGE)
            resource = self.table(name.table)
            fields = fields_of(resource)
            stored = reader.rows(resource, rows, datetime.now(UTC).date())
            if stored:
                cursor.register("incoming", arrow_table(fields, stored))
                cursor.execute(f"INSERT INTO {name.table.sql} BY NAME SELECT * FROM incoming")
                cursor.unregister("incoming")
            sql = f"UPDATE meta.streams SET row_count = row_count + ? WHERE {_WHERE_STREAM}"
            cursor.execute(sql, [len(stored), *_stream_key(name)])
        return count, fields

    # ---- reading

    def list_rows(
        self, name: TableName, start: int, count: int, selected: Sequence[str]
    ) -> tuple[tuple[Field, ...], list[tuple[Any, ...]], int]:
        """Returns (fields, rows start .. start+count in storage order, total number of rows)."""
        resource = self.table(name)
        fields = fields_of(resource)
        if resource["type"] == "VIEW":
            raise bad_request(f"Cannot list a table of type VIEW: {name}.")
        if selected:
            chosen = {column.lower() for column in selected}
            fields = tuple(field for field in fields if field.name.lower() in chosen)
        if not fields:
            return (), [], 0
        columns = ", ".join(identifier(field.name) for field in fields)
        sql = f"SELECT {columns} FROM {name.sql} ORDER BY rowid LIMIT ? OFFSET ?"
        return fields, self._rows(sql, count, start), int(resource["numRows"])

    def query(self, sql: str, project: str, dataset: str, parameters: Sequence[Mapping[str, Any]]) -> Result:
        """Runs one GoogleSQL statement.

        Raises ApiError 400 for an invalid query and 404 for a table that does not exist.
        """
        plain, tree = translated(sql, project, dataset)
        values = query_parameters(parameters)
        for name in table_names(tree, project, dataset):
            self.table(name)
        if isinstance(tree, exp.Update | exp.Delete | exp.Merge):
            self._check_streaming_buffer(type(tree).__name__.upper(), table_names(tree, project, dataset))
        if isinstance(tree, exp.Alter):
            self._alter_table(tree, project, dataset)
            return Result((), [], "ALTER_TABLE")
        is_dml = isinstance(tree, exp.Insert | exp.Update | exp.Delete | exp.Merge | exp.TruncateTable)
        try:
            if is_dml:
                with self._write() as cursor:
                    changed = cursor.execute(plain, values).fetchone()
                affected = int(changed[0]) if changed else 0
                return Result((), [], type(tree).__name__.upper(), affected)
            with self._database.cursor() as cursor:
                cursor.execute(plain, values)
                rows = cursor.fetchmany(RESULT_ROWS_MAX + 1)
                if len(rows) > RESULT_ROWS_MAX:
                    raise ApiError(403, "responseTooLarge", f"More than {RESULT_ROWS_MAX} rows in the result.")
                return Result(fields_of_result(cursor.description or []), rows, "SELECT")
        except duckdb.Error as error:
            raise bad_request(str(error), "invalidQuery", "query") from error

    def _check_streaming_buffer(self, statement: str, names: Iterable[TableName]) -> None:
        for name in names:
            at = self._streamed_at.get(name)
            if at is not None and time.monotonic() - at < self._streaming_buffer_seconds:
                raise bad_request(
                    f"{statement} statement over table {name.project}.{name.dataset}.{name.table} would affect "
                    "rows in the streaming buffer, which is not supported",
                    "invalidQuery",
                    "query",
                )
