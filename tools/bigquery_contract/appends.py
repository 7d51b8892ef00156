"""Operations of the Storage Write API: streams of type COMMITTED, appends at offsets, their errors.

Each operation is compared with the pages of Google's documentation that its docstring names. "Package
google.cloud.bigquery.storage.v1" is the reference for the calls, and is also part of the client library.
"""

from __future__ import annotations

import time
from typing import Any

from google.cloud import bigquery
from google.cloud.bigquery_storage_v1.types import WriteStream
from google.protobuf import descriptor_pb2

from tools.bigquery_contract.target import (
    NOW_SECONDS,
    AppendResult,
    Code,
    Mismatch,
    Target,
    expect,
    operation_of,
    refused,
    row,
)

APPEND_BYTES_MAX = 20_000_000
SCHEMA_SECONDS_MAX = 20.0
# Field 100 of a message, with the string "e" as its value.
EXTRA = b"\xa2\x06\x01e"


def _stream(target: Target) -> str:
    """Creates a table, and returns the name of a new stream for it."""
    target.create_table()
    return str(target.create_stream().name)


def create_a_stream(target: Target) -> None:
    """A new stream has the requested type, a name that begins with its table's name, and a commit time equal to
    its creation time.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    target.create_table()
    made = target.create_stream()
    expect(made.name.startswith(f"{target.parent}/streams/"), f"the name is {made.name}")
    expect(made.type_ == WriteStream.Type.COMMITTED, f"the type is {made.type_}")
    expect(bool(made.create_time), "create_time is missing")
    expect(made.commit_time == made.create_time, "commit_time is not create_time")
    names = [entry.name for entry in made.table_schema.fields]
    expect("row_id" in names, "table_schema is missing")


def create_a_stream_of_a_missing_table(target: Target) -> None:
    """Creating a stream for a missing table fails with NOT_FOUND.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    target.create_dataset()
    refused(target.create_stream).expect_error("NOT_FOUND")


def get_a_stream(target: Target) -> None:
    """A stream is returned with its name and type.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    found = target.writer().get_write_stream(name=name, retry=None, timeout=10)
    expect(found.name == name, f"the name is {found.name}")
    expect(found.type_ == WriteStream.Type.COMMITTED, f"the type is {found.type_}")
    expect(bool(found.create_time), "create_time is missing")


def append_at_offsets(target: Target) -> None:
    """Appends return their offsets, and the appended rows can be read immediately, with their values.

    Page: Package google.cloud.bigquery.storage.v1; Supported protocol buffer and Arrow data types.
    """
    name = _stream(target)
    connection = target.connect(name)
    target.append(connection, name, 0, 0, 1).expect_stored(0)
    target.append(connection, name, 2, 2).expect_stored(2)
    select = "segment_id, UNIX_MICROS(timestamp), JSON_VALUE(attributes, '$.url'), retention_days"
    found = target.query(f"SELECT {select} FROM FACTS ORDER BY segment_id")
    at = NOW_SECONDS * 1_000_000 + 125_000
    expect(found == [(number, at, 'http://a/"ä', None) for number in range(3)], f"the table has {found[:1]}")


def append_without_an_offset(target: Target) -> None:
    """Rows appended without an offset are added at the end of the stream.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    connection = target.connect(name)
    target.append(connection, name, 0, 0).expect_stored(0)
    target.append(connection, name, None, 1).expect_stored(1)
    expect(target.segments() == [0, 1], f"the table has {target.segments()}")


def append_again(target: Target) -> None:
    """An append at an offset that already has rows fails with ALREADY_EXISTS, even on another connection, and
    stores nothing.

    Page: Package google.cloud.bigquery.storage.v1; Stream data using the Storage Write API.
    """
    name = _stream(target)
    first = target.connect(name)
    target.append(first, name, 0, 0, 1).expect_stored(0)
    target.append(first, name, 0, 0, 1).expect_error("ALREADY_EXISTS")
    first.close()
    target.append(target.connect(name), name, 0, 8, 9).expect_error("ALREADY_EXISTS")
    expect(target.segments() == [0, 1], f"the table has {target.segments()}")


