"""The manifest of a generated load, which describes each message. The sinks are reconciled with the manifest.

The file has one JSON object per line, so that a manifest of any length can be streamed: first a `Header`, then one
`Entry` per message, written when the broker has acknowledged it. The expected contents come from the generator,
never from the parser.
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
    """The parameters of a load. Equal headers produce equal messages, unless `received_now` is true: then
    `received` is the time at which a message is produced, and every segment has a valid replay_event.
    """

    topic: str
    profile: str
    seed: int
    count: int
    started_at: int
    version: int = VERSION
    received_now: bool = False


class Click(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One click with the expected values of its row. `event_hash` is a UUID as text, and each flag is 0 or 1."""

    event_hash: str
    node_id: int
    dead: int
    rage: int


class Entry(msgspec.Struct, omit_defaults=True):
    """One message.

    blob, blob_sha256: the object's name and digest. The digest covers the stored bytes if `blob_exact`, otherwise
    the inflated bytes, because the pipeline itself compresses the recording; for a reject, the digest covers the
    message's bytes. blob_bytes: inflated size. clicks: one entry per click-like event of this message, in order,
    up to the limit. taps: event hashes. seen: number of events of each kind (category names, plus `dead`, `rage`
    and others). sums: totals of sizes in bytes. coins: positions in the segment of individually sampled events.
    flaw: the message's deliberate flaw.
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
    """Raised if the file is not a manifest, or ends in the middle of a line. The message names the line."""


class Writer:
    """Writes a new manifest file."""

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
        """Writes one line."""
        self._put(entry)

    def close(self) -> None:
        """The method may be called twice."""
        self._file.close()

    def _put(self, line: Header | Entry) -> None:
        self._file.write(self._encoder.encode(line) + b"\n")


def read_header(path: Path) -> Header:
    """Reads the first line. Raises ManifestError."""
    with path.open("rb") as file:
        return _decode(path, 1, file.readline(), Header)


def read_entries(path: Path) -> Iterator[Entry]:
    """Reads all entries, in the order of acknowledgement. Raises ManifestError."""
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
