"""Generates clicks as rrweb and the SDK report them, including slow clicks, which the SDK reports in a later
segment.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec

from ingest.local.load.manifest import Click
from ingest.local.load.pages import Page, Target
from ingest.local.load.segment import SEGMENT_MS, Event, Note, Segment, event_hash

RAGE_CLICKS_MIN = 5
DEAD_CLICK_MS = 7000
DEAD_CLICK_TAGS = frozenset({"a", "button", "input"})


@dataclass(slots=True)
class PendingClick:
    """A slow click that the SDK will report later."""

    due_ms: int
    event: Event
    click: Click
    kind: str


class Clicks:
    """The clicks of one session."""

    def __init__(self, rng: random.Random, replay_id: str) -> None:
        self._rng = rng
        self._replay_id = replay_id
        self._pending: list[PendingClick] = []

    def click(self, segment: Segment, ms: int, target: Target) -> Click:
        """Adds a click as rrweb and the SDK report it: the mouse moves to the target, followed by down, up and
        click events.
        """
        steps = [
            {"x": target.x - 8 * left, "y": target.y + 5 * left, "id": target.id, "timeOffset": -40 * left}
            for left in (6, 4, 2, 1, 0)
        ]
        movement = {"type": 3, "data": {"source": 1, "positions": steps}, "timestamp": ms - 20}
        segment.put(ms - 20, movement, "mouse")
        for number, kind in enumerate((1, 0, 2)):  # down, up, click
            data = {"source": 2, "type": kind, "id": target.id, "x": target.x, "y": target.y}
            segment.put(ms + number - 2, {"type": 3, "data": data, "timestamp": ms + number - 2}, "mouse_button")
        click = Click(event_hash(self._replay_id, ms // 1000, target.id), target.id, 0, 0)
        clicked: Event = {"nodeId": target.id, "node": node(target)}
        segment.breadcrumb(ms, "ui.click", {"message": target.selector, "data": clicked}, note=Note(click))
        return click

    def slow_click(self, segment: Segment, page: Page, kind: str) -> None:
        """Adds clicks on one element that have no effect, or only a late one; the SDK reports this in a later
        segment."""
        rng = self._rng
        names = DEAD_CLICK_TAGS if kind != "slow" else DEAD_CLICK_TAGS | {"div"}
        target = rng.choice([candidate for candidate in page.targets if candidate.tag in names])
        at = segment.start_ms + 3000 + rng.randrange(800)
        count = rng.randint(RAGE_CLICKS_MIN, 9) if kind == "rage" else rng.randint(1, RAGE_CLICKS_MIN - 1)
        click = self.click(segment, at, target)
        for number in range(1, count):
            self.click(segment, at + 140 * number, target)
        if count > 1:
            repeated: Event = {
                "nodeId": target.id,
                "node": node(target),
                "clickCount": count,
                "route": "",
                "url": page.url,
            }
            segment.breadcrumb(
                at + 140 * count,
                "ui.multiClick",
                {"message": target.selector, "data": repeated},
                note=Note(coin="multi_click"),
            )
        waited = rng.randint(DEAD_CLICK_MS, DEAD_CLICK_MS + 600)
        reason = "timeout"
        if kind == "slow" and target.tag in DEAD_CLICK_TAGS:
            reason, waited = rng.choice((("mutation", 3400), ("timeout", DEAD_CLICK_MS - 1)))
        old = rng.random() < 0.2  # older SDKs wrote the keys in lower case
        report = {
            "nodeId": target.id,
            "node": node(target),
            "url": page.url,
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
        self._pending.append(PendingClick(at + waited, event, later, kind))

    def report(self, segment: Segment) -> None:
        """Adds the reports of slow clicks that are due."""
        end = segment.start_ms + SEGMENT_MS
        for report in [pending for pending in self._pending if pending.due_ms < end]:
            self._pending.remove(report)
            segment.put(
                report.due_ms,
                {**report.event, "timestamp": report.due_ms},
                f"ui.slowClickDetected:{report.kind}",
                Note(report.click, "rage_click" if report.kind == "rage" else ""),
            )
            segment.custom += 1


def node(target: Target) -> Event:
    """Returns an element as the SDK describes it."""
    return {
        "id": target.id,
        "tagName": target.tag,
        "textContent": target.text,
        "attributes": target.attributes,
    }
