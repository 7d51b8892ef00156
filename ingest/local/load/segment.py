"""A segment under construction, with its events and the notes on them for the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from ingest.local.load.deflate import Part, Piece
from ingest.local.load.manifest import Click

SEGMENT_MS = 5000
Event = dict[str, Any]
to_json = msgspec.json.encode


class Note(NamedTuple):
    """What is expected from one event: the click that the event reports, if any, and `coin`, the kind of its fact
    if facts of this kind are sampled individually."""

    click: Click | None = None
    coin: str = ""


EMPTY_NOTE = Note()


@dataclass(slots=True)
class Segment:
    """One segment under construction."""

    number: int
    start_ms: int
    events: list[tuple[int, tuple[Piece, ...], Note]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    taps: list[str] = field(default_factory=list)
    custom: int = 0

    def put(self, ms: int, event: Any, kind: str, note: Note = EMPTY_NOTE) -> None:
        """Adds one event and its kind."""
        self.events.append((ms, (to_json(event),), note))
        self.seen[kind] += 1

    def put_part(self, ms: int, rrweb_type: int, data: Part, kind: str) -> None:
        """Adds one event whose `data` is shared by many segments."""
        head = b'{"type":%d,"data":' % rrweb_type
        self.events.append((ms, (head, data, b',"timestamp":%d}' % ms), EMPTY_NOTE))
        self.seen[kind] += 1

    def breadcrumb(self, ms: int, category: str, payload: Event, kind: str = "", note: Note = EMPTY_NOTE) -> None:
        """Adds an SDK breadcrumb with a category."""
        whole = {"timestamp": ms / 1000, "type": "default", "category": category, **payload}
        event = {"type": 5, "timestamp": ms, "data": {"tag": "breadcrumb", "payload": whole}}
        self.put(ms, event, kind or category, note)
        self.custom += 1

    def span(self, ms: int, op: str, description: str, duration_ms: int, data: Event, kind: str = "") -> None:
        """Adds an SDK span, which is a duration or a measurement."""
        payload = {
            "op": op,
            "description": description,
            "startTimestamp": ms / 1000,
            "endTimestamp": (ms + duration_ms) / 1000,
            "data": data,
        }
        event = {"type": 5, "timestamp": ms / 1000, "data": {"tag": "performanceSpan", "payload": payload}}
        self.put(ms, event, kind or f"span:{op}")
        self.custom += 1

    def sort_events(self) -> None:
        """Sorts the events by time."""
        self.events.sort(key=_time)

    def body(self) -> list[Piece]:
        """Returns the JSON array of the events in time order.

        Consecutive bytes that belong to no part are joined.
        """
        pieces: list[Piece] = []
        fresh = [b"["]
        for number, (_, event, _note) in enumerate(self.events):
            if number:
                fresh.append(b",")
            for piece in event:
                if isinstance(piece, Part):
                    pieces += (b"".join(fresh), piece)
                    fresh = []
                else:
                    fresh.append(piece)
        fresh.append(b"]")
        pieces.append(b"".join(fresh))
        return pieces


def event_hash(replay_id: str, seconds: int, node: int | str) -> str:
    """Returns the identity of a click or tap: the MD5 of replay, whole second and node (or view), as a UUID."""
    return str(UUID(hashlib.md5(f"{replay_id}{seconds}{node}".encode()).hexdigest()))


def _time(event: tuple[int, tuple[Piece, ...], Note]) -> int:
    return event[0]
