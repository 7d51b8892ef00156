"""Rows that are encoded as protobuf equal those that Google's library encodes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.cloud.bigquery_storage_v1 import types
from hypothesis import given
from hypothesis import strategies as st

from tasks.proto_rows import (
    FACT_COLUMNS,
    FACT_TABLE,
    TIMES,
    TYPES,
    Columns,
    FactEncoder,
    are_columns_known,
    framed,
    integer_field,
    joined,
    places_of,
    text_field,
    to_json,
)
from tasks.sinks.bigquery.row_encoding import RowEncoder
from tasks.sinks.bigquery.table import columns_of
from tests.kit.write_streams import microseconds_of

MESSAGE = RowEncoder(FACT_TABLE)._message
PROTO_ROWS = types.ProtoRows.pb()
INT64 = st.integers(-(2**63), 2**63 - 1)
ID = st.integers(0, 2**63 - 1)
# Includes strings whose encoded length is just inside or just outside a range of precomputed length prefixes.
TEXT = st.one_of(
    st.text(), st.sampled_from(["", "a" * 63, "ä" * 64, "b" * 128, "c" * 4095, "d" * 4096, "é" * 20_000])
)
TIME = st.one_of(INT64, st.sampled_from([-1, 0, TIMES.stop - 1, TIMES.stop]), st.integers(0, TIMES.stop - 1))
VALUES = {"STRING": TEXT, "JSON": TEXT, "INTEGER": INT64, "TIMESTAMP": TIME}
NULLABLE = {name: st.none() | VALUES[kind] for name, kind in FACT_COLUMNS}


def by_hand(columns: Columns, values: dict[str, Any]) -> bytes:
    """Builds the message of one row, field by field."""
    parts = []
    for number, (name, _) in enumerate(columns, 1):
        value = values.get(name)
        if isinstance(value, str):
            parts.append(text_field(number, value.encode()))
        elif value is not None:
            parts.append(integer_field(number, value))
    return b"".join(parts)


def test_the_facts_have_the_columns_of_their_table() -> None:
    """The encoder's list of fact columns equals the table's columns, so a new column, or a column with another
    type or mode, must be added to the encoder.
    """
    fields = columns_of(FACT_TABLE)

    assert tuple((name, field["type"]) for name, field in fields.items()) == FACT_COLUMNS
    assert {field["type"] for field in fields.values()} <= TYPES
    assert {field.get("mode", "NULLABLE") for field in fields.values()} <= {"NULLABLE", "REQUIRED"}


@given(ID, ID, TEXT, ID, ID, TEXT, TEXT, INT64, TEXT)
def test_a_fact_is_encoded_as_by_googles_library(
    org: int,
    project: int,
    replay: str,
    segment: int,
    days: int,
    row_id: str,
    kind: str,
    time: int,
    attributes: str,
) -> None:
    """A fact is encoded byte for byte as Google's library encodes it.

    The values include Unicode, long and empty strings, large numbers, and times before 1970.
    """
    encoder = FactEncoder(org, project, replay, segment, days)
    expected = MESSAGE(
        row_id=row_id,
        event_type=kind,
        timestamp=time,
        org_id=org,
        project_id=project,
        replay_id=replay,
        segment_id=segment,
        retention_days=days,
        attributes=attributes,
    ).SerializeToString()

    for _ in range(2):  # in the second pass, the encoder reuses cached bytes of the timestamp
        encoded = encoder.framed_fact(row_id.encode(), kind, time, attributes.encode())
        assert encoded == PROTO_ROWS(serialized_rows=[expected]).SerializeToString()


@given(st.lists(st.integers(0, 2**53), min_size=1, max_size=20))
def test_facts_of_a_segment_share_nothing_but_their_segment(times: list[int]) -> None:
    """The facts of a segment are encoded independently of each other, so their times may be in any order."""
    encoder = FactEncoder(1, 2, "a" * 32, 3, 30)
    rows = b"".join(encoder.framed_fact(b"row-%d" % time, "ui.click", time, b"{}") for time in times)

    found = [MESSAGE.FromString(row) for row in PROTO_ROWS.FromString(rows).serialized_rows]

    assert [row.timestamp for row in found] == times
    assert [row.row_id for row in found] == [f"row-{time}" for time in times]


@given(st.fixed_dictionaries(NULLABLE))
def test_nulls_and_negative_numbers_are_encoded_as_by_googles_library(values: dict[str, Any]) -> None:
    given = {name: value for name, value in values.items() if value is not None}

    assert by_hand(FACT_COLUMNS, values) == MESSAGE(**given).SerializeToString()


@given(st.fixed_dictionaries(NULLABLE))
def test_a_row_of_googles_library_becomes_json(values: dict[str, Any]) -> None:
    """In a row's JSON, absent columns are left out, and times are strings, or numbers of seconds if a string
    cannot represent them.
    """
    given = {name: value for name, value in values.items() if value is not None}
    found = json.loads(to_json(FACT_COLUMNS, MESSAGE(**given).SerializeToString()))

    if "timestamp" in given:
        time = given.pop("timestamp")
        as_text = found.pop("timestamp")
        assert as_text == time / 1e6 if time not in TIMES else microseconds_of(as_text) == time
    assert found == given


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_numbers_outside_int64_are_refused(value: int) -> None:
    with pytest.raises(OverflowError):
        integer_field(1, value)
    for ids in ((value, 1, 1, 1), (1, value, 1, 1), (1, 1, value, 1), (1, 1, 1, value)):
        with pytest.raises(OverflowError):
            FactEncoder(ids[0], ids[1], "a", ids[2], ids[3])


@given(st.lists(st.binary(max_size=300)), st.randoms())
def test_framed_rows_are_found_again(rows: list[bytes], random: Any) -> None:
    data = b"".join(map(framed, rows))
    places = places_of(data)
    random.shuffle(places)

    assert data == PROTO_ROWS(serialized_rows=rows).SerializeToString()
    assert sorted(data[start:stop] for start, stop in places) == sorted(rows)
    assert joined(data, places) == b"".join(framed(data[start:stop]) for start, stop in places)


@given(st.binary(max_size=60))
def test_other_bytes_are_refused(data: bytes) -> None:
    """Invalid bytes, such as those from Redis, raise ValueError and no other exception."""
    for read in (places_of, lambda message: to_json(FACT_COLUMNS, message)):
        try:
            read(data)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\x05abc",
        b"\x0a",
        b"\x0a\x01\xff",
        b"\x08\x01",
        b"\x1a\x00",
        b"\x50\x00",
        b"\x00\x00",
        b"\x18" + b"\xff" * 9 + b"\x02",
        b"\x18" + b"\x80" * 10 + b"\x01",
    ],
)
def test_a_broken_row_is_refused(message: bytes) -> None:
    """A row is refused if it is truncated, is not UTF-8, has a value of the wrong type, lacks a column, or
    contains a number that does not fit in 64 bits.
    """
    with pytest.raises(ValueError):
        to_json(FACT_COLUMNS, message)


@pytest.mark.parametrize(
    "columns",
    [
        (("a", "FLOAT"),),
        (("a", "STRING"), ("a", "STRING")),
        (("a b", "STRING"),),
        (("", "STRING"),),
        tuple((f"c{number}", "STRING") for number in range(1001)),
    ],
)
def test_columns_of_a_newer_release_may_be_unknown(columns: Columns) -> None:
    """Columns of a newer release may be unknown, but their types and the form of their names must be valid in
    BigQuery.
    """
    assert not are_columns_known(columns)
    assert are_columns_known(FACT_COLUMNS)
    assert are_columns_known((*FACT_COLUMNS, ("brand_new", "INTEGER")))
