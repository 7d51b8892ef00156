"""The recordings in tests/recordings: the messages that an SDK sent, and the actions performed on the page."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from ingest.core.model import Segment
from tests.kit.parsing import parsed
from tests.kit.paths import ROOT


@dataclass(frozen=True, slots=True)
class Action:
    """One action on the page, with its time as a half-open range of Unix milliseconds."""

    what: str
    start_ms: int
    stop_ms: int


@dataclass(frozen=True)
class Recording:
    """One session."""

    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The contents of facts.json."""
        held: dict[str, Any] = json.loads((self.directory / "facts.json").read_bytes())
        return held

    @cached_property
    def values(self) -> list[bytes]:
        """The Kafka values of the session, in the order of their segments."""
        paths = sorted(self.directory.glob("segment-*.msgpack"), key=lambda path: int(path.stem.split("-")[1]))
        return [path.read_bytes() for path in paths]

    @cached_property
    def segments(self) -> list[Segment]:
        """The parser's result for each value, as if each had arrived without delay; nothing is sampled out."""
        return [
            parsed(value, timestamp_ms=msgspec.msgpack.decode(value)["received"] * 1000) for value in self.values
        ]

    @cached_property
    def bodies(self) -> list[bytes]:
        """The rrweb events of each value as the SDK sent them: JSON or a zlib stream."""
        return [bytes(msgspec.msgpack.decode(value)["payload"]).partition(b"\n")[2] for value in self.values]

    @cached_property
    def events(self) -> list[Any]:
        """The rrweb events of all segments, read without the parser."""
        return [event for body in self.bodies for event in json.loads(inflated(body))]

    @property
    def actions(self) -> list[Action]:
        """The actions performed on the page, in order."""
        return [Action(done["what"], done["t"], done["t"] + done["took"]) for done in self.facts["actions"]]

    def payloads(self, tag: str) -> list[dict[str, Any]]:
        """Returns the payloads of the SDK's own events with that tag: `breadcrumb` or `performanceSpan`."""
        return [e["data"]["payload"] for e in self.events if e["type"] == 5 and e["data"]["tag"] == tag]


def inflated(body: bytes) -> bytes:
    """Returns the JSON in a body, which may be compressed."""
    return body if body[:1] == b"[" else zlib.decompress(body)


RECORDINGS = [Recording(path) for path in sorted((ROOT / "tests" / "recordings").glob("v*"))]
