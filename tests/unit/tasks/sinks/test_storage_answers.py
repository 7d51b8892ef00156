"""Rows as protobuf messages, records of appends, and responses of the Storage Write API, tested without a
server.
"""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from google.api_core import exceptions as from_api
from google.cloud.bigquery_storage_v1.types import AppendRowsResponse, StorageError
from google.protobuf import any_pb2
from hypothesis import given
from hypothesis import strategies as st

from ingest.core.parse.rows import moment
from tasks.sinks.bigquery.append_answers import BLAME_BY_CODE, ENDED_CODES, Verdict, judge, judge_error
from tasks.sinks.bigquery.append_record import Append, decode, encode, ranges
from tasks.sinks.bigquery.row_encoding import RowEncoder
from tasks.sinks.bigquery.table import columns_of
from tasks.sinks.outcome import Blame, Failure
from tests.kit.write_streams import TABLE, fact

ENCODER = RowEncoder(TABLE)
APPEND = Append(TABLE, "s", 7, ((0, 3),))
Code = StorageError.StorageErrorCode


def message(row: bytes) -> Any:
    """Decodes the serialized row as a server would."""
    encoded = ENCODER.encode(row)
    assert isinstance(encoded, bytes), encoded
    return ENCODER._message.FromString(encoded)


def failure(row: bytes) -> Failure:
    """Returns the reason why the row is refused."""
    found = ENCODER.encode(row)
    assert isinstance(found, Failure)
    return found


def response(status: grpc.StatusCode, code: Any = None, rows: tuple[int, ...] = ()) -> Any:
    """Returns a response with an error."""
    made = AppendRowsResponse.pb()()
    made.error.code, made.error.message = status.value[0], "text"
    if code is not None:
        detail = any_pb2.Any()
        detail.Pack(StorageError.pb()(code=code))
        made.error.details.append(detail)
    for index in rows:
        made.row_errors.add(index=index, message=f"row {index}")
    return made


def test_a_row_has_the_values_of_its_json() -> None:
    """A serialized row has one field per column, with the same values as the row's JSON; if the JSON lacks a
    column, the column's field is not set.
    """
    found = message(fact(3, org_id=2**62).json)

    assert (found.row_id, found.segment_id, found.org_id) == ("row-3", 3, 2**62)
    assert json.loads(found.attributes) == {"url": 'http://a/"ä'}
    assert not found.HasField("retention_days")
    assert [field.name for field in found.DESCRIPTOR.fields] == list(columns_of(TABLE))


@given(st.integers(min_value=0, max_value=4_000_000_000_000_000))
def test_timestamps_are_exact_to_the_microsecond(microseconds: int) -> None:
    """Timestamps are exact to the microsecond until the year 2096, both as RFC 3339 text, which the reader writes,
    and as a number of seconds, which release 0.2 wrote.
    """
    seconds = microseconds / 1e6

    assert message(fact(1, timestamp=moment(seconds)).json).timestamp == microseconds
    assert message(fact(1, timestamp=seconds).json).timestamp == microseconds


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"segment_id": "many"}, "segment_id"),
        ({"segment_id": 2**63}, ""),
        ({"attributes": {"a": 1}}, "attributes"),
        ({"row_id": None}, "row_id"),
        ({"timestamp": "noon"}, "timestamp"),
    ],
)
def test_a_bad_value_blames_its_row(given: dict[str, Any], named: str) -> None:
    """A row with a bad value is refused, and the error names the column."""
    found = failure(fact(1, **given).json)
    assert (found.blame, named in found.message) == (Blame.ROW, True)


@pytest.mark.parametrize("row", [b"", b"{", b"[]", b'"text"', b"\xff", b"{}"])
def test_a_row_that_is_no_complete_object_is_refused(row: bytes) -> None:
    assert failure(row).blame is Blame.ROW


def test_an_unknown_column_blames_no_row() -> None:
    """A row with an unknown column, as written by a reader newer than the worker, is not blamed."""
    found = failure(fact(1, brand_new=1).json)
    assert found.blame is Blame.TABLE
    assert "brand_new" in found.message


@given(st.lists(st.integers(min_value=0, max_value=50), unique=True))
def test_a_record_has_the_positions_in_their_order(positions: list[int]) -> None:
    append = Append(TABLE, "s", 5, ranges(positions))

    (found,) = decode(encode([append]))

    assert (found, found.positions, found.count, found.stop) == (
        append,
        positions,
        len(positions),
        5 + len(positions),
    )
    assert decode(b"") == []