def append_beyond_the_end(target: Target) -> None:
    """An append beyond the end fails with OUT_OF_RANGE, and the connection remains usable.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    connection = target.connect(name)
    target.append(connection, name, 0, 0).expect_stored(0)
    target.append(connection, name, 5, 5).expect_error("OUT_OF_RANGE")
    target.append(connection, name, 1, 1).expect_stored(1)
    expect(target.segments() == [0, 1], f"the table has {target.segments()}")


def finalize_a_stream(target: Target) -> None:
    """Finalizing a stream returns the number of rows; a later append is refused.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    target.append(target.connect(name), name, 0, 0, 1, 2).expect_stored(0)
    count = target.writer().finalize_write_stream(name=name, retry=None, timeout=10).row_count
    expect(count == 3, f"the row count is {count}")
    answer = target.append(target.connect(name), name, 3, 3)
    expect(bool(answer.status), "an append is accepted afterwards")
    expect(target.segments() == [0, 1, 2], f"the table has {target.segments()}")


def append_to_an_unknown_stream(target: Target) -> None:
    """An append to a stream that does not exist fails with NOT_FOUND.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = f"{_stream(target).rpartition('/')[0]}/{'0' * 32}"
    target.append(target.connect(name), name, 0, 0).expect_error("NOT_FOUND")


def finalize_an_unknown_stream(target: Target) -> None:
    """Finalizing a stream that does not exist fails with NOT_FOUND.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = f"{_stream(target).rpartition('/')[0]}/{'0' * 32}"
    refused(lambda: target.writer().finalize_write_stream(name=name, retry=None, timeout=10)).expect_error(
        "NOT_FOUND"
    )


def codes_of_errors(target: Target) -> None:
    """An append error contains BigQuery's own error code in its details, which clients use to distinguish errors.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    connection = target.connect(name)
    target.append(connection, name, 0, 0).expect_stored(0)
    unknown = f"{name.rpartition('/')[0]}/{'0' * 32}"
    extra = target.append_request(name, 1, target.encoded(1), _wider(target))
    found: dict[Any, AppendResult] = {
        Code.OFFSET_ALREADY_EXISTS: target.append(connection, name, 0, 0),
        Code.OFFSET_OUT_OF_RANGE: target.append(connection, name, 9, 9),
        Code.STREAM_NOT_FOUND: target.append(target.connect(unknown), unknown, 0, 0),
        Code.SCHEMA_MISMATCH_EXTRA_FIELDS: target.send(target.connect(name), extra),
    }
    target.writer().finalize_write_stream(name=name, retry=None, timeout=10)
    found[Code.STREAM_FINALIZED] = target.append(target.connect(name), name, 1, 1)
    missing = [code.name for code, answer in found.items() if answer.code != code]
    expect(not missing, f"without {', '.join(missing)}")


def bad_rows_are_named(target: Target) -> None:
    """An append with bad rows fails with INVALID_ARGUMENT; the error names each bad row, and no row is stored.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    connection = target.connect(name)
    rows = target.encoded(0, 1, 2, 3)
    broken = _without(target, "row_id", 1), _without(target, "timestamp", 3)
    request = target.append_request(name, 0, [rows[0], broken[0], rows[2], broken[1]], target.descriptor)
    answer = target.send(connection, request).expect_error("INVALID_ARGUMENT")
    expect(answer.rows == (1, 3), f"it names the rows {list(answer.rows)}, not 1 and 3")
    expect(target.segments() == [], f"the table has {target.segments()}")
    target.append(target.connect(name), name, 0, 0).expect_stored(0)


def _without(target: Target, column: str, number: int) -> bytes:
    """Returns a message without a REQUIRED column."""
    message = target.message(number)
    message.ClearField(column)
    return bytes(message.SerializeToString())


