"""Represents a recording as a short recipe that can be mutated at random, and stored if it is costly.

A recipe is a list of pieces. A piece is one event text, `before + part * n + after`, which is `event_bytes` long
and is repeated to fill its share of the recording. If `before` and `after` are empty, the part itself is the
event.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ingest.testing.messages import (
    click_event,
    console_event,
    options_event,
    rage_click_event,
    tap_event,
    video_event,
)
from tests.cost.shapes import Shape, filled, packed, sampled_segment_id, text
from tests.kit.recordings import RECORDINGS, inflated

PIECES_MAX = 4
PART_BYTES_MAX = 2_000
EVENT_BYTES = (0, 200, 3_000, 60_000, 1_000_000_000)
TOKENS = re.compile(rb'\\u[0-9a-f]{4}|\\.|"(?:type|data|tag|payload|category|op|message)"|\w+|[^\w]')
WORDS = (
    *(
        rb"\\",
        rb"\ud800",
        rb"\udc00",
        rb"\ud83d\ude00",
        rb"\u0000",
        rb"\u001b",
        rb"\"",
        rb"\/",
        rb"\x",
        b"\x01",
        b"\xff",
    ),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b" ",
        b"\n",
        b"0",
        b"1e999",
        b"-0.0",
        b"1" * 400,
        b"NaN",
        b"null",
        b"true",
    ),
    *(
        b'"a":1,',
        b'"":"",',
        b'"type":5,',
        b'"data":{},',
        b'"payload":{},',
        b'"timestamp":1e18,',
        b"[],",
        b"{},",
        b'"",',
    ),
    *(
        b"a",
        b"a ",
        "é".encode(),
        "😀".encode(),
        b"\xed\xa0\x80",
        b'{"type":0},',
        b'{"type":3,"data":{"source":5}},',
    ),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One event, or a run of events, as JSON or as bytes that only resemble JSON."""

    before: bytes
    part: bytes
    after: bytes
    event_bytes: int = 0

    def expand(self, share_bytes: int) -> bytes:
        """Repeats the event, without a trailing comma, up to about `share_bytes`."""
        if not self.before and not self.after:
            return filled(b"", self.part + b",", b"", share_bytes)[:-1]
        event = filled(self.before, self.part, self.after, min(self.event_bytes, share_bytes))
        return filled(b"", event + b",", b"", share_bytes)[:-1]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recording as a list of pieces.

    The parser reads canvas mutations and options only for a sample of segment numbers. If `is_sampled` is true,
    the segment has one of these numbers.
    """

    pieces: tuple[Piece, ...]
    is_sampled: bool = False

    def value(self, raw_bytes: int) -> bytes:
        """Returns a Kafka value whose recording inflates to about `raw_bytes`."""
        share_bytes = raw_bytes // len(self.pieces)
        raw = b"[" + b",".join(piece.expand(share_bytes) for piece in self.pieces) + b"]"
        return packed(raw, sampled_segment_id() if self.is_sampled else 0)

    def to_json(self) -> dict[str, Any]:
        """Serializes the recipe as JSON, with one character per byte."""
        return {
            "is_sampled": self.is_sampled,
            "pieces": [
                [
                    piece.before.decode("latin-1"),
                    piece.part.decode("latin-1"),
                    piece.after.decode("latin-1"),
                    piece.event_bytes,
                ]
                for piece in self.pieces
            ],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Recipe:
        """Restores a recipe from the JSON that `to_json` returned."""
        pieces = [
            Piece(before.encode("latin-1"), part.encode("latin-1"), after.encode("latin-1"), event_bytes)
            for before, part, after, event_bytes in found["pieces"]
        ]
        return cls(tuple(pieces), found["is_sampled"])

    def shape(self, name: str) -> Shape:
        """Returns the recipe as a shape with this name."""
        return Shape(name, self.value)


@cache
def events() -> tuple[bytes, ...]:
    """Returns the initial events: one of each kind in our recordings, plus handmade events of kinds that occur in
    no recording.
    """
    found: dict[tuple[Any, ...], bytes] = {}
    for recording in RECORDINGS:
        for body in recording.bodies:
            for event in _events_of(body):
                data = event.get("data") if isinstance(event.get("data"), dict) else {}
                payload = data.get("payload") if isinstance(data.get("payload"), dict) else {}
                kind = (
                    event.get("type"),
                    data.get("source"),
                    data.get("tag"),
                    payload.get("category"),
                    payload.get("op"),
                )
                written = json.dumps(event, separators=(",", ":")).encode()
                if len(written) < PART_BYTES_MAX:
                    found.setdefault(kind, written)
    made = (click_event(), rage_click_event(), console_event(), options_event(), tap_event(), video_event())
    return (*found.values(), *(text(event) for event in made))


def _events_of(body: bytes) -> Iterator[dict[str, Any]]:
    yield from json.loads(inflated(body))


def _single(before: bytes, part: bytes, after: bytes) -> Recipe:
    return Recipe((Piece(before, part, after, EVENT_BYTES[-1]),))


# Recipes for those shapes of `tests.cost.shapes` that stopped a reader before the cost limit existed.
STOPPED_A_READER = (
    _single(b'{"type":2,"data":"', rb"\\", rb'\ud800"}'),
    _single(
        b'{"type":5,"data":{"tag":"breadcrumb","payload":{"category":"ui.scroll","data":{"a":[', b"[],", b"0]}}}}"
    ),
    Recipe(
        (Piece(b"", b'{"type":5,"data":{"tag":"performanceSpan","payload":{"op":7,"data":{"method":1}}}}', b""),)
    ),
    _single(
        b'{"type":5,"data":{"tag":"breadcrumb","payload":{"category":"ui.click","data":{"node":{"attributes":{"class":"',
        b"a ",
        b'"}}}}}}',
    ),
    Recipe((Piece(b"", b'{"type":0}', b""),)),
)


def new_recipe(chance: random.Random) -> Recipe:
    """Returns a new recipe: a shape that once stopped a reader, or an event that contains a repeated part in one
    value.
    """
    if chance.random() < 0.2:
        return chance.choice(STOPPED_A_READER)
    return Recipe((_repeat_within(chance),), chance.random() < 0.2)


def mutate_recipe(recipe: Recipe, other: Recipe, chance: random.Random) -> Recipe:
    """Returns a child: a copy of `recipe` with one or more changes, sometimes including a piece of `other`."""
    pieces = list(recipe.pieces)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = chance.randrange(len(pieces))
        kind = chance.random()
        if kind < 0.06 and len(pieces) < PIECES_MAX:
            pieces.insert(at, chance.choice(other.pieces))
        elif kind < 0.10 and len(pieces) > 1:
            del pieces[at]
        elif kind < 0.16:
            pieces[at] = _repeat_within(chance)
        elif kind < 0.26:
            pieces[at] = replace(pieces[at], event_bytes=chance.choice(EVENT_BYTES))
        elif kind < 0.80:
            pieces[at] = replace(pieces[at], part=_mutate_text(pieces[at].part, chance))
        elif kind < 0.90:
            pieces[at] = replace(pieces[at], before=_mutate_text(pieces[at].before, chance))
        else:
            pieces[at] = replace(pieces[at], after=_mutate_text(pieces[at].after, chance))
    return Recipe(tuple(pieces), recipe.is_sampled ^ (chance.random() < 0.05))


def _repeat_within(chance: random.Random) -> Piece:
    """Returns a piece that repeats a whole event, or one that repeats a part inside one of an event's values."""
    event = chance.choice(events())
    if chance.random() < 0.2:
        return Piece(b"", event, b"")
    values = list(re.finditer(rb'(?<=:)("(?:[^"\\]|\\.)*"|-?[\d.]+|true|false|null|\[\]|\{\})', event))
    if not values:
        return Piece(b"", event, b"")
    value = chance.choice(values)
    opening, part, closing = chance.choice(
        (
            (b'"', b"a", b'"'),
            (b'"', rb"\\", b'"'),
            (b"[", b"[],", b"0]"),
            (b"{", b'"a":1,', b'"b":2}'),
            (b"[", b"[", b""),
        )
    )
    return Piece(
        event[: value.start()] + opening, part, closing + event[value.end() :], chance.choice(EVENT_BYTES)
    )


def _mutate_text(part: bytes, chance: random.Random) -> bytes:
    """Adds, removes, duplicates or moves one token; the result is never empty."""
    tokens = TOKENS.findall(part) or [b"a"]
    at, kind = chance.randrange(len(tokens)), chance.random()
    if kind < 0.45:
        tokens.insert(at, chance.choice(WORDS))
    elif kind < 0.65:
        del tokens[at : at + chance.choice((1, 1, 2, 8))]
    elif kind < 0.75:
        tokens[at:at] = tokens[at : at + chance.choice((1, 2, 8, 64))]
    elif kind < 0.9:
        tokens[at] = chance.choice(WORDS)
    else:
        tokens.insert(chance.randrange(len(tokens)), tokens.pop(at))
    return b"".join(tokens)[:PART_BYTES_MAX] or b"a"
