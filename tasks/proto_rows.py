"""Encodes and decodes rows as the protobuf messages of the Storage Write API, for readers and workers.

A message has one optional field per column, numbered from 1 in the order of the columns: INTEGER and TIMESTAMP
(microseconds) are int64; STRING and JSON are strings. Absent columns have no field. Rows are framed as in
BigQuery's ProtoRows message: each is preceded by a tag and its length, so that concatenated rows are a valid
message. This module encodes messages itself, because the core must not import the protobuf library. Tests compare
its bytes with those of the library. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec

Columns = tuple[tuple[str, str], ...]
"""Name and BigQuery type of each column, in the order of the field numbers."""

FACT_TABLE = "replay_events"
FACT_COLUMNS: Columns = (
    ("row_id", "STRING"),
    ("event_type", "STRING"),
    ("timestamp", "TIMESTAMP"),
    ("org_id", "INTEGER"),
    ("project_id", "INTEGER"),
    ("replay_id", "STRING"),
    ("segment_id", "INTEGER"),
    ("retention_days", "INTEGER"),
    ("attributes", "JSON"),
)
TEXT_TYPES = frozenset({"STRING", "JSON"})
TYPES = TEXT_TYPES | {"INTEGER", "TIMESTAMP"}
MICROSECONDS = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMES = range(253_402_300_800 * MICROSECONDS)
"""Times that can be formatted as text."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")
_COLUMNS_MAX = 1000
_INT64, _UINT64 = 1 << 63, 1 << 64
_VARINT_BYTES_MAX = 10
_VARINT, _BYTES = 0, 2
_ROW = b"\x0a"  # tag of field 1 of ProtoRows, which is length-delimited


_ONE_BYTE = tuple(bytes((number,)) for number in range(128))
# Encodings of two 7-bit groups that are followed by further groups of the same varint; index: their 14-bit value.
_PAIRS = tuple(bytes((pair & 127 | 128, pair >> 7 | 128)) for pair in range(1 << 14))


def varint(number: int) -> bytes:
    """Encodes a non-negative integer as a base-128 varint."""
    if number < 128:
        return _ONE_BYTE[number]
    made = b""
    while number >= 1 << 14:
        made += _PAIRS[number & 16383]
        number >>= 14
    return made + (_ONE_BYTE[number] if number < 128 else bytes((number & 127 | 128, number >> 7)))


# Tag and length of the first and of the last column. A row in ProtoRows is also field 1.
_FIELD_1_HEADERS = tuple(b"\x0a" + varint(length) for length in range(4096))
_FIELD_9_HEADERS = tuple(b"\x4a" + varint(length) for length in range(4096))
# Event types longer than this are not cached.
_CACHED_CHARACTERS_MAX = 64


@lru_cache(maxsize=512)
def _between(event_type: str) -> bytes:
    """Returns the bytes between the first column and the value of the third column."""
    return text_field(2, event_type.encode()) + b"\x18"


def integer_field(number: int, value: int) -> bytes:
    """Encodes an int64 field. Raises OverflowError if the value does not fit."""
    if not -_INT64 <= value < _INT64:
        raise OverflowError(f"{value} is not an int64")
    return varint(number << 3 | _VARINT) + varint(value % _UINT64)


def text_field(number: int, value: bytes) -> bytes:
    """Encodes a string field; `value` is UTF-8."""
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def framed(message: bytes) -> bytes:
    """Frames a row's message as one entry of ProtoRows."""
    return _ROW + varint(len(message)) + message