def field_that_the_table_lacks(target: Target) -> None:
    """A writer schema with a field that the table lacks is refused, and nothing is stored.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    rows = [data + EXTRA for data in target.encoded(0)]
    answer = target.send(target.connect(name), target.append_request(name, 0, rows, _wider(target)))
    expect(bool(answer.status), "it is accepted")
    expect(target.segments() == [], f"the table has {target.segments()}")


def _wider(target: Target) -> Any:
    """Returns the writer schema with one more field, `extra`."""
    made = descriptor_pb2.DescriptorProto()
    made.CopyFrom(target.descriptor)
    kind, label = (
        descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    )
    made.field.add(name="extra", number=100, type=kind, label=label)
    return made


def column_added_while_a_stream_is_open(target: Target) -> None:
    """After a column is added, a response on the open connection has the new schema, and rows may contain the
    column.

    Page: Package google.cloud.bigquery.storage.v1; Introduction to the BigQuery Storage Write API.
    """
    fields = target.create_table()["schema"]["fields"]
    name = str(target.create_stream().name)
    connection = target.connect(name)
    target.append(connection, name, 0, 0).expect_stored(0)
    added = {"schema": {"fields": [*fields, {"name": "extra", "type": "STRING", "mode": "NULLABLE"}]}}
    target.call("PATCH", target.path(), added).expect(200)

    offset, until = 1, time.monotonic() + SCHEMA_SECONDS_MAX
    while not target.append(connection, name, offset, offset).expect_stored(offset).has_new_schema:
        offset += 1
        if offset > 5 or time.monotonic() > until:
            raise Mismatch("no response has the updated schema")
    connection.close()
    (data,) = target.encoded(90)
    request = target.append_request(name, offset + 1, [data + EXTRA], _wider(target))
    target.send(target.connect(name), request).expect_stored(offset + 1)
    expect(target.query("SELECT extra FROM FACTS WHERE segment_id = 90") == [("e",)], "the column is not stored")


def first_request_without_a_schema(target: Target) -> None:
    """The first request on a connection must contain the writer schema.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    request = target.append_request(name, 0, target.encoded(0))
    target.send(target.connect(name), request).expect_error("INVALID_ARGUMENT")


def append_of_fifteen_megabytes(target: Target) -> None:
    """An append below 20 MB is accepted.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    rows = [_large(target, number, APPEND_BYTES_MAX // 20) for number in range(15)]
    request = target.append_request(name, 0, rows, target.descriptor)
    target.send(target.connect(name), request).expect_stored(0)


def append_too_large(target: Target) -> None:
    """An append of 20 MB or more fails with INVALID_ARGUMENT, and stores nothing.

    Page: Package google.cloud.bigquery.storage.v1.
    """
    name = _stream(target)
    rows = [_large(target, number, APPEND_BYTES_MAX // 20) for number in range(20)]
    request = target.append_request(name, 0, rows, target.descriptor)
    target.send(target.connect(name), request).expect_error("INVALID_ARGUMENT")
    expect(target.segments() == [], "rows of it are stored")


def _large(target: Target, number: int, size_bytes: int) -> bytes:
    """Returns a row of at least that size."""
    message = target.message(number)
    message.event_type = "x" * size_bytes
    return bytes(message.SerializeToString())


def delete_appended_rows(target: Target) -> None:
    """Rows that have just been appended can be deleted by project and replay, as erasure does.

    Page: Data manipulation language (DML) statements in GoogleSQL; Introduction to the BigQuery Storage Write API.
    """
    name = _stream(target)
    target.append(target.connect(name), name, 0, 0, 1, 2).expect_stored(0)
    parameters = [
        bigquery.ScalarQueryParameter("project", "INT64", 2),
        bigquery.ScalarQueryParameter("replay", "STRING", row(1)["replay_id"]),
    ]
    job = target.job("DELETE FROM FACTS WHERE project_id = @project AND replay_id = @replay", parameters)
    job.result(retry=None, timeout=10)
    expect(job.num_dml_affected_rows == 1, f"numDmlAffectedRows is {job.num_dml_affected_rows}")
    expect(target.segments() == [0, 2], f"the table has {target.segments()}")


OPERATIONS = tuple(
    map(
        operation_of,
        (
            create_a_stream,
            create_a_stream_of_a_missing_table,
            get_a_stream,
            append_at_offsets,
            append_without_an_offset,
            append_again,
            append_beyond_the_end,
            finalize_a_stream,
            append_to_an_unknown_stream,
            finalize_an_unknown_stream,
            codes_of_errors,
            bad_rows_are_named,
            field_that_the_table_lacks,
            column_added_while_a_stream_is_open,
            first_request_without_a_schema,
            append_of_fifteen_megabytes,
            append_too_large,
            delete_appended_rows,
        ),
    )
)
