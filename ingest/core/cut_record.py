"""The cut record: information for the next owner of a partition, stored as metadata of offset commits.

Kafka stores up to 4095 bytes of metadata by default and returns them with the offset. The text is a version and
fields, separated by `;`:

    2;t=<topic id>;p=<partitions>;s=<starts>;c=<cuts>

`p`, `s` and each cut are numbers in base 36. A cut is the end of a batch minus the end of the batch before it; the
first cut is relative to the committed offset. Fields without a value are left out. Unknown fields are ignored, so
that later releases can add fields. A change of meaning requires a new version; unknown versions are not read.
docs/decisions/014-same-cut.md explains why the record is stored there.
docs/decisions/036-where-a-partition-starts.md explains what the fields mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

VERSION = "2"
CUTS_ONLY_VERSION = "1"  # earlier releases recorded only cuts: `1,<cut>,<cut>`
TOPIC_ID_BYTES_MAX = 36
NUMBER_MAX = 36**4 - 1
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Record(NamedTuple):
    """Metadata of a commit.

    `topic_id`: the topic that the offset belongs to; empty if unknown. `partitions`: number of partitions of the
    topic when its group started; 0 if unknown. `starts`: number of readers that have started at this offset.
    `stops`: ends of the batches above the committed offset, ascending.
    """

    topic_id: str = ""
    partitions: int = 0
    starts: int = 0
    stops: tuple[int, ...] = ()


class Budget:
    """Maximum record size, in bytes. All partitions share one budget, because they use the same brokers."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max

    def lower_maximum(self, text: str) -> None:
        """Lowers the maximum, after the broker refused metadata of this length."""
        self.bytes_max = min(self.bytes_max, len(text) // 2)


def encode(committed: int, record: Record, bytes_max: int) -> str:
    """Returns the record as text; empty if it has no content.

    Ends that do not fit into `bytes_max` are left out, starting with the last. If the other fields alone do not
    fit, the text is empty.
    """
    head = _encode_header(record.topic_id, record.partitions, record.starts)
    if len(head) > bytes_max:
        return ""
    cuts = _encode_cuts(committed, record.stops, bytes_max - len(head) - len(";c=")) if record.stops else ""
    if cuts:
        return f"{head};c={cuts}"
    return head if head != VERSION else ""


@lru_cache(maxsize=256)  # called on every tick for every partition, mostly with unchanged arguments
def _encode_header(topic_id: str, partitions: int, starts: int) -> str:
    fields = [VERSION]
    if topic_id:
        fields.append(f"t={topic_id}")
    if partitions:
        fields.append(f"p={_digits(min(partitions, NUMBER_MAX))}")
    if starts:
        fields.append(f"s={_digits(min(starts, NUMBER_MAX))}")
    return ";".join(fields)


def _encode_cuts(committed: int, stops: Sequence[int], bytes_max: int) -> str:
    parts: list[str] = []
    length, previous = -1, committed
    for stop in stops:
        assert stop > previous, (committed, stops)
        digits = _digits(stop - previous)
        length += 1 + len(digits)
        if length > bytes_max:
            break
        parts.append(digits)
        previous = stop
    return ",".join(parts)


def _digits(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits


def decode(committed: int, text: str) -> Record:
    """Parses a record. Returns an empty record for text from other tools or later versions (see
    `reason_ignored`).
    """
    if text.startswith(CUTS_ONLY_VERSION + ","):
        return Record(stops=_decode_stops(committed, text.removeprefix(CUTS_ONLY_VERSION + ",")))
    version, *fields = text.split(";")
    if version != VERSION:
        return Record()
    values = dict(field.split("=", 1) for field in fields if "=" in field)
    topic_id = values.get("t", "")
    return Record(
        topic_id if len(topic_id) <= TOPIC_ID_BYTES_MAX else "",
        _decode_number(values.get("p", "")),
        _decode_number(values.get("s", "")),
        _decode_stops(committed, values.get("c", "")),
    )


def reason_ignored(text: str) -> str:
    """Returns the reason why `decode` ignores this text, for a log line; empty if it is read, or if there is no
    text."""
    version = text.split(";")[0]
    if not text or version == VERSION or text.startswith(CUTS_ONLY_VERSION + ","):
        return ""
    if version.isdecimal() and len(version) <= 4:
        return f"version {version} of the cut record, this release reads {VERSION} and {CUTS_ONLY_VERSION}"
    return "the commit's metadata was written by another tool"


def _decode_number(digits: str) -> int:
    try:
        return min(max(int(digits, 36), 0), NUMBER_MAX)
    except ValueError:
        return 0


def _decode_stops(committed: int, cuts: str) -> tuple[int, ...]:
    stops, previous = [], committed
    for part in cuts.split(",") if cuts else ():
        try:
            step = int(part, 36)
        except ValueError:
            return ()
        if step <= 0:
            return ()
        previous += step
        stops.append(previous)
    return tuple(stops)
