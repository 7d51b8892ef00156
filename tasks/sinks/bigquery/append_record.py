"""The record of a flush task's appends: which rows were sent to which stream, at which offset.

The record is stored before the append that it describes, and outlives the run. An offset of a stream is only ever
used for one sequence of rows, so a later run in any process may send the same rows to the same offset again
(see docs/decisions/039-storage-write.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec


class Append(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One append. `rows`: half-open ranges of positions in the task's payload, in the order of the append.

    `applied`: the rows are known to be stored.
    """

    table: str
    stream: str
    offset: int
    rows: tuple[tuple[int, int], ...]
    applied: bool = False

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(stop - start for start, stop in self.rows)

    @property
    def stop(self) -> int:
        """The stream's length once the append is applied."""
        return self.offset + self.count

    @property
    def positions(self) -> list[int]:
        """The positions of the append's rows."""
        return [position for start, stop in self.rows for position in range(start, stop)]


_appends = msgspec.json.Decoder(list[Append])


def encode(appends: Sequence[Append]) -> bytes:
    """Returns the record's content."""
    return msgspec.json.encode(appends)


def decode(content: bytes) -> list[Append]:
    """Returns the appends of a record; an empty list if there is no record. Raises msgspec.MsgspecError."""
    return _appends.decode(content) if content else []


def ranges(positions: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Positions as half-open ranges, in the same order."""
    positions = list(positions)
    if positions and positions == list(range(positions[0], positions[-1] + 1)):  # usual, and faster
        return ((positions[0], positions[-1] + 1),)
    found: list[tuple[int, int]] = []
    for position in positions:
        if found and found[-1][1] == position:
            found[-1] = (found[-1][0], position + 1)
        else:
            found.append((position, position + 1))
    return tuple(found)


class DiscardedRecord:
    """The record of a write outside a flush task (replay of dead letters, repair). It is discarded after the
    write."""

    def __init__(self) -> None:
        self._content = b""

    def load(self) -> bytes:
        """Returns the content that was last stored."""
        return self._content

    def store(self, content: bytes) -> bool:
        """Always succeeds."""
        self._content = content
        return True
