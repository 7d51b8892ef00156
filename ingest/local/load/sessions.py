"""Generates sessions as sent by the SDK and Relay, segment by segment, each with its manifest entry.

A `Session` simulates one visit, in which pages are opened, the mouse moves, and elements are clicked with and
without effect. Web sessions send rrweb events with the SDK's breadcrumbs and spans between them; mobile sessions
send video. Everything is derived from the session's seed. When an event is added to a segment, it is recorded in
the manifest's `Entry`, so the expectation does not depend on the parser.

A segment covers SEGMENT_MS. Times are in milliseconds in rrweb events and in seconds in the SDK's payloads.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

from ingest.local.load.browser import Browser
from ingest.local.load.clicks import Clicks
from ingest.local.load.deflate import deflated, inflated
from ingest.local.load.manifest import Entry
from ingest.local.load.mix import Mix
from ingest.local.load.pages import Page
from ingest.local.load.phone import fill_mobile_segment, mp4
from ingest.local.load.relay import Identity, Message, Relay
from ingest.local.load.segment import SEGMENT_MS, Event, Segment


class Session:
    """One replay. `messages()` yields its segments in order."""

    def __init__(self, seed: str, site: tuple[Page, ...], mix: Mix, started_at: int, clicks_max: int = 20) -> None:
        self.rng = rng = random.Random(seed)
        self.mix = mix
        self.clicks_max = clicks_max
        self.identity = Identity.generate(rng, mix, started_at)
        self.length = min(1 + int(rng.expovariate(1 / (mix.segments_mean - 0.5))), mix.segments_max)
        self.browser = Browser(rng, site, mix, Clicks(rng, self.identity.replay_id), clicks_max)
        self.relay = Relay(rng, mix, self.identity)

    def messages(self) -> Iterator[Message]:
        """Yields every segment of the session as a message."""
        for number in range(self.length):
            segment = Segment(number, self.identity.start_ms + number * SEGMENT_MS)
            if self.identity.mobile:
                yield self._video_message(segment)
            else:
                self.browser.browse(segment)
                yield self._message(segment)

    def _message(self, segment: Segment) -> Message:
        rng, mix = self.rng, self.mix
        segment.sort_events()
        pieces = segment.body()
        raw = inflated(pieces)
        entry = self._entry(segment, "segment")
        if rng.random() < mix.broken_body:
            raw = b"[{]"
            pieces = [raw]
            entry = Entry(**self._entry_base(segment, "segment"), flaw="body_not_json", seen={}, sums={})
        if rng.random() < mix.raw_body:
            body = raw
            entry.blob_sha256, entry.blob_exact = hashlib.sha256(raw).hexdigest(), False
        else:
            body = deflated(pieces)
            if rng.random() < mix.trailing_bytes:
                body += b"\x00\x00"
            entry.blob_sha256 = hashlib.sha256(body).hexdigest()
        entry.blob_bytes = len(raw)
        entry.sums["raw"] = len(raw)
        entry.sums["stored"] = len(body) if entry.blob_exact else 0
        return self.relay.message(segment, entry, body, video=None, urls=self.browser.urls)

    def _video_message(self, segment: Segment) -> Message:
        rng = self.rng
        size = rng.randint(*self.mix.video_bytes)
        video = mp4(rng, size)
        fill_mobile_segment(rng, segment, self.identity.replay_id, len(video))
        segment.sort_events()
        raw = inflated(segment.body())
        entry = self._entry(segment, "video")
        packed = b"\x01" + len(video).to_bytes(4, "big") + video + raw
        entry.blob_sha256, entry.blob_exact = hashlib.sha256(packed).hexdigest(), False
        entry.blob_bytes = len(packed)
        entry.sums = {**segment.sums, "video": len(video), "raw": len(raw)}
        return self.relay.message(segment, entry, deflated([raw]), video=video, urls=[])

    def _entry_base(self, segment: Segment, kind: str) -> Event:
        identity = self.identity
        return {
            "kind": kind,
            "org_id": identity.org_id,
            "project_id": identity.project_id,
            "replay_id": identity.replay_id,
            "segment_id": segment.number,
            "retention_days": identity.retention_days,
            "at": segment.start_ms // 1000,
            "blob": f"{identity.retention_days}/{identity.project_id}/{identity.replay_id}/{segment.number}",
        }

    def _entry(self, segment: Segment, kind: str) -> Entry:
        clicks = [note.click for _, _, note in segment.events if note.click is not None]
        coins: dict[str, list[int]] = {}
        for index, (_, _, note) in enumerate(segment.events):
            if note.coin:
                coins.setdefault(note.coin, []).append(index)
        segment.seen["rrweb"] = len(segment.events)
        segment.seen["custom"] = segment.custom
        return Entry(
            **self._entry_base(segment, kind),
            clicks=tuple(clicks[: self.clicks_max]),
            taps=tuple(segment.taps),
            seen=dict(segment.seen),
            sums=dict(segment.sums),
            coins=coins,
        )
