"""Simulates a visit in a browser: pages that load and change, requests, clicks, and rare events."""

from __future__ import annotations

import random
from typing import Any

from ingest.local.load.clicks import Clicks, node
from ingest.local.load.mix import Mix
from ingest.local.load.pages import ORIGIN, Page
from ingest.local.load.segment import SEGMENT_MS, Event, Segment

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

# Malformed events, such as those sent by an old SDK or a broken page. The parser must reject only the event, not
# its segment.
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


class Browser:
    """One visitor's browser. `browse` fills one segment, and `urls` lists the pages opened in this segment."""

    def __init__(
        self, rng: random.Random, site: tuple[Page, ...], mix: Mix, clicks: Clicks, clicks_max: int
    ) -> None:
        self.rng = rng
        self.site = site
        self.mix = mix
        self.clicks = clicks
        self.clicks_max = clicks_max
        self.page = rng.choice(site)
        self.panel = 0
        self.urls: list[str] = []

    def browse(self, segment: Segment) -> None:
        """Generates the events of the next segment."""
        self.urls = []
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
        self.clicks.report(segment)
        self._interact(segment)
        self._network(segment, rng.randint(0, 6))
        self._memory(segment)
        self._add_rare_events(segment)

    def _load_page(self, segment: Segment) -> None:
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
            segment.breadcrumb(at + 1, "navigation", {"data": data})
        segment.put_part(at + 2, 2, page.snapshot, "full_snapshot")
        segment.span(at + 20, "navigation.navigate", page.url, rng.randint(300, 2500), {"size": 18_000})
        for _ in range(rng.randint(2, 5)):
            self._asset(segment, at + rng.randint(30, 400), "resource.script", "js")
        for _ in range(rng.randint(2, 6)):
            self._asset(segment, at + rng.randint(200, 900), "resource.img", "webp")
        for _ in range(rng.randint(1, 3)):
            self._asset(segment, at + rng.randint(30, 300), "resource.css", "css")
        segment.span(at + 700, "paint", "first-paint", 0, {"value": 640.0})
        for name, (low, high) in VITALS:
            value = round(rng.uniform(low, high), 3)
            rating = rng.choice(("good", "good", "needs-improvement", "poor"))
            facts = {"value": value, "size": value, "rating": rating, "nodeIds": [page.main_id]}
            segment.span(at + 1500, "web-vital", name, 0, facts, kind=f"vital:{name}")
        for _ in range(rng.randint(0, 3)):
            self._next_panel(segment, at + rng.randint(1200, 4900))

    def _rerender(self, segment: Segment, panels: int) -> None:
        for ms in sorted(self.rng.sample(range(50, SEGMENT_MS - 50), panels)):
            self._next_panel(segment, segment.start_ms + ms)
        self._tick(segment)

    def _next_panel(self, segment: Segment, ms: int) -> None:
        # Renderings are applied in the order in which they were added, so their times must increase.
        last = max((at for at, pieces, _ in segment.events if len(pieces) == 3), default=0)
        segment.put_part(max(ms, last + 1), 3, self.page.panels[self.panel], "mutation")
        self.panel = (self.panel + 1) % len(self.page.panels)

    def _tick(self, segment: Segment) -> None:
        for ms in (1000, 3000):
            segment.put_part(segment.start_ms + ms, 3, self.rng.choice(self.page.ticks), "mutation")

    def _interact(self, segment: Segment) -> None:
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
                self.clicks.click(segment, at + 150 * number + 900, rng.choice(self.page.targets))
        elif rng.random() < mix.click:
            target = rng.choice(self.page.targets)
            self.clicks.click(segment, at + 3100 + rng.randrange(900), target)
            if target.id == self.page.input_id:
                typed = {"source": 5, "text": "tent", "isChecked": False, "id": target.id}
                segment.put(at + 4300, {"type": 3, "data": typed, "timestamp": at + 4300}, "input")
        # At most one slow click is added per segment, because two reports about the same node in the same second
        # would share an identity.
        chance = rng.random()
        if chance < mix.dead_click:
            self.clicks.slow_click(segment, self.page, "dead")
        elif chance < mix.dead_click + mix.rage_click:
            self.clicks.slow_click(segment, self.page, "rage")
        elif chance < mix.dead_click + mix.rage_click + mix.slow_click:
            self.clicks.slow_click(segment, self.page, "slow")
        if rng.random() < mix.negative_click:
            target = rng.choice(self.page.targets)
            described = {**node(target), "id": -1}
            segment.breadcrumb(
                at + 4400,
                "ui.click",
                {"message": target.selector, "data": {"nodeId": -1, "node": described}},
                kind="negative_click",
            )

    def _asset(self, segment: Segment, ms: int, op: str, suffix: str) -> None:
        size = self.rng.randrange(800, 90_000)
        url = f"{ORIGIN}/static/{self.rng.getrandbits(32):08x}.{suffix}"
        data = {"size": size + 300, "encodedBodySize": size, "decodedBodySize": size * 3, "statusCode": 200}
        segment.span(ms, op, url, self.rng.randint(5, 200), data)

    def _network(self, segment: Segment, calls: int) -> None:
        rng = self.rng
        for _ in range(calls):
            op = "resource.fetch" if rng.random() < 0.8 else "resource.xhr"
            sent, received = rng.randrange(1, 4000), rng.randrange(1, 90_000)
            data: Event = {
                "method": rng.choice(("GET", "POST")),
                "statusCode": rng.choice((200, 200, 204, 404, 500)),
            }
            shape = rng.randrange(6)
            if shape == 0:  # SDK 7.44 and 7.45
                data |= {"requestBodySize": sent, "responseBodySize": received}
            elif shape == 1:  # if both are present, the older keys take precedence
                data |= {"requestBodySize": sent, "request": {"size": 1}, "response": {"size": received}}
            elif shape == 2:
                data |= {"response": {"size": received, "headers": {}}}
                sent = 0
            elif shape == 3:
                data |= {"request": {"size": str(sent)}, "response": {"size": "unknown"}}
                received = 0
            else:
                data |= {"request": {"size": sent}, "response": {"size": received}}
            url = f"{ORIGIN}/api/{rng.choice(('orders', 'stock', 'search', 'basket'))}?page={rng.randrange(40)}"
            segment.span(segment.start_ms + rng.randrange(SEGMENT_MS), op, url, rng.randint(8, 1800), data)
            for name, size in (("request_size", sent), ("response_size", received)):
                if size:
                    segment.seen[name] += 1
                    segment.sums[name] += size

    def _memory(self, segment: Segment) -> None:
        used = self.rng.randrange(20_000_000, 90_000_000)
        heap = {"jsHeapSizeLimit": 4_294_705_152, "totalJSHeapSize": used + 9_000_000, "usedJSHeapSize": used}
        data = heap if self.rng.random() < 0.1 else {"memory": heap}
        segment.span(segment.start_ms + 4900, "memory", "memory", 0, data)

    def _add_rare_events(self, segment: Segment) -> None:
        rng, mix, at = self.rng, self.mix, segment.start_ms
        for _ in range(rng.randint(0, 4)):
            text = {"level": rng.choice(("info", "warning", "error")), "message": self._sentence()}
            segment.breadcrumb(at + rng.randrange(SEGMENT_MS), "console", text)
        if rng.random() < 0.15:
            segment.breadcrumb(at + 4600, "ui.blur", {})
            segment.breadcrumb(at + 4800, "ui.focus", {})
        if rng.random() < mix.hydration_error:
            segment.breadcrumb(at + 800, "replay.hydrate-error", {"data": {"url": self.page.url}})
        if rng.random() < mix.mutation_report:
            segment.breadcrumb(at + 4950, "replay.mutations", {"data": {"count": 1200, "limit": False}})
        if rng.random() < mix.feedback:
            segment.breadcrumb(
                at + 4970, "sentry.feedback", {"data": {"feedbackId": f"{rng.getrandbits(128):032x}"}}
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
