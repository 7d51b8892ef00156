"""Generates the parts that Relay adds to a recording: the envelope, and the replay event with session data."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Self

import msgspec

from ingest.local.load.manifest import Entry
from ingest.local.load.mix import Mix
from ingest.local.load.segment import SEGMENT_MS, Event, Segment, to_json

to_msgpack = msgspec.msgpack.encode
COUNTRIES = (
    ("Wien", "AT", "Austria"),
    ("Leeds", "GB", "England"),
    ("Porto", "PT", "Norte"),
    ("Osaka", "JP", "Kansai"),
)
BROWSERS = (("Firefox", "143.0"), ("Chrome", "141.0.0"), ("Safari", "18.6"), ("Edge", "141.0"))
SYSTEMS = (("Windows", "11"), ("macOS", "15.6"), ("Linux", ""), ("iOS", "18.6"))
RELEASES = ("shop@4.11.0", "shop@4.11.1", "shop@4.12.0-rc.1", "shop@4.12.0")
ENVIRONMENTS = ("production", "production", "production", "staging", "canary")
ENVELOPE_TYPE = "replay_recording_not_chunked"


class Message(msgspec.Struct, frozen=True):
    """One message for the topic, with its value and its manifest entry, which lacks topic, partition and
    offset.
    """

    value: bytes
    entry: Entry


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a session and its start (Unix milliseconds)."""

    replay_id: str
    project_id: int
    org_id: int
    retention_days: int
    key_id: int | None
    mobile: bool
    start_ms: int

    @classmethod
    def generate(cls, rng: random.Random, mix: Mix, started_at: int) -> Self:
        """Generates an identity. `started_at` is in Unix seconds."""
        replay_id = f"{rng.getrandbits(128):032x}"
        project_id = rng.choice((11, 11, 11, 12, 12, 13, 4503599627370495))
        return cls(
            replay_id=replay_id,
            project_id=project_id,
            org_id=1 if project_id != 13 else 2,
            retention_days=rng.choice((30, 30, 60, 90)),
            key_id=rng.choice((None, 7, 8)),
            mobile=rng.random() < mix.mobile,
            start_ms=started_at * 1000 + rng.randrange(1000),
        )


class Relay:
    """Generates what Relay sends for one session."""

    def __init__(self, rng: random.Random, mix: Mix, identity: Identity) -> None:
        self.rng = rng
        self.mix = mix
        self.identity = identity
        self.base = self._replay_event_base()

    def message(
        self, segment: Segment, entry: Entry, body: bytes, *, video: bytes | None, urls: list[str]
    ) -> Message:
        """Returns the message for the topic. Values that are only in the envelope are added to `entry`."""
        identity = self.identity
        document, flaw = self._replay_event(segment, urls)
        received = segment.start_ms // 1000 + SEGMENT_MS // 1000 + 1
        value = to_msgpack(
            {
                "type": ENVELOPE_TYPE,
                "replay_id": identity.replay_id,
                "segment_id": segment.number,
                "key_id": identity.key_id,
                "org_id": identity.org_id,
                "project_id": identity.project_id,
                "received": received,
                "retention_days": identity.retention_days,
                "payload": b'{"segment_id":%d}\n' % segment.number + body,
                "replay_event": document,
                "replay_video": video,
                "version": 1,
            }
        )
        entry.seen["replay_event"] = int(document is not None)
        entry.flaw = entry.flaw or flaw
        entry.value_bytes = len(value)
        return Message(value, entry)

    def _replay_event_base(self) -> Event:
        rng = self.rng
        browser, system = rng.choice(BROWSERS), rng.choice(SYSTEMS)
        city, code, region = rng.choice(COUNTRIES)
        number = rng.randrange(10_000)
        user: Event = {"ip_address": f"198.51.100.{number % 250 + 1}"}
        if rng.random() < 0.8:
            user |= {"id": str(number), "username": f"walker{number}", "email": f"walker{number}@mail.example"}
        user["geo"] = {"city": city, "country_code": code, "region": region, "subdivision": region}
        base: Event = {
            "type": "replay_event",
            "replay_id": self.identity.replay_id,
            "replay_type": "session" if rng.random() < 0.7 else "buffer",
            "replay_start_timestamp": self.identity.start_ms / 1000,
            "platform": "java" if self.identity.mobile else "javascript",
            "release": rng.choice(RELEASES),
            "environment": rng.choice(ENVIRONMENTS),
            "dist": rng.choice(("", "web-7")),
            "user": user,
            "sdk": {"name": "sentry.javascript.react", "version": "9.12.0"},
            "tags": [["transaction", "/"], ["plan", rng.choice(("free", "team"))]],
            "contexts": {
                "browser": {"name": browser[0], "version": browser[1], "type": "browser"},
                "os": {"name": system[0], "version": system[1], "type": "os"},
                "device": {"family": "Other", "brand": "Generic", "model": "Model 5", "name": "desk"},
                "replay": {"error_sample_rate": 1.0, "session_sample_rate": 0.1},
            },
        }
        if self.identity.mobile:
            base["sdk"] = {"name": "sentry.java.android", "version": "8.3.0"}
        return base

    def _replay_event(self, segment: Segment, urls: list[str]) -> tuple[bytes | None, str]:
        """Returns the replay event of this segment, and its deliberate flaw."""
        rng, mix = self.rng, self.mix
        chance = rng.random()
        if chance < mix.replay_event_missing:
            return None, "replay_event_missing"
        document = {
            **self.base,
            "event_id": hashlib.md5(f"{self.identity.replay_id}:{segment.number}".encode()).hexdigest(),
            "segment_id": segment.number,
            "timestamp": (segment.start_ms + SEGMENT_MS) / 1000,
            "urls": urls,
            "error_ids": [f"{rng.getrandbits(128):032x}"] if rng.random() < 0.12 else [],
            "trace_ids": [f"{rng.getrandbits(128):032x}"],
        }
        if chance < mix.replay_event_missing + mix.replay_event_broken:
            if rng.random() < 0.5:
                return to_json(document)[:-9], "replay_event_not_json"
            return to_json({**document, "urls": 7, "user": "somebody", "tags": None}), "replay_event_wrong_types"
        return to_json(document), ""
