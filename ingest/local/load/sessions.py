"""Sessions as the SDK and Relay would send them: one at a time, segment by segment, each with what is in it.

A `Session` is one visit with a mind of its own: it opens pages, moves the mouse, clicks things that work and
things that do not, waits, leaves. Web sessions send rrweb events with the SDK's breadcrumbs and spans between
them; mobile sessions send video. Everything follows from the session's seed. What is put into a segment is
noted in the manifest's `Entry` at the moment it is put there, so the expectation never asks a parser.

Times: a segment covers SEGMENT_MS; rrweb events carry milliseconds, the SDK's payloads seconds.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from ingest.local.load.deflate import Part, Piece, deflated, inflated
from ingest.local.load.manifest import Click, Entry
from ingest.local.load.pages import ORIGIN, Page, Target

SEGMENT_MS = 5000
RAGE_CLICKS_MIN = 5
DEAD_CLICK_MS = 7000
DEAD_CLICK_TAGS = frozenset({"a", "button", "input"})

Event = dict[str, Any]
to_json = msgspec.json.encode
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
VITALS = (
    ("largest-contentful-paint", (900.0, 4200.0)),
    ("first-contentful-paint", (400.0, 2400.0)),
    ("cumulative-layout-shift", (0.0, 0.4)),
    ("interaction-to-next-paint", (20.0, 600.0)),
)
OPTIONS = {
    "shouldRecordCanvas": True,
    "sessionSampleRate": 0.1,
    "errorSampleRate": 1,
    "useCompressionOption": True,
    "blockAllMedia": False,
    "maskAllText": False,
    "maskAllInputs": True,
    "useCompression": True,
    "networkDetailHasUrls": False,
    "networkCaptureBodies": True,
    "networkRequestHasHeaders": True,
    "networkResponseHasHeaders": True,
}
# Wrong shapes that an SDK of some age or a broken page sends: each may cost itself, nothing else.
ODD_EVENTS: tuple[Any, ...] = (
    {"type": 5},
    {"type": 5, "data": None},
    {"type": 5, "data": {"tag": "breadcrumb"}},
    {"type": 5, "data": {"tag": "breadcrumb", "payload": "text"}},
    {"type": 5, "data": {"tag": "breadcrumb", "payload": {"category": "ui.click", "data": None}}},
    {"type": 5, "data": {"tag": "breadcrumb", "payload": {"category": "ui.click", "data": {"node": "body"}}}},
    {"type": 5, "data": {"tag": "performanceSpan", "payload": []}},
    {"type": 99, "data": {"source": 4}},
    {"type": "3", "data": {}},
    None,
    7,
)
ENVELOPE_TYPE = "replay_recording_not_chunked"


@dataclass(frozen=True, slots=True)
class Mix:
    """How often things happen in a session; all are probabilities unless their name says otherwise.

    The defaults give about 29 % segments with a full snapshot, 45 % heavy with mutations, 26 % light, a mean of
    about 166 kB of JSON and 20 kB compressed, and 13 custom events a segment.
    """

    segments_mean: float = 7.0
    segments_max: int = 25
    mobile: float = 0.05
    page_load: float = 0.18
    heavy: float = 0.53
    panels_heavy: tuple[int, int] = (8, 22)
    click: float = 0.75
    dead_click: float = 0.05
    rage_click: float = 0.02
    slow_click: float = 0.03
    click_flood: float = 0.002
    negative_click: float = 0.004
    hydration_error: float = 0.012
    mutation_report: float = 0.02
    feedback: float = 0.004
    canvas: float = 0.05
    odd_event: float = 0.01
    raw_body: float = 0.004
    broken_body: float = 0.004
    trailing_bytes: float = 0.003
    replay_event_missing: float = 0.01
    replay_event_broken: float = 0.01
    video_bytes: tuple[int, int] = (12_000, 48_000)


class Message(msgspec.Struct, frozen=True):
    """One message for the topic: its value, and what is in it (topic, partition and offset not yet known)."""

    value: bytes
    entry: Entry


@dataclass(slots=True)
class _Pending:
    """A slow click that the SDK will report later."""

    due_ms: int
    event: Event
    click: Click
    kind: str


class _Note(NamedTuple):
    """What has to be remembered of one event: the click that it tells of, and whether a coin decides on it."""

    click: Click | None = None
    coin: str = ""


NOTHING = _Note()


@dataclass(slots=True)
class _Segment:
    """One segment while it is made."""

    number: int
    start_ms: int
    events: list[tuple[int, tuple[Piece, ...], _Note]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    taps: list[str] = field(default_factory=list)
    custom: int = 0

    def put(self, ms: int, event: Any, kind: str, note: _Note = NOTHING) -> None:
        """One event, and the kind of thing that it is."""
        self.events.append((ms, (to_json(event),), note))
        self.seen[kind] += 1

    def put_part(self, ms: int, rrweb_type: int, data: Part, kind: str) -> None:
        """One event whose `data` is shared by many segments."""
        head = b'{"type":%d,"data":' % rrweb_type
        self.events.append((ms, (head, data, b',"timestamp":%d}' % ms), NOTHING))
        self.seen[kind] += 1

    def body(self) -> list[Piece]:
        """The JSON array, in the order of time, with the fresh bytes between two parts in one piece."""
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
    """The identity of a click or tap: UUID of the MD5 of replay, whole second and node (or view)."""
    return str(UUID(hashlib.md5(f"{replay_id}{seconds}{node}".encode()).hexdigest()))


class Session:
    """One replay. `messages()` yields its segments in order."""

    def __init__(self, seed: str, site: tuple[Page, ...], mix: Mix, started_at: int, clicks_max: int = 20) -> None:
        self.rng = rng = random.Random(seed)
        self.site = site
        self.mix = mix
        self.clicks_max = clicks_max
        self.replay_id = f"{rng.getrandbits(128):032x}"
        self.project_id = rng.choice((11, 11, 11, 12, 12, 13, 4503599627370495))
        self.org_id = 1 if self.project_id != 13 else 2
        self.retention_days = rng.choice((30, 30, 60, 90))
        self.key_id = rng.choice((None, 7, 8))
        self.mobile = rng.random() < mix.mobile
        self.start_ms = started_at * 1000 + rng.randrange(1000)
        self.length = min(1 + int(rng.expovariate(1 / (mix.segments_mean - 0.5))), mix.segments_max)
        self.page = rng.choice(site)
        self.panel = 0
        self.pending: list[_Pending] = []
        self.urls: list[str] = []
        self.base = self._replay_event_base()

    def messages(self) -> Iterator[Message]:
        """Every segment of the session as a message."""
        for number in range(self.length):
            segment = _Segment(number, self.start_ms + number * SEGMENT_MS)
            self.urls = []
            if self.mobile:
                yield self._video_message(segment)
            else:
                self._browse(segment)
                yield self._message(segment)

    # What happens in a web segment

    def _browse(self, segment: _Segment) -> None:
        rng, mix = self.rng, self.mix
        if segment.number == 0 or rng.random() < mix.page_load:
            self._load_page(segment)
            segment.seen["shape:snapshot"] += 1
        elif rng.random() < mix.heavy / (1 - mix.page_load):
            self._rerender(segment, rng.randint(*mix.panels_heavy))
            segment.seen["shape:heavy"] += 1
        else:
            self._tick(segment)
            segment.seen["shape:light"] += 1
        self._report_slow_clicks(segment)
        self._interact(segment)
        self._network(segment, rng.randint(0, 6))
        self._memory(segment)
        self._rarities(segment)

    def _load_page(self, segment: _Segment) -> None:
        rng, at = self.rng, segment.start_ms
        before, self.page, self.panel = self.page, rng.choice(self.site), 0
        page = self.page
        self.urls.append(page.url)
        segment.put(
            at, {"type": 4, "data": {"href": page.url, "width": 1280, "height": 800}, "timestamp": at}, "viewport"
        )
        if segment.number == 0:
            segment.put(
                at + 1, {"type": 5, "timestamp": at + 1, "data": {"tag": "options", "payload": OPTIONS}}, "options"
            )
        else:
            data = {"from": before.url, "to": page.url}
            self._breadcrumb(segment, at + 1, "navigation", {"data": data})
        segment.put_part(at + 2, 2, page.snapshot, "full_snapshot")
        self._span(segment, at + 20, "navigation.navigate", page.url, rng.randint(300, 2500), {"size": 18_000})
        for _ in range(rng.randint(2, 5)):
            self._asset(segment, at + rng.randint(30, 400), "resource.script", "js")
        for _ in range(rng.randint(2, 6)):
            self._asset(segment, at + rng.randint(200, 900), "resource.img", "webp")
        for _ in range(rng.randint(1, 3)):
            self._asset(segment, at + rng.randint(30, 300), "resource.css", "css")
        self._span(segment, at + 700, "paint", "first-paint", 0, {"value": 640.0})
        for name, (low, high) in VITALS:
            value = round(rng.uniform(low, high), 3)
            rating = rng.choice(("good", "good", "needs-improvement", "poor"))
            facts = {"value": value, "size": value, "rating": rating, "nodeIds": [page.main_id]}
            self._span(segment, at + 1500, "web-vital", name, 0, facts, kind=f"vital:{name}")
        for _ in range(rng.randint(0, 3)):
            self._next_panel(segment, at + rng.randint(1200, 4900))

    def _rerender(self, segment: _Segment, panels: int) -> None:
        for ms in sorted(self.rng.sample(range(50, SEGMENT_MS - 50), panels)):
            self._next_panel(segment, segment.start_ms + ms)
        self._tick(segment)

    def _next_panel(self, segment: _Segment, ms: int) -> None:
        # Renderings follow one another in the order in which they are put, so their times must rise too.
        last = max((at for at, pieces, _ in segment.events if len(pieces) == 3), default=0)
        segment.put_part(max(ms, last + 1), 3, self.page.panels[self.panel], "mutation")
        self.panel = (self.panel + 1) % len(self.page.panels)

    def _tick(self, segment: _Segment) -> None:
        for ms in (1000, 3000):
            segment.put_part(segment.start_ms + ms, 3, self.rng.choice(self.page.ticks), "mutation")

    def _interact(self, segment: _Segment) -> None:
        rng, mix, at = self.rng, self.mix, segment.start_ms
        for ms in (600, 1300, 2700):
            segment.put_part(at + ms, 3, rng.choice(self.page.wanders), "mouse")
        if rng.random() < 0.4:
            scroll = {"source": 3, "id": 1, "x": 0, "y": rng.randrange(0, 2000)}
            segment.put(at + 2100, {"type": 3, "data": scroll, "timestamp": at + 2100}, "scroll")
            scroll = {"source": 3, "id": 1, "x": 0, "y": 0}
            segment.put(at + 2400, {"type": 3, "data": scroll, "timestamp": at + 2400}, "scroll")
        if rng.random() < mix.click_flood:
            for number in range(self.clicks_max + 6):
                self._click(segment, at + 150 * number + 900, rng.choice(self.page.targets))
        elif rng.random() < mix.click:
            target = rng.choice(self.page.targets)
            self._click(segment, at + 3100 + rng.randrange(900), target)
            if target.id == self.page.input_id:
                typed = {"source": 5, "text": "tent", "isChecked": False, "id": target.id}
                segment.put(at + 4300, {"type": 3, "data": typed, "timestamp": at + 4300}, "input")
        # At most one a segment: two reports about one node and second would share an identity.
        chance = rng.random()
        if chance < mix.dead_click:
            self._slow_click(segment, "dead")
        elif chance < mix.dead_click + mix.rage_click:
            self._slow_click(segment, "rage")
        elif chance < mix.dead_click + mix.rage_click + mix.slow_click:
            self._slow_click(segment, "slow")
        if rng.random() < mix.negative_click:
            target = rng.choice(self.page.targets)
            node = {**self._node(target), "id": -1}
            self._breadcrumb(
                segment,
                at + 4400,
                "ui.click",
                {"message": target.selector, "data": {"nodeId": -1, "node": node}},
                kind="negative_click",
            )

    # Clicks

    def _node(self, target: Target) -> Event:
        return {
            "id": target.id,
            "tagName": target.tag,
            "textContent": target.text,
            "attributes": target.attributes,
        }

    def _click(self, segment: _Segment, ms: int, target: Target) -> Click:
        """A click as rrweb and as the SDK tell it: the mouse gets there, goes down, up, clicks."""
        steps = [
            {"x": target.x - 8 * left, "y": target.y + 5 * left, "id": target.id, "timeOffset": -40 * left}
            for left in (6, 4, 2, 1, 0)
        ]
        moved = {"type": 3, "data": {"source": 1, "positions": steps}, "timestamp": ms - 20}
        segment.put(ms - 20, moved, "mouse")
        for number, kind in enumerate((1, 0, 2)):  # down, up, click
            data = {"source": 2, "type": kind, "id": target.id, "x": target.x, "y": target.y}
            segment.put(ms + number - 2, {"type": 3, "data": data, "timestamp": ms + number - 2}, "mouse_button")
        click = Click(event_hash(self.replay_id, ms // 1000, target.id), target.id, 0, 0)
        told: Event = {"nodeId": target.id, "node": self._node(target)}
        self._breadcrumb(segment, ms, "ui.click", {"message": target.selector, "data": told}, note=_Note(click))
        return click

    def _slow_click(self, segment: _Segment, kind: str) -> None:
        """A click that nothing happens after; the SDK reports it when it is sure, in a later segment."""
        rng = self.rng
        names = DEAD_CLICK_TAGS if kind != "slow" else DEAD_CLICK_TAGS | {"div"}
        target = rng.choice([one for one in self.page.targets if one.tag in names])
        at = segment.start_ms + 3000 + rng.randrange(800)
        count = rng.randint(RAGE_CLICKS_MIN, 9) if kind == "rage" else rng.randint(1, RAGE_CLICKS_MIN - 1)
        click = self._click(segment, at, target)
        for number in range(1, count):
            self._click(segment, at + 140 * number, target)
        if count > 1:
            repeated: Event = {
                "nodeId": target.id,
                "node": self._node(target),
                "clickCount": count,
                "route": "",
                "url": self.page.url,
            }
            self._breadcrumb(
                segment,
                at + 140 * count,
                "ui.multiClick",
                {"message": target.selector, "data": repeated},
                note=_Note(coin="multi_click"),
            )
        waited = rng.randint(DEAD_CLICK_MS, DEAD_CLICK_MS + 600)
        reason = "timeout"
        if kind == "slow" and target.tag in DEAD_CLICK_TAGS:
            reason, waited = rng.choice((("mutation", 3400), ("timeout", DEAD_CLICK_MS - 1)))
        old = rng.random() < 0.2  # older SDKs wrote the keys in lower case
        report = {
            "nodeId": target.id,
            "node": self._node(target),
            "url": self.page.url,
            "route": "/",
            "endReason": reason,
            "timeafterclickms" if old else "timeAfterClickMs": waited,
            "clickcount" if old else "clickCount": count,
        }
        payload: Event = {
            "timestamp": at / 1000,
            "type": "default",
            "category": "ui.slowClickDetected",
            "message": target.selector,
            "data": report,
        }
        flags = {"dead": (1, 0), "rage": (1, 1), "slow": (0, 0)}[kind]
        later = msgspec.structs.replace(click, dead=flags[0], rage=flags[1])
        event = {"type": 5, "data": {"tag": "breadcrumb", "payload": payload}}
        self.pending.append(_Pending(at + waited, event, later, kind))

    def _report_slow_clicks(self, segment: _Segment) -> None:
        end = segment.start_ms + SEGMENT_MS
        for report in [one for one in self.pending if one.due_ms < end]:
            self.pending.remove(report)
            segment.put(
                report.due_ms,
                {**report.event, "timestamp": report.due_ms},
                f"ui.slowClickDetected:{report.kind}",
                _Note(report.click, "rage_click" if report.kind == "rage" else ""),
            )
            segment.custom += 1

    # Spans and breadcrumbs

    def _breadcrumb(
        self, segment: _Segment, ms: int, category: str, payload: Event, kind: str = "", note: _Note = NOTHING
    ) -> None:
        whole = {"timestamp": ms / 1000, "type": "default", "category": category, **payload}
        event = {"type": 5, "timestamp": ms, "data": {"tag": "breadcrumb", "payload": whole}}
        segment.put(ms, event, kind or category, note)
        segment.custom += 1

    def _span(
        self, segment: _Segment, ms: int, op: str, description: str, took_ms: int, data: Event, kind: str = ""
    ) -> None:
        payload = {
            "op": op,
            "description": description,
            "startTimestamp": ms / 1000,
            "endTimestamp": (ms + took_ms) / 1000,
            "data": data,
        }
        event = {"type": 5, "timestamp": ms / 1000, "data": {"tag": "performanceSpan", "payload": payload}}
        segment.put(ms, event, kind or f"span:{op}")
        segment.custom += 1

    def _asset(self, segment: _Segment, ms: int, op: str, suffix: str) -> None:
        size = self.rng.randrange(800, 90_000)
        url = f"{ORIGIN}/static/{self.rng.getrandbits(32):08x}.{suffix}"
        data = {"size": size + 300, "encodedBodySize": size, "decodedBodySize": size * 3, "statusCode": 200}
        self._span(segment, ms, op, url, self.rng.randint(5, 200), data)

    def _network(self, segment: _Segment, calls: int) -> None:
        rng = self.rng
        for _ in range(calls):
            op = "resource.fetch" if rng.random() < 0.8 else "resource.xhr"
            sent, got = rng.randrange(1, 4000), rng.randrange(1, 90_000)
            data: Event = {
                "method": rng.choice(("GET", "POST")),
                "statusCode": rng.choice((200, 200, 204, 404, 500)),
            }
            shape = rng.randrange(6)
            if shape == 0:  # SDK 7.44 and 7.45
                data |= {"requestBodySize": sent, "responseBodySize": got}
            elif shape == 1:  # both: the older keys win
                data |= {"requestBodySize": sent, "request": {"size": 1}, "response": {"size": got}}
            elif shape == 2:
                data |= {"response": {"size": got, "headers": {}}}
                sent = 0
            elif shape == 3:
                data |= {"request": {"size": str(sent)}, "response": {"size": "unknown"}}
                got = 0
            else:
                data |= {"request": {"size": sent}, "response": {"size": got}}
            url = f"{ORIGIN}/api/{rng.choice(('orders', 'stock', 'search', 'basket'))}?page={rng.randrange(40)}"
            self._span(segment, segment.start_ms + rng.randrange(SEGMENT_MS), op, url, rng.randint(8, 1800), data)
            for name, size in (("request_size", sent), ("response_size", got)):
                if size:
                    segment.seen[name] += 1
                    segment.sums[name] += size

    def _memory(self, segment: _Segment) -> None:
        used = self.rng.randrange(20_000_000, 90_000_000)
        heap = {"jsHeapSizeLimit": 4_294_705_152, "totalJSHeapSize": used + 9_000_000, "usedJSHeapSize": used}
        data = heap if self.rng.random() < 0.1 else {"memory": heap}
        self._span(segment, segment.start_ms + 4900, "memory", "memory", 0, data)

    def _rarities(self, segment: _Segment) -> None:
        rng, mix, at = self.rng, self.mix, segment.start_ms
        for _ in range(rng.randint(0, 4)):
            text = {"level": rng.choice(("info", "warning", "error")), "message": self._sentence()}
            self._breadcrumb(segment, at + rng.randrange(SEGMENT_MS), "console", text)
        if rng.random() < 0.15:
            self._breadcrumb(segment, at + 4600, "ui.blur", {})
            self._breadcrumb(segment, at + 4800, "ui.focus", {})
        if rng.random() < mix.hydration_error:
            self._breadcrumb(segment, at + 800, "replay.hydrate-error", {"data": {"url": self.page.url}})
        if rng.random() < mix.mutation_report:
            self._breadcrumb(segment, at + 4950, "replay.mutations", {"data": {"count": 1200, "limit": False}})
        if rng.random() < mix.feedback:
            self._breadcrumb(
                segment, at + 4970, "sentry.feedback", {"data": {"feedbackId": f"{rng.getrandbits(128):032x}"}}
            )
        if rng.random() < mix.canvas:
            for number in range(rng.randint(1, 6)):
                bars = [
                    {"property": "fillRect", "args": [8 * x, 40 - rng.randrange(40), 6, 40]} for x in range(20)
                ]
                data = {"source": 9, "id": self.page.canvas_id, "type": 0, "commands": bars}
                ms = at + 700 * number + 100
                segment.put(ms, {"type": 3, "data": data, "timestamp": ms}, "canvas")
        if rng.random() < mix.odd_event:
            odd = rng.choice(ODD_EVENTS)
            if isinstance(odd, dict):
                odd = {**odd, "timestamp": at + 4990}
            segment.put(at + 4990, odd, "odd_event")

    def _sentence(self) -> str:
        return " ".join(
            self.rng.choices(("slow", "response", "retry", "basket", "socket", "closed", "stale"), k=6)
        )

    # Messages

    def _message(self, segment: _Segment) -> Message:
        rng, mix = self.rng, self.mix
        segment.events.sort(key=_time)
        pieces = segment.body()
        raw = inflated(pieces)
        entry = self._entry(segment, "segment", raw)
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
        return self._envelope(segment, entry, body, None)

    def _video_message(self, segment: _Segment) -> Message:
        rng = self.rng
        size = rng.randint(*self.mix.video_bytes)
        video = _mp4(rng, size)
        self._use_phone(segment, len(video))
        segment.events.sort(key=_time)
        raw = inflated(segment.body())
        entry = self._entry(segment, "video", raw)
        packed = b"\x01" + len(video).to_bytes(4, "big") + video + raw
        entry.blob_sha256, entry.blob_exact = hashlib.sha256(packed).hexdigest(), False
        entry.blob_bytes = len(packed)
        entry.sums = {**segment.sums, "video": len(video), "raw": len(raw)}
        return self._envelope(segment, entry, deflated([raw]), video)

    def _use_phone(self, segment: _Segment, video_bytes: int) -> None:
        rng, at = self.rng, segment.start_ms
        segment.put(
            at, {"type": 4, "data": {"href": "", "width": 412, "height": 892}, "timestamp": at}, "viewport"
        )
        payload = {
            "segmentId": segment.number,
            "size": video_bytes,
            "duration": SEGMENT_MS,
            "encoding": "h264",
            "container": "mp4",
            "width": 412,
            "height": 892,
            "frameCount": 5,
            "frameRateType": "constant",
            "frameRate": 1,
            "left": 0,
            "top": 0,
        }
        segment.put(
            at + 1, {"type": 5, "timestamp": at + 1, "data": {"tag": "video", "payload": payload}}, "video"
        )
        for number in range(rng.randint(0, 4)):
            ms = at + 1000 * number + rng.randrange(900)
            view = rng.choice(("btn_buy", "list_item", "tab_home", "search_box"))
            data = {"view.id": view, "view.class": "androidx.appcompat.widget.AppCompatButton"}
            self._breadcrumb(segment, ms, "ui.tap", {"message": view, "data": data})
            segment.taps.append(event_hash(self.replay_id, ms // 1000, view))
        others: tuple[tuple[str, Event, float], ...] = (
            ("device.battery", {"level": rng.randrange(5, 100), "charging": False}, 0.4),
            ("device.orientation", {"position": "portrait"}, 0.1),
            ("device.connectivity", {"state": "wifi"}, 0.2),
            ("ui.scroll", {"view.id": "list", "direction": "down"}, 0.3),
            ("ui.swipe", {"view.id": "carousel", "direction": "left"}, 0.2),
            ("app.background", {}, 0.05),
            ("app.foreground", {}, 0.05),
        )
        for category, facts, chance in others:
            if rng.random() < chance:
                self._breadcrumb(segment, at + rng.randrange(SEGMENT_MS), category, {"data": facts})

    def _entry_base(self, segment: _Segment, kind: str) -> Event:
        return {
            "kind": kind,
            "org_id": self.org_id,
            "project_id": self.project_id,
            "replay_id": self.replay_id,
            "segment_id": segment.number,
            "retention_days": self.retention_days,
            "at": segment.start_ms // 1000,
            "blob": f"{self.retention_days}/{self.project_id}/{self.replay_id}/{segment.number}",
        }

    def _entry(self, segment: _Segment, kind: str, raw: bytes) -> Entry:
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

    def _envelope(self, segment: _Segment, entry: Entry, body: bytes, video: bytes | None) -> Message:
        document, flaw = self._replay_event(segment)
        received = segment.start_ms // 1000 + SEGMENT_MS // 1000 + 1
        value = to_msgpack(
            {
                "type": ENVELOPE_TYPE,
                "replay_id": self.replay_id,
                "segment_id": segment.number,
                "key_id": self.key_id,
                "org_id": self.org_id,
                "project_id": self.project_id,
                "received": received,
                "retention_days": self.retention_days,
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

    # The replay event: what Relay knows about the session

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
            "replay_id": self.replay_id,
            "replay_type": "session" if rng.random() < 0.7 else "buffer",
            "replay_start_timestamp": self.start_ms / 1000,
            "platform": "java" if self.mobile else "javascript",
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
        if self.mobile:
            base["sdk"] = {"name": "sentry.java.android", "version": "8.3.0"}
        return base

    def _replay_event(self, segment: _Segment) -> tuple[bytes | None, str]:
        """The document of this segment, and what is wrong with it on purpose."""
        rng, mix = self.rng, self.mix
        chance = rng.random()
        if chance < mix.replay_event_missing:
            return None, "replay_event_missing"
        document = {
            **self.base,
            "event_id": hashlib.md5(f"{self.replay_id}:{segment.number}".encode()).hexdigest(),
            "segment_id": segment.number,
            "timestamp": (segment.start_ms + SEGMENT_MS) / 1000,
            "urls": self.urls,
            "error_ids": [f"{rng.getrandbits(128):032x}"] if rng.random() < 0.12 else [],
            "trace_ids": [f"{rng.getrandbits(128):032x}"],
        }
        if chance < mix.replay_event_missing + mix.replay_event_broken:
            if rng.random() < 0.5:
                return to_json(document)[:-9], "replay_event_not_json"
            return to_json({**document, "urls": 7, "user": "somebody", "tags": None}), "replay_event_wrong_types"
        return to_json(document), ""


def _time(event: tuple[int, tuple[Piece, ...], _Note]) -> int:
    return event[0]


def _box(kind: bytes, content: bytes) -> bytes:
    return (len(content) + 8).to_bytes(4, "big") + kind + content


def _mp4(rng: random.Random, size: int) -> bytes:
    """Boxes in the order of a real recording around `size` bytes that do not compress; no decoder shows them."""
    header = bytes(12) + (1000).to_bytes(4, "big") + SEGMENT_MS.to_bytes(4, "big") + bytes(80)
    return (
        _box(b"ftyp", b"isom\x00\x00\x02\x00isomiso2avc1mp41")
        + _box(b"moov", _box(b"mvhd", header))
        + _box(b"mdat", rng.randbytes(size))
    )
