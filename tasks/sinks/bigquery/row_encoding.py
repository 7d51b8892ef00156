"""Encodes JSON rows as protobuf messages, and builds the schema of these messages for AppendRows.

`tasks.proto_rows` defines the messages. Rows are in JSON if their reader uses insertAll, if an older release
staged them, or if a command writes them. https://cloud.google.com/bigquery/docs/supported-data-types
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec
from google.cloud.bigquery_storage_v1 import types
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from msgspec.structs import asdict

from tasks.proto_rows import EPOCH, Columns
from tasks.sinks.bigquery.table import columns_of
from tasks.sinks.outcome import Blame, Failure

INT64, TEXT = descriptor_pb2.FieldDescriptorProto.TYPE_INT64, descriptor_pb2.FieldDescriptorProto.TYPE_STRING
OPTIONAL = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
PROTO_TYPE = {"STRING": TEXT, "JSON": TEXT, "INTEGER": INT64, "TIMESTAMP": INT64}
JSON_TYPE: dict[str, Any] = {"STRING": str, "JSON": str, "INTEGER": int, "TIMESTAMP": datetime}
MICROSECOND = timedelta(microseconds=1)
_Schema = types.ProtoSchema.pb()


class RowEncoder:
    """Encodes rows of one table. `schema`: see `schema_of`."""

    def __init__(self, table: str) -> None:
        columns = columns_of(table)
        names_and_types = tuple((name, str(column["type"])) for name, column in columns.items())
        self.schema = schema_of(table, names_and_types)
        self._message = _message(table, _descriptor(table, names_and_types))
        self._times = tuple(name for name, column in columns.items() if column["type"] == "TIMESTAMP")
        fields = []
        for name, column in columns.items():
            kind = JSON_TYPE[column["type"]]
            is_required = column.get("mode") == "REQUIRED"
            fields.append((name, kind) if is_required else (name, kind | None, None))
        row = msgspec.defstruct(table, fields, kw_only=True, forbid_unknown_fields=True, gc=False)
        # As in insertAll, a number may be text, and a time may be in seconds, as readers of release 0.2 write it.
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(row, strict=False).decode

    def encode(self, row: bytes) -> bytes | Failure:
        """Encodes one row as a serialized message. Returns the problem if the row is invalid."""
        try:
            found = self._decode(row)
            values = asdict(found)
            for name in self._times:
                if values[name] is not None:
                    values[name] = _microseconds(values[name])
            encoded: bytes = self._message(**values).SerializeToString()
        except (msgspec.MsgspecError, ValueError, OverflowError, TypeError, RecursionError) as error:
            return _failure(error)
        return encoded


def _microseconds(moment: datetime) -> int:
    """Returns the Unix time in microseconds. A time without a zone is UTC, as in insertAll."""
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND


def _failure(error: Exception) -> Failure:
    text = str(error)
    if "unknown field" in text:
        # The reader is newer than this worker, so every row has that field, and no row is at fault.
        return Failure(
            Blame.TABLE, f"no such field: {text}; upgrade the workers, then run `replays-ingest migrate`"
        )
    return Failure(Blame.ROW, f"invalid: {text}")


@lru_cache(maxsize=64)
def schema_of(table: str, columns: Columns) -> bytes:
    """Returns the schema of a table's rows (ProtoSchema), which the first request of a connection contains."""
    encoded: bytes = _Schema(proto_descriptor=_descriptor(table, columns)).SerializeToString()
    return encoded


def _descriptor(table: str, columns: Columns) -> Any:
    made = descriptor_pb2.DescriptorProto(name=table)
    for number, (name, kind) in enumerate(columns, 1):
        made.field.add(name=name, number=number, type=PROTO_TYPE[kind], label=OPTIONAL)
    return made


def _message(table: str, descriptor: Any) -> Any:
    """Returns the protobuf class of the table's message."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{table}.proto", package="replays_ingest", syntax="proto2")
    file.message_type.append(descriptor)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"replays_ingest.{table}"))
