"""What the load generator made, message by message: the truth that sinks are reconciled against.

One JSON object a line, so that a manifest of any length streams: first a `Header`, then one `Entry` a message,
written when the broker acknowledged it. What an entry expects comes from the generator's own knowledge of what
it put in, never from the parser.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from tasks.units import MiB

VERSION = 1
Kind = Literal["segment", "video", "reject"]


class Header(msgspec.Struct, frozen=True):
    """How the load was made: the same header makes the same messages."""

    topic: str
    profile: str
    seed: int
    count: int
    started_at: int
    version: int = VERSION


class Click(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One click as it should end up in a row. `event_hash` as UUID text; flags 0 or 1."""

    event_hash: str
    node_id: int
    dead: int
    rage: int


class Entry(msgspec.Struct, omit_defaults=True):
    """One message.

    blob, blob_sha256: the object's name and digest; with `blob_exact` of its stored bytes, otherwise of what
    they inflate to (the pipeline compresses those itself). Of a reject, the digest of the message's own bytes.
    blob_bytes: inflated size.
    clicks: what each click-like event of this message says, in order, those past the limit left out.
    taps: event hashes. seen: how often each kind of thing occurs (DOMAIN names of categories, plus
    `dead`, `rage` and the like). sums: totals of sizes in bytes. coins: places in the segment of the events of
    kinds that are sampled one by one. flaw: what is wrong with it on purpose.
    """

    kind: Kind
    topic: str = ""
    partition: int = -1
    offset: int = -1
    duplicate: bool = False
    reason: str = ""
    flaw: str = ""
    org_id: int = 0
    project_id: int = 0
    replay_id: str = ""
    segment_id: int = 0
    retention_days: int = 0
    at: int = 0
    blob: str = ""
    blob_sha256: str = ""
    blob_exact: bool = True
    blob_bytes: int = 0
    value_bytes: int = 0
    clicks: tuple[Click, ...] = ()
    taps: tuple[str, ...] = ()
    seen: dict[str, int] = {}
    sums: dict[str, int] = {}
    coins: dict[str, list[int]] = {}


class ManifestError(ValueError):
    """The file is not a manifest, or was cut off in the middle of a line. Says where."""


class Writer:
    """Appends to a new manifest file."""

    def __init__(self, path: Path, header: Header) -> None:
        self._file = path.open("wb", buffering=1 * MiB)
        self._encoder = msgspec.json.Encoder()
        self._put(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, entry: Entry) -> None:
        """One line."""
        self._put(entry)

    def close(self) -> None:
        """May be called twice."""
        self._file.close()

    def _put(self, line: Header | Entry) -> None:
        self._file.write(self._encoder.encode(line) + b"\n")


def read_header(path: Path) -> Header:
    """The first line. Raises ManifestError."""
    with path.open("rb") as file:
        return _decode(path, 1, file.readline(), Header)


def read_entries(path: Path) -> Iterator[Entry]:
    """All entries, in the order of their acknowledgement. Raises ManifestError."""
    decoder = msgspec.json.Decoder(Entry)
    with path.open("rb") as file:
        _decode(path, 1, file.readline(), Header)
        for number, line in enumerate(file, start=2):
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise ManifestError(f"{path}, line {number}: {error}") from None


def _decode(path: Path, number: int, line: bytes, kind: type[Header]) -> Header:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ManifestError(f"{path}, line {number}: not a manifest of the load generator: {error}") from None
