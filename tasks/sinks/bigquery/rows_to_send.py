"""The rows of one write as protobuf messages: as the reader encoded them, or encoded here from JSON.

Rows are identified by their positions in the task's payload.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from google.cloud.bigquery_storage_v1 import types
from google.protobuf.message import DecodeError

from tasks.proto_rows import framed
from tasks.sinks.bigquery.row_encoding import RowEncoder, schema_of
from tasks.sinks.outcome import Blame, Failure, Outcome
from tasks.wire import EncodedRows, Incompatible, Row

Ranges = tuple[tuple[int, int], ...]
_ProtoRows = types.ProtoRows.pb()


class Positions:
    """The positions of one write's items in the task's payload, in the order of the items. Converts a position to
    the index of its item in the write. Fast if the positions are contiguous.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        self.all = list(positions)
        first = self.all[0] if self.all else 0
        self._range = range(first, first + len(self.all))
        self._index: Mapping[int, int] | None = None
        if self.all != list(self._range):
            self._index = {position: index for index, position in enumerate(self.all)}

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[int]:
        return iter(self.all)

    def __contains__(self, position: int) -> bool:
        return position in (self._range if self._index is None else self._index)

    def index(self, position: int) -> int:
        """Returns the index of the item at `position`, which must be the position of an item."""
        return position - self._range.start if self._index is None else self._index[position]

    def contain(self, ranges: Ranges) -> bool:
        """Returns whether this object contains every position of the given half-open ranges."""
        if self._index is None:
            return all(self._range.start <= start and stop <= self._range.stop for start, stop in ranges)
        return all(position in self._index for start, stop in ranges for position in range(start, stop))

    def are_exactly(self, ranges: Ranges) -> bool:
        """Returns whether the ranges cover exactly these positions."""
        return self._index is None and ranges == ((self._range.start, self._range.stop),)


class RowsToSend(Protocol):
    """The rows of a write that can be sent, with the schema of each table."""

    positions: Positions

    @property
    def only_table(self) -> str | None:
        """The table to which all rows belong; None if the rows belong to several tables."""

    @property
    def size_bytes(self) -> int:
        """The size of all framed rows, in bytes."""

    def table(self, position: int) -> str:
        """Returns the table of a row."""

    def bytes_of(self, position: int) -> int:
        """Returns the size of one framed row, in bytes."""

    def schema(self, table: str) -> bytes:
        """Returns the schema of a table's rows, as a serialized ProtoSchema message."""

    def framed(self, ranges: Ranges) -> bytes:
        """Returns the rows at these positions, as a serialized ProtoRows message."""


class ReaderRows:
    """Rows that the reader encoded. They are sent unchanged, with the columns that the reader named."""

    def __init__(self, items: EncodedRows, positions: Positions) -> None:
        """Raises Incompatible if the number of rows in the bytes is wrong, because offsets would then be wrong
        too."""
        self.positions = positions
        self._items = items
        try:
            count = len(_ProtoRows.FromString(items.staged.rows).serialized_rows)
        except DecodeError as error:
            raise Incompatible(f"the staged rows of bigquery cannot be read: {error}") from error
        if count != len(items):
            raise Incompatible(f"the staged rows of bigquery are {count} instead of {len(items)}")

    @property
    def only_table(self) -> str | None:
        return self._items.staged.table

    @property
    def size_bytes(self) -> int:
        return len(self._items.staged.rows)

    def table(self, position: int) -> str:
        return self._items.staged.table

    def bytes_of(self, position: int) -> int:
        return self._items.framed_bytes[self.positions.index(position)]

    def schema(self, table: str) -> bytes:
        return schema_of(table, self._items.staged.columns)

    def framed(self, ranges: Ranges) -> bytes:
        if self.positions.are_exactly(ranges):
            return self._items.staged.rows
        wanted = [self.positions.index(position) for start, stop in ranges for position in range(start, stop)]
        return self._items.part(wanted).staged.rows


class JsonRows:
    """Rows that are encoded here from JSON. Rows that do not fit the columns are left out and recorded in
    `outcome`."""

    def __init__(
        self, encoders: Mapping[str, RowEncoder], items: Sequence[Row], positions: Positions, outcome: Outcome
    ) -> None:
        self._encoders = encoders
        self._rows: dict[int, bytes] = {}
        self._tables: dict[int, str] = {}
        for index, (position, item) in enumerate(zip(positions, items, strict=True)):
            encoder = encoders.get(item.table)
            if encoder is None:
                outcome.note(Failure(Blame.TABLE, f"this release writes no table {item.table!r}"), [index])
                continue
            encoded = encoder.encode(item.json)
            if isinstance(encoded, Failure):
                outcome.note(encoded.about(f"table {item.table}"), [index])
            else:
                self._rows[position], self._tables[position] = framed(encoded), item.table
        self.positions = Positions(list(self._rows))

    @property
    def only_table(self) -> str | None:
        tables = set(self._tables.values())
        return tables.pop() if len(tables) == 1 else None

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self._rows.values()))

    def table(self, position: int) -> str:
        return self._tables[position]

    def bytes_of(self, position: int) -> int:
        return len(self._rows[position])

    def schema(self, table: str) -> bytes:
        return self._encoders[table].schema

    def framed(self, ranges: Ranges) -> bytes:
        return b"".join([self._rows[position] for start, stop in ranges for position in range(start, stop)])


def rows_to_send(
    encoders: Mapping[str, RowEncoder], items: Sequence[Row], positions: Positions, outcome: Outcome
) -> RowsToSend:
    """Returns the rows of these items. Rows that cannot be sent are recorded in `outcome`."""
    if not isinstance(items, EncodedRows):
        return JsonRows(encoders, items, positions, outcome)
    if items.staged.table in encoders:
        return ReaderRows(items, positions)
    outcome.note(Failure(Blame.TABLE, f"this release writes no table {items.staged.table!r}"), range(len(items)))
    return JsonRows(encoders, (), Positions(()), outcome)