class FactEncoder:
    """Encodes the facts of one segment. Raises OverflowError for ids below 0 or above the maximum of int64."""

    __slots__ = ("_after_low", "_high_bits", "_shared")

    def __init__(self, org_id: int, project_id: int, replay_id: str, segment_id: int, retention_days: int) -> None:
        ids = (org_id, project_id, segment_id, retention_days)
        if min(ids) < 0 or max(ids) >= _INT64:
            raise OverflowError(f"one of {ids} is not from 0 to {_INT64 - 1}")
        replay = replay_id.encode()
        parts = (
            b"\x20",
            varint(org_id),
            b"\x28",
            varint(project_id),
            b"\x32",
            varint(len(replay)),
            replay,
            b"\x38",
            varint(segment_id),
            b"\x40",
            varint(retention_days),
        )
        self._shared = b"".join(parts)
        self._after_low, self._high_bits = b"", 0
        """`_after_low`: the bytes that follow the lower 28 bits of a time whose other bits are `_high_bits`."""

    def framed_fact(self, row_id: bytes, event_type: str, microseconds: int, attributes: bytes) -> bytes:
        """Returns one framed row. `row_id` and `attributes` are UTF-8; `microseconds` is Unix time. Runs once per
        fact.
        """
        high_bits = microseconds >> 28
        if high_bits != self._high_bits:  # the high bits change every 268 s
            self._high_bits = high_bits
            self._after_low = (varint(high_bits) if high_bits > 0 else b"") + self._shared
        if high_bits > 0 and len(event_type) <= _CACHED_CHARACTERS_MAX:
            try:
                row = b"".join(
                    (
                        _FIELD_1_HEADERS[len(row_id)],
                        row_id,
                        _between(event_type),
                        _PAIRS[microseconds & 16383],
                        _PAIRS[microseconds >> 14 & 16383],
                        self._after_low,
                        _FIELD_9_HEADERS[len(attributes)],
                        attributes,
                    )
                )
                return _FIELD_1_HEADERS[len(row)] + row
            except IndexError:
                pass
        return self._framed_slowly(row_id, event_type, microseconds, attributes)

    def _framed_slowly(self, row_id: bytes, event_type: str, microseconds: int, attributes: bytes) -> bytes:
        """Returns one framed row. Accepts values of any length and any int64 as the time, but is slower than the
        code in `framed_fact`, which calls this method only for long values and for times less than 268 s after the
        Unix epoch.
        """
        return framed(
            text_field(1, row_id)
            + text_field(2, event_type.encode())
            + integer_field(3, microseconds)
            + self._shared
            + text_field(9, attributes)
        )


def are_columns_known(columns: Columns) -> bool:
    """Returns whether this release can describe rows with these columns to BigQuery."""
    names = [name for name, _ in columns]
    return (
        len(set(names)) == len(names) <= _COLUMNS_MAX
        and all(_NAME.fullmatch(name) for name in names)
        and all(kind in TYPES for _, kind in columns)
    )


def places_of(rows: bytes) -> list[tuple[int, int]]:
    """Returns the start and stop of each message in framed rows. Raises ValueError for other bytes."""
    found = []
    at, end = 0, len(rows)
    while at < end:
        if rows[at] != _ROW[0]:
            raise ValueError(f"no row begins at byte {at}")
        size_bytes, start = _varint_at(rows, at + 1)
        at = start + size_bytes
        if at > end:
            raise ValueError("the last row is truncated")
        found.append((start, at))
    return found


def to_json(columns: Columns, message: bytes) -> bytes:
    """Returns a row as one JSON object without a newline, as the reader writes it without protobuf. Raises
    ValueError.
    """
    found: dict[str, Any] = {}
    at = 0
    while at < len(message):
        tag, at = _varint_at(message, at)
        number, kind = tag >> 3, tag & 7
        if not 1 <= number <= len(columns):
            raise ValueError(f"a row has the field {number}, which is no column")
        name, column_type = columns[number - 1]
        if kind != (_BYTES if column_type in TEXT_TYPES else _VARINT):
            raise ValueError(f"{name} has the wire type {kind}")
        value, at = _varint_at(message, at)
        if kind == _BYTES:
            if at + value > len(message):
                raise ValueError(f"{name} is truncated")
            found[name] = message[at : at + value].decode()
            at += value
        else:
            signed = value - _UINT64 if value >= _INT64 else value
            found[name] = signed if column_type != "TIMESTAMP" else _time(signed)
    return msgspec.json.encode({name: found[name] for name, _ in columns if name in found})


def _time(microseconds: int) -> str | float:
    """Returns the time as text, or as a number of seconds if it is outside the range TIMES. The times in rows that
    the reader encodes are always in this range.
    """
    return time_text(microseconds) if microseconds in TIMES else microseconds / MICROSECONDS


def time_text(microseconds: int) -> str:
    """Formats a Unix time from 1970 to 9999 as RFC 3339, in UTC."""
    return f"{time_of(microseconds).replace(tzinfo=None).isoformat()}Z"


def time_of(microseconds: int) -> datetime:
    """Converts a Unix time from 1970 to 9999 to a datetime in UTC."""
    return EPOCH + timedelta(microseconds=microseconds)


def fact_id(project_id: int, row_id: str) -> str:
    """Returns the identity of a fact (docs/decisions/020-project-in-identity.md)."""
    return f"{project_id}-{row_id}"


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    """Decodes a varint; returns it and the position after it. Raises ValueError."""
    value = 0
    for place, byte in enumerate(data[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            if value >= _UINT64:
                break
            return value, at + place + 1
    raise ValueError(f"no number at byte {at}")


def joined(rows: bytes, places: Sequence[tuple[int, int]]) -> bytes:
    """Returns the rows at these positions, framed and in the given order."""
    return b"".join([framed(rows[start:stop]) for start, stop in places])
