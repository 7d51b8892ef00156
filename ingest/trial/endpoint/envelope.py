"""Splits an envelope into its items.

An envelope is a header line followed by items. An item is a header line and a payload. If the item's header has a
`length`, the payload has that many bytes and is followed by a newline or the end of the envelope. Otherwise, the
payload ends at the next newline or at the end of the envelope.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ingest.trial.endpoint.refusals import Reason, RequestRefused
from tasks.units import KiB

HEADER_BYTES_MAX = 64 * KiB
ITEMS_MAX = 100
_NEWLINE = 0x0A
_event_id = re.compile(r"[0-9a-fA-F]{32}").fullmatch


@dataclass(frozen=True, slots=True)
class Item:
    """One item of an envelope. `payload` is a view of the envelope's bytes."""

    type: str
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Envelope:
    """The header of an envelope, and its items in order."""

    header: dict[str, Any]
    items: tuple[Item, ...]

    @property
    def event_id(self) -> str:
        """32 lowercase hex digits; "" if missing or invalid."""
        return hex_id(self.header.get("event_id"))

    @property
    def dsn(self) -> str:
        """The DSN in the envelope header, as sent by SDKs that use a tunnel; "" if missing."""
        dsn = self.header.get("dsn")
        return dsn if isinstance(dsn, str) else ""

    def of(self, kind: str) -> memoryview | None:
        """Returns the payload of the item of this type; None if there is none. Raises RequestRefused if there are
        several."""
        found = [item.payload for item in self.items if item.type == kind]
        if len(found) > 1:
            raise RequestRefused(Reason.ENVELOPE_INVALID, f"the envelope has more than one {kind} item")
        return found[0] if found else None


def hex_id(value: Any) -> str:
    """Returns an id as 32 lowercase hex digits, from text with or without dashes; "" for anything else."""
    if not isinstance(value, str) or len(value) > 36:
        return ""
    digits = value.replace("-", "")
    return digits.lower() if _event_id(digits) else ""


def split(content: bytes) -> Envelope:
    """Splits an envelope into its header and items. Raises RequestRefused: envelope_invalid."""
    whole = memoryview(content)
    header, position = _header(content, 0, "the envelope's header")
    items: list[Item] = []
    while (position := _skip_newlines(content, position)) < len(content):
        if len(items) >= ITEMS_MAX:
            raise _invalid(f"the envelope has more than {ITEMS_MAX} items")
        what = f"the header of item {len(items) + 1}"
        entry, position = _header(content, position, what)
        kind = entry.get("type")
        if not isinstance(kind, str) or not kind:
            raise _invalid(f"{what} has no type")
        end = _end(content, position, entry.get("length"), len(items) + 1)
        items.append(Item(kind, whole[position:end]))
        position = end
    return Envelope(header, tuple(items))


def _header(content: bytes, start: int, what: str) -> tuple[dict[str, Any], int]:
    """Returns the JSON object in the line at `start`, and the position after its newline."""
    end = content.find(b"\n", start, start + HEADER_BYTES_MAX + 1)
    if end < 0:
        if len(content) - start > HEADER_BYTES_MAX:
            raise _invalid(f"{what} exceeds {HEADER_BYTES_MAX} bytes")
        end = len(content)
    try:
        found = json.loads(content[start:end])
    except (ValueError, RecursionError):
        raise _invalid(f"{what} is not JSON") from None
    if not isinstance(found, dict):
        raise _invalid(f"{what} is not a JSON object")
    return found, min(end + 1, len(content))


def _skip_newlines(content: bytes, position: int) -> int:
    while position < len(content) and content[position] == _NEWLINE:
        position += 1
    return position


def _end(content: bytes, start: int, length: Any, number: int) -> int:
    """Returns the position at which the payload of an item ends."""
    if length is None:
        end = content.find(b"\n", start)
        return len(content) if end < 0 else end
    if type(length) is not int or length < 0:
        raise _invalid(f"the length of item {number} is not an integer of 0 or more")
    end = start + length
    if end > len(content):
        raise _invalid(f"item {number} is truncated: its length exceeds the rest of the envelope")
    if end < len(content) and content[end] != _NEWLINE:
        raise _invalid(f"item {number} is longer than its length: no newline follows")
    return end


def _invalid(text: str) -> RequestRefused:
    return RequestRefused(Reason.ENVELOPE_INVALID, text)
