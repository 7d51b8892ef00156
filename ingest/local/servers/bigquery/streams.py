"""Write streams: converts the rows of AppendRows to the stored form of a table, and reports their errors.

All functions here are pure functions of messages and schemas. `store.py` keeps the streams, and `grpc_server.py`
handles the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from google.cloud.bigquery_storage_v1.types import StorageError, TableFieldSchema, TableSchema
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from ingest.local.servers.bigquery.names import TableName
from ingest.local.servers.bigquery.rows import READERS, BadValue, Field, check_partition
from ingest.local.servers.bigquery.schemas import fields_of

Code = StorageError.StorageErrorCode
_Proto = descriptor_pb2.FieldDescriptorProto
_INTEGERS = frozenset({_Proto.TYPE_INT64, _Proto.TYPE_INT32, _Proto.TYPE_UINT32})
_TEXT = frozenset({_Proto.TYPE_STRING})
_NUMBERS = frozenset({_Proto.TYPE_DOUBLE, _Proto.TYPE_FLOAT})
# Protobuf types accepted for each column type. The emulator supports neither wrapper types nor range or
# date columns. The complete list: https://cloud.google.com/bigquery/docs/supported-data-types
ACCEPTED_TYPES = {
    "STRING": _TEXT,
    "JSON": _TEXT,
    "INTEGER": _INTEGERS,
    "TIMESTAMP": _INTEGERS,
    "FLOAT": _NUMBERS,
    "BOOLEAN": _INTEGERS | {_Proto.TYPE_BOOL},
    "NUMERIC": _INTEGERS | _NUMBERS | _TEXT,
    "BIGNUMERIC": _INTEGERS | _NUMBERS | _TEXT,
}
# Types whose name in the Storage Write API differs from the name in the REST API.
STORAGE_TYPE = {"INTEGER": "INT64", "FLOAT": "DOUBLE", "BOOLEAN": "BOOL", "RECORD": "STRUCT"}
_MICROSECONDS_RANGE = range(-62135596800000000, 253402300800000000)


class StreamError(Exception):
    """Raised for a refused call.

    `code` is the gRPC code, and `storage_code` is BigQuery's code, which is attached to the status.

    `rows` contains (index, message) for each bad row. If `ends_call` is true, the error ends the call;
    otherwise it is sent as a response.
    """

    def __init__(
        self,
        code: int,
        message: str,
        storage_code: Any = None,
        rows: Sequence[tuple[int, str]] = (),
        *,
        ends_call: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.storage_code = storage_code
        self.rows = tuple(rows)
        self.ends_call = ends_call


@dataclass(frozen=True, slots=True)
class StreamName:
    """The full name of a write stream."""

    table: TableName
    id: str

    @classmethod
    def parse(cls, text: str) -> StreamName:
        """Parses `projects/p/datasets/d/tables/t/streams/s`. Raises StreamError."""
        parts = text.split("/")
        if len(parts) != 8 or parts[::2] != ["projects", "datasets", "tables", "streams"]:
            raise StreamError(code_pb2.INVALID_ARGUMENT, f"Invalid stream name: {text}", ends_call=True)
        return cls(TableName(parts[1], parts[3], parts[5]), parts[7])

    def __str__(self) -> str:
        return f"{path_of(self.table)}/streams/{self.id}"


@dataclass(frozen=True, slots=True)
class Stream:
    """The state of a write stream. `created_seconds`: Unix time."""

    name: StreamName
    row_count: int
    is_finalized: bool
    created_seconds: float


def schema_message(fields: Sequence[Field]) -> Any:
    """Returns a table's columns as the protobuf message TableSchema."""
    made = TableSchema.pb()()
    for field in fields:
        kind = getattr(TableFieldSchema.Type, STORAGE_TYPE.get(field.type, field.type))
        entry = made.fields.add(name=field.name, type_=kind, mode=getattr(TableFieldSchema.Mode, field.mode))
        entry.fields.extend(schema_message(field.fields).fields)
    return made


def path_of(table: TableName) -> str:
    """Returns the resource name of a table."""
    return f"projects/{table.project}/datasets/{table.dataset}/tables/{table.table}"


