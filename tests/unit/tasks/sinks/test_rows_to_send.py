"""Tests how the rows of a write are selected by position, and how requests are assembled from bytes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from google.cloud.bigquery_storage_v1 import types
from hypothesis import given
from hypothesis import strategies as st

from tasks.proto_rows import FACT_COLUMNS
from tasks.sinks.bigquery.append_record import ranges
from tasks.sinks.bigquery.row_encoding import RowEncoder, schema_of
from tasks.sinks.bigquery.rows_to_send import Positions, ReaderRows, rows_to_send
from tasks.sinks.bigquery.streams import TRACE_ID, request_of
from tasks.sinks.outcome import Outcome
from tasks.wire import EncodedRows, Incompatible, Row
from tests.kit.write_streams import TABLE, encoded, fact

ENCODERS = {TABLE: RowEncoder(TABLE)}
REQUEST, PROTO_ROWS = types.AppendRowsRequest.pb(), types.ProtoRows.pb()
FACTS = [fact(number) for number in range(10)]


@given(st.text(max_size=20), st.integers(0, 2**63 - 1), st.lists(st.binary(max_size=40)), st.booleans())
def test_a_request_is_that_of_googles_library(stream: str, offset: int, rows: list[bytes], is_first: bool) -> None:
    """A request is identical to the one that Google's library sends: the first request on a connection contains
    the schema, and later requests do not.
    """
    schema = ENCODERS[TABLE].schema if is_first else b""
    expected = REQUEST(write_stream=stream, trace_id=TRACE_ID if is_first else "")
    expected.offset.value = offset
    expected.proto_rows.rows.serialized_rows.extend(rows)
    if is_first:
        expected.proto_rows.writer_schema.MergeFromString(schema)

    sent = request_of(stream, offset, PROTO_ROWS(serialized_rows=rows).SerializeToString(), schema)

    assert REQUEST.FromString(sent) == expected
    assert sent.count(TRACE_ID.encode()) == is_first


def test_the_schema_describes_the_columns_of_the_rows() -> None:
    """The schema describes the columns of the release that wrote the rows, and not those of this release."""
    found = types.ProtoSchema.pb().FromString(schema_of(TABLE, (*FACT_COLUMNS[:2], ("brand_new", "INTEGER"))))

    assert [(field.name, field.number) for field in found.proto_descriptor.field] == [
        ("row_id", 1),
        ("event_type", 2),
        ("brand_new", 3),
    ]
    assert schema_of(TABLE, FACT_COLUMNS) == ENCODERS[TABLE].schema


@given(st.lists(st.integers(0, 30), unique=True))
def test_positions_in_any_order(given: list[int]) -> None:
    """Rows can be selected at any positions in any order, whether contiguous or not."""
    positions = Positions(given)

    assert list(positions) == given
    assert [positions.index(position) for position in given] == list(range(len(given)))
    assert {position for position in range(40) if position in positions} == set(given)
    for start in range(32):
        for stop in range(start + 1, 33):
            assert positions.contain(((start, stop),)) == set(range(start, stop)).issubset(given)
    assert positions.contain(ranges(given))


@pytest.mark.parametrize("form", [list, encoded])
@pytest.mark.parametrize("positions", [range(10), range(20, 30), [3, 5, 6, 9, 11, 12, 13, 20, 21, 22]])
def test_both_forms_send_the_same_rows(form: type, positions: Sequence[int]) -> None:
    """Whether all rows or only some are sent, both forms send the same rows, and the sizes equal the number of
    bytes sent.
    """
    outcome = Outcome("bigquery")
    rows = rows_to_send(ENCODERS, form(FACTS), Positions(positions), outcome)
    expected = [ENCODERS[TABLE].encode(item.json) for item in FACTS]
    chosen = list(positions)[2:5]

    everything = rows.framed(ranges(positions))

    assert list(PROTO_ROWS.FromString(everything).serialized_rows) == expected
    assert list(PROTO_ROWS.FromString(rows.framed(ranges(chosen))).serialized_rows) == expected[2:5]
    assert rows.size_bytes == len(everything) == sum(map(rows.bytes_of, positions))
    assert rows.schema(TABLE) == ENCODERS[TABLE].schema
    assert {rows.table(position) for position in positions} == {rows.only_table} == {TABLE}
    outcome.raise_if_any()


@pytest.mark.parametrize("rows", [b"", b"\x0a\x00", b"\x0a\x05a", b"\xff" * 100])
def test_other_bytes_than_the_stated_rows_are_not_sent(rows: bytes) -> None:
    """Bytes that do not contain the stated number of rows are not sent, because the offsets of later appends would
    be wrong.
    """
    staged = msgspec.structs.replace(encoded(FACTS).staged, rows=rows)

    with pytest.raises(Incompatible, match="staged rows of bigquery"):
        ReaderRows(EncodedRows(staged), Positions(range(10)))


def test_rows_in_json_of_several_tables_have_no_common_one() -> None:
    encoders = {**ENCODERS, "other": ENCODERS[TABLE]}
    items = [FACTS[0], Row("other", "a", FACTS[1].json, 1)]

    assert rows_to_send(encoders, items, Positions(range(2)), Outcome("bigquery")).only_table is None