def test_only_the_result_of_the_sent_offset_proves_an_append() -> None:
    """An append is confirmed only by a result with the offset that was sent, and not by a result without an
    offset or with another offset.
    """
    for offset, verdict in ((7, Verdict.APPLIED), (0, Verdict.FAILED), (8, Verdict.FAILED)):
        made = AppendRowsResponse.pb()()
        made.append_result.offset.value = offset
        assert judge(made, APPEND).verdict is verdict
    made = AppendRowsResponse.pb()()
    made.append_result.SetInParent()
    assert judge(made, APPEND).verdict is Verdict.FAILED
    assert judge(AppendRowsResponse.pb()(), APPEND).verdict is Verdict.FAILED


def test_every_code_of_bigquery_is_sorted() -> None:
    """Every error code of BigQuery is classified, so this test fails when an upgrade of the client adds one."""
    sorted_elsewhere = {Code.STORAGE_ERROR_CODE_UNSPECIFIED, Code.STREAM_NOT_FOUND, Code.OFFSET_ALREADY_EXISTS}
    assert set(Code) == {*BLAME_BY_CODE, *ENDED_CODES, *sorted_elsewhere}


@pytest.mark.parametrize(
    ("status", "code", "verdict", "blame"),
    [
        (grpc.StatusCode.ALREADY_EXISTS, None, Verdict.APPLIED, None),
        (grpc.StatusCode.INTERNAL, Code.OFFSET_ALREADY_EXISTS, Verdict.APPLIED, None),
        (grpc.StatusCode.OUT_OF_RANGE, None, Verdict.ENDED, Blame.SERVER),
        (grpc.StatusCode.INVALID_ARGUMENT, Code.STREAM_FINALIZED, Verdict.ENDED, Blame.SERVER),
        (grpc.StatusCode.NOT_FOUND, None, Verdict.MISSING, Blame.SERVER),
        (grpc.StatusCode.NOT_FOUND, Code.TABLE_NOT_FOUND, Verdict.FAILED, Blame.TABLE),
        (grpc.StatusCode.INVALID_ARGUMENT, Code.SCHEMA_MISMATCH_EXTRA_FIELDS, Verdict.FAILED, Blame.TABLE),
        (grpc.StatusCode.INVALID_ARGUMENT, None, Verdict.REFUSED, Blame.BATCH),
        (grpc.StatusCode.PERMISSION_DENIED, None, Verdict.FAILED, Blame.CREDENTIALS),
        (grpc.StatusCode.UNAUTHENTICATED, None, Verdict.FAILED, Blame.CREDENTIALS),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, None, Verdict.FAILED, Blame.SERVER),
        (grpc.StatusCode.UNAVAILABLE, None, Verdict.FAILED, Blame.SERVER),
        (grpc.StatusCode.ABORTED, None, Verdict.FAILED, Blame.SERVER),
        (grpc.StatusCode.INTERNAL, Code.KMS_SERVICE_ERROR, Verdict.FAILED, Blame.SERVER),
    ],
)
def test_errors_are_sorted_by_code_and_status(
    status: grpc.StatusCode, code: Any, verdict: Verdict, blame: Blame | None
) -> None:
    """Errors are classified by code and status, whether they arrive in a response or end the call."""
    found = [judge(response(status, code), APPEND)]
    if code is None:
        found.append(judge_error(from_api.from_grpc_status(status, "text")))  # type: ignore[no-untyped-call]
    for judgment in found:
        assert judgment.verdict is verdict
        assert (judgment.failure.blame if judgment.failure else None) is blame


def test_named_rows_are_refused_and_others_are_not_believed() -> None:
    """Rows that an error names are refused, and an index outside the append is ignored."""
    found = judge(response(grpc.StatusCode.INVALID_ARGUMENT, rows=(0, 2, 3)), APPEND)
    assert found.verdict is Verdict.REFUSED
    assert [index for index, _ in found.rows] == [0, 2]


def test_a_request_that_is_too_large_is_split() -> None:
    error = from_api.ResourceExhausted("Received message larger than max (9 vs. 4)")  # type: ignore[no-untyped-call]
    found = judge_error(error)
    assert found.failure is not None
    assert (found.verdict, found.failure.blame) == (Verdict.REFUSED, Blame.SIZE)