def table_of(path: str) -> TableName:
    """Returns the table with this resource name. Raises StreamError."""
    parts = path.split("/")
    if len(parts) != 6 or parts[::2] != ["projects", "datasets", "tables"]:
        raise StreamError(code_pb2.INVALID_ARGUMENT, f"Invalid table name: {path}", ends_call=True)
    return TableName(*parts[1::2])


class RowReader:
    """Reads rows that share one writer schema."""

    def __init__(self, descriptor: Any) -> None:
        file = descriptor_pb2.FileDescriptorProto(name="rows.proto", package="rows", syntax="proto2")
        file.message_type.append(descriptor)
        pool = descriptor_pool.DescriptorPool()
        try:
            pool.Add(file)
            self._message = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"rows.{descriptor.name}"))
        except (TypeError, KeyError) as error:
            raise StreamError(code_pb2.INVALID_ARGUMENT, f"Invalid proto schema: {error}") from error
        self._sent = [(field.name, field.type, field.label) for field in descriptor.field]

    def rows(self, resource: Mapping[str, Any], rows: Sequence[bytes], today: date) -> list[dict[str, Any]]:
        """Returns the stored form of all rows. Raises StreamError, which lists every bad row."""
        fields = fields_of(resource)
        by_name = {field.name.lower(): field for field in fields}
        pairs = [(name, self._column(by_name, name, kind, label)) for name, kind, label in self._sent]
        column = str((resource.get("timePartitioning") or {}).get("field") or "")
        partition = by_name.get(column.lower())
        stored, bad = [], []
        for index, data in enumerate(rows):
            try:
                row = _stored(fields, pairs, self._message.FromString(data))
                if partition is not None:
                    check_partition(partition.name, partition.type, row, today)
            except (BadValue, DecodeError) as error:
                bad.append((index, str(error)))
            else:
                stored.append(row)
        if bad:
            text = f"Errors found while processing rows. Please refer to the row_errors field: {len(bad)} rows"
            raise StreamError(code_pb2.INVALID_ARGUMENT, text, rows=bad)
        return stored

    @staticmethod
    def _column(by_name: Mapping[str, Field], name: str, kind: int, label: int) -> Field:
        field = by_name.get(name.lower())
        if field is None:
            text = f"Input schema has more fields than BigQuery schema, extra fields: '{name}'"
            raise StreamError(code_pb2.INVALID_ARGUMENT, text, Code.SCHEMA_MISMATCH_EXTRA_FIELDS)
        if field.mode == "REPEATED" or label == _Proto.LABEL_REPEATED or field.type not in ACCEPTED_TYPES:
            raise StreamError(code_pb2.UNIMPLEMENTED, f"{field.type} {name} is not supported here.")
        if kind not in ACCEPTED_TYPES[field.type]:
            text = f"The proto field mismatched with BigQuery field at {name}, the proto field type {kind}"
            raise StreamError(code_pb2.INVALID_ARGUMENT, f"{text}, BigQuery field type {field.type}.")
        return field


def _stored(fields: Sequence[Field], pairs: Sequence[tuple[str, Field]], message: Any) -> dict[str, Any]:
    """Returns the stored form of one row. Raises BadValue."""
    row: dict[str, Any] = {field.name: None for field in fields}
    for name, field in pairs:
        if message.HasField(name):
            row[field.name] = _value(field, getattr(message, name))
    for field in fields:
        if field.mode == "REQUIRED" and row[field.name] is None:
            raise BadValue(field.name, f"Field {field.name} is required but missing")
    return row


def _value(field: Field, value: Any) -> Any:
    if field.type == "TIMESTAMP":
        if value not in _MICROSECONDS_RANGE:
            raise BadValue(field.name, f"Field {field.name}: timestamp {value} is out of range")
        return value
    read: Callable[[Any], Any] = READERS[field.type]
    try:
        return read(value)
    except (ValueError, OverflowError, ArithmeticError) as error:
        raise BadValue(field.name, f"Field {field.name}: {error}") from None
