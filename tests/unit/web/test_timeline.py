"""The timeline shows what happened in a replay, as derived from the replay's own events. A malformed event affects
no other event.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.testing.messages import (
    MALFORMED_EVENTS,
    RECEIVED,
    RRwebEvent,
    asset_event,
    breadcrumb,
    click_event,
    console_event,
    custom_event,
    dead_click_event,
    fetch_event,
    hydration_error_event,
    memory_event,
    multi_click_event,
    mutations_event,
    options_event,
    rage_click_event,
    slow_click_event,
    snapshot_event,
    span_event,
    tap_event,
    video_event,
    viewport_event,
    vital_event,
)
from ingest.web.model import ReportedError
from ingest.web.timeline import (
    BODY_CHARACTERS_MAX,
    CHARACTERS_MAX,
    MARKS_MAX,
    TEXT_CHARACTERS_MAX,
    HttpMessage,
    Timeline,
    add_errors,
    read,
)
from tests.kit.recordings import RECORDINGS, Recording, inflated

AT_MS = RECEIVED * 1000
CRUMB_MS = AT_MS + 500
each = pytest.mark.parametrize("recorded", RECORDINGS, ids=lambda recorded: recorded.name)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def timeline(*segments: Sequence[RRwebEvent]) -> Timeline:
    """Returns the timeline of the given segments' events."""
    return read(enumerate(json.dumps(events).encode() for events in segments))


def pointer_event(at_ms: int, node_id: int = 9, kind: int = 2) -> RRwebEvent:
    """Returns an rrweb mouse interaction event; a `kind` of 2 is a click."""
    return {"type": 3, "timestamp": at_ms, "data": {"source": 2, "type": kind, "id": node_id, "x": 4, "y": 5}}


@pytest.mark.parametrize(
    ("event", "kind", "level", "title"),
    [
        (viewport_event("https://shop.example/a"), "page", "", "https://shop.example/a"),
        (click_event(), "click", "", "div > button.buy"),
        (slow_click_event(), "slow_click", "", "div > button.buy"),
        (dead_click_event(), "dead_click", "warn", "div > button.buy"),
        (dead_click_event(tag="div"), "slow_click", "", "div > button.buy"),
        (rage_click_event(), "rage_click", "bad", "div > button.buy"),
        (multi_click_event(), "multi_click", "", "div > button.buy"),
        (tap_event(), "tap", "", "add_item"),
        (console_event("it broke", "error"), "console", "bad", "it broke"),
        (console_event("mind", "warning"), "console", "warn", "mind"),
        (console_event("so it goes", "log"), "console", "", "so it goes"),
        (hydration_error_event(), "hydration_error", "bad", "https://shop.example/cart"),
        (mutations_event(1738), "mutations", "warn", "1738 mutations at once"),
        (breadcrumb("navigation", {"from": "/a", "to": "/b"}), "navigation", "", "/b"),
        (breadcrumb("sentry.feedback", {"feedbackId": "f1"}), "feedback", "", "feedback f1"),
        (breadcrumb("ui.focus"), "state", "", "ui.focus"),
        (breadcrumb("device.battery", {"level": 42}), "state", "", "device.battery"),
        (fetch_event(), "network", "", "https://api.shop.example/cart"),
        (fetch_event({"method": "PUT", "statusCode": 404}), "network", "warn", "https://api.shop.example/cart"),
        (fetch_event({"statusCode": 503}, op="resource.xhr"), "network", "bad", "https://api.shop.example/cart"),
        (fetch_event({"statusCode": 0}), "network", "bad", "https://api.shop.example/cart"),
        (asset_event(statusCode=0), "asset", "", "https://shop.example/app.js"),
        (asset_event(), "asset", "", "https://shop.example/app.js"),
        (asset_event(statusCode=404), "asset", "warn", "https://shop.example/app.js"),
        (span_event("navigation.push", "/cart"), "navigation", "", "/cart"),
        (vital_event(), "vital", "", "largest-contentful-paint"),
        (vital_event(rating="needs-improvement"), "vital", "warn", "largest-contentful-paint"),
        (vital_event(rating="poor"), "vital", "bad", "largest-contentful-paint"),
        (
            span_event("largest-contentful-paint", "largest-contentful-paint"),
            "vital",
            "",
            "largest-contentful-paint",
        ),
        (breadcrumb("ui.input", {"nodeId": 3}, message="form > input"), "input", "", "form > input"),
        (breadcrumb("ui.keyDown", {"key": "Enter"}, message="body"), "key", "", "body"),
        (breadcrumb("cart", {"items": 3}, message="added"), "breadcrumb", "", "cart: added"),
        (options_event(), "options", "", "SDK options"),
        (video_event(), "video", "", "video"),
    ],
)
def test_each_kind_of_event_has_its_mark(event: RRwebEvent, kind: str, level: str, title: str):
    """Each kind of event becomes a mark with a kind, a severity, and a readable title."""
    (mark,) = timeline([event]).marks

    assert (mark.kind, mark.level, mark.title) == (kind, level, title)
    assert mark.at_ms in (AT_MS, CRUMB_MS)


def test_the_first_contentful_paint_has_the_time_since_its_page_began_to_load():
    """The first contentful paint is shown in milliseconds since its page began to load, as in BigQuery."""
    load = span_event("navigation.navigate", "https://a/", startTimestamp=1_790_000_000.0)
    paint = span_event("paint", "first-contentful-paint", startTimestamp=1_790_000_000.764)

    marks = timeline([load, paint]).marks

    assert [mark.detail["value"] for mark in marks if mark.kind == "vital"] == [764]


def test_a_navigation_is_one_mark():
    """A navigation becomes one mark, although SDKs report it twice.

    SDKs report an in-page navigation as a breadcrumb and a span, and a page load as a span and an rrweb event.
    Other events stay separate.
    """
    at = AT_MS / 1000
    load = span_event("navigation.navigate", "https://a/x", startTimestamp=at - 1)
    page = viewport_event("https://a/x")
    crumb = breadcrumb("navigation", {"from": "/x", "to": "/y?z=1"}, timestamp=at + 5)
    push = span_event("navigation.push", "https://a/y?z=1", startTimestamp=at + 5.1)
    back = breadcrumb("navigation", {"from": "/y?z=1", "to": "/x"}, timestamp=at + 9)
    late = {**viewport_event("https://a/x"), "timestamp": AT_MS + 60_000}

    marks = timeline([page, crumb, push, back, load, late]).marks

    assert [(mark.kind, mark.title) for mark in marks] == [
        ("navigation", "https://a/x"),
        ("navigation", "https://a/y?z=1"),
        ("navigation", "/x"),
        ("page", "https://a/x"),
    ]
    assert marks[1].detail == {"from": "/x", "to": "/y?z=1", "type": "navigation.push"}
    assert (marks[0].detail["type"], marks[0].detail["width"] is not None) == ("navigation.navigate", True)


def test_details_show_the_event():
    """The details of a mark describe the event: a request's sizes and duration, a click's element, or a vital's
    rating. Sizes are read in the formats of older and newer SDKs.
    """
    marks = timeline(
        [
            fetch_event({"method": "POST", "statusCode": 200, "request": {"size": 7}, "response": {"size": "11"}}),
            fetch_event({"requestBodySize": 5, "request": {"size": 7}, "responseBodySize": None}),
            click_event(3, attributes={"id": "buy", "class": "big", "href": "/x"}),
            vital_event(value=None, size=12),
        ]
    ).marks
    new, old, click, vital = marks

    assert new.duration_ms == 250
    assert (new.detail["method"], new.detail["request bytes"], new.detail["response bytes"]) == ("POST", 7, 11)
    assert (old.detail["method"], old.detail["request bytes"], old.detail["response bytes"]) == ("GET", 5, None)
    assert click.detail == {"element": "button", "text": "Buy now", "id": "buy", "class": "big"}
    assert vital.detail == {"value": 12, "rating": "good"}


def test_captured_headers_and_bodies_are_part_of_a_request():
    """A request's mark contains the captured headers and bodies, as text or JSON of limited size."""
    captured = {
        "statusCode": 201,
        "request": {"headers": {"x-shop": "1"}, "size": 9, "body": {"item": "boots"}},
        "response": {"headers": {}, "body": "x" * 9000, "_meta": {"warnings": ["TEXT_TRUNCATED"]}},
    }
    whole, bare, odd = timeline(
        [
            fetch_event(captured),
            fetch_event({"statusCode": 200, "response": {"size": 3}}),
            fetch_event({"request": [1], "response": {"headers": ["x"], "body": None, "_meta": 7}}),
        ]
    ).marks

    assert whole.captured is not None
    assert whole.captured.request == HttpMessage({"x-shop": "1"}, '{"item": "boots"}', [])
    assert whole.captured.response == HttpMessage({}, "x" * BODY_CHARACTERS_MAX, ["TEXT_TRUNCATED", "BODY_CUT"])
    assert bare.captured is odd.captured is None


def test_captured_bodies_count_towards_the_bound():
    """Captured bodies count towards the size limit, so a timeline with many bodies is truncated instead of growing
    without limit.
    """
    body = {"statusCode": 200, "response": {"headers": {}, "body": "x" * BODY_CHARACTERS_MAX}}
    found = timeline([fetch_event(body)] * (CHARACTERS_MAX // BODY_CHARACTERS_MAX + 10))

    assert found.truncated
    assert len(found.marks) <= CHARACTERS_MAX // BODY_CHARACTERS_MAX


@each
def test_an_error_was_sent_in_the_interval_of_its_mark(recorded: Recording):
    """The mark of an error spans an interval, from the end of the previous segment to the end of the segment that
    names the error.
    """
    documents = [json.loads(msgspec.msgpack.decode(value)["replay_event"]) for value in recorded.values]
    since = documents[0]["replay_start_timestamp"]
    errors = []
    for number, document in enumerate(documents):
        until = int(document["timestamp"]) + 1.0  # as in ClickHouse
        errors += [ReportedError(one, number, since, until) for one in document["error_ids"]]
        since = until - 1
    found = read(enumerate(map(inflated, recorded.bodies)))
    before = len(found.marks)
    add_errors(found, errors)

    marks = [mark for mark in found.marks if mark.kind == "error"]
    assert [mark.title for mark in marks] == [one.error_id for one in errors]
    assert len(found.marks) == before + len(errors)
    thrown = [done for done in recorded.actions if done.what in ("error", "uncaught")]
    for done in thrown:
        assert any(
            mark.at_ms <= done.start_ms and done.stop_ms <= mark.at_ms + int(mark.detail["within_ms"] or 0)
            for mark in marks
        )


def test_a_click_and_its_outcome_are_one_mark():
    """A click and its outcome are one mark, with the most severe outcome, in whatever order they arrive.

    A second click on the same node within one second is counted.
    """
    for events in ([click_event(7), rage_click_event(7)], [rage_click_event(7), click_event(7)]):
        (mark,) = timeline(events).marks
        assert mark.kind == "rage_click"
        assert mark.detail["clicks"] == 5

    twice, other = timeline([click_event(7), click_event(7), click_event(8)]).marks
    assert (twice.times, other.times) == (2, 1)


def test_without_sdk_clicks_rrweb_clicks_are_used():
    """rrweb's clicks are used only if the SDK reported none; otherwise each click would appear twice."""
    mouse = [pointer_event(AT_MS), pointer_event(AT_MS + 1, kind=1)]

    (mark,) = timeline(mouse).marks
    assert (mark.kind, mark.title, mark.detail) == ("click", "mouse click", {"node": 9, "x": 4, "y": 5})
    assert [mark.title for mark in timeline([*mouse, click_event()]).marks] == ["div > button.buy"]


def test_marks_are_in_the_order_of_time_over_all_segments():
    """Marks are ordered by time across all segments, which overlap because a span is sent when it ends."""
    found = timeline([console_event("later")], [viewport_event()])

    assert [(mark.segment_id, mark.kind) for mark in found.marks] == [(1, "page"), (0, "console")]
    assert (found.start_ms, found.end_ms) == (AT_MS, AT_MS)


def test_a_recording_with_only_breadcrumbs_has_their_times():
    """A recording that has only breadcrumbs cannot be played, but its timeline runs from the first breadcrumb to
    the last.
    """
    found = timeline([console_event()])

    assert (found.start_ms, found.end_ms, found.snapshots) == (CRUMB_MS, CRUMB_MS, [])
    assert timeline([]).start_ms == 0


def test_snapshots_are_where_the_player_can_start():
    """The player can start at every snapshot.

    The snapshots are sorted, and a snapshot with a time in seconds is ignored.
    """
    late = {**snapshot_event(), "timestamp": AT_MS + 9000}

    assert timeline([late], [snapshot_event()]).snapshots == [AT_MS, AT_MS + 9000]


def test_memory_samples_of_old_and_new_sdks_are_read():
    """Memory samples of old and new SDKs are read in order, with the used and total number of bytes."""
    samples = timeline([memory_event(), memory_event(nested=False)]).memory

    assert [(sample.used_bytes, sample.total_bytes) for sample in samples] == [(17_000_000, 21_000_000)] * 2


@pytest.mark.parametrize("event", MALFORMED_EVENTS, ids=lambda event: json.dumps(event)[:60])
def test_a_malformed_event_removes_no_other_mark(event: Any):
    """A malformed event removes no other mark from the timeline."""
    found = timeline([viewport_event(), event, console_event("after")])

    assert {"page", "console"} <= {mark.kind for mark in found.marks}
    assert found.malformed + len(found.marks) >= 2


@pytest.mark.parametrize(
    "event",
    [
        breadcrumb("ui.click", {"node": {"id": -1}}),
        breadcrumb("navigation", {}, timestamp="soon"),
        slow_click_event(clickCount="5"),
        span_event("memory", "memory", {"usedJSHeapSize": "much"}),
        custom_event("breadcrumb", "text"),
        {"type": 3, "timestamp": AT_MS, "data": {}},
    ],
)
def test_malformed_events_are_counted(event: Any):
    """Malformed events are counted; otherwise an empty timeline would look like a quiet session."""
    found = timeline([event])

    assert (found.malformed, found.marks) == (1, [])


def test_a_segment_that_is_not_json_is_named():
    """A segment that is not a JSON array is reported by its number, and the next segment is read."""
    found = read([(0, b"{"), (1, b'{"type":4}'), (2, json.dumps([console_event()]).encode())])

    assert found.unreadable.keys() == {0, 1}
    assert all("not a JSON array" in why for why in found.unreadable.values())
    assert found.counts() == {"console": 1}


def test_a_hostile_recording_is_bounded():
    """The number of marks and the length of strings are bounded, and the timeline says whether marks were left
    out.
    """
    found = timeline([console_event("x" * (TEXT_CHARACTERS_MAX + 1))] * (MARKS_MAX + 1))

    assert (len(found.marks), found.truncated) == (MARKS_MAX, True)
    assert len(found.marks[0].title) == TEXT_CHARACTERS_MAX
    assert not timeline([console_event()] * MARKS_MAX).truncated


@each
def test_a_recorded_session_has_as_many_marks_as_events(recorded: Recording):
    """A recorded session has one mark per console message, input, key press, custom breadcrumb, request and click
    that the SDK sent, except that repeated clicks within one second share a mark.
    """
    found = read(enumerate(inflated(body) for body in recorded.bodies))
    crumbs = [
        crumb["category"] for crumb in recorded.payloads("breadcrumb") if isinstance(crumb.get("data", {}), dict)
    ]
    ops = [span["op"] for span in recorded.payloads("performanceSpan")]
    counts = found.counts()

    assert counts.get("console", 0) == crumbs.count("console")
    assert counts.get("input", 0) == crumbs.count("ui.input")
    assert counts.get("key", 0) == crumbs.count("ui.keyDown")
    assert counts.get("breadcrumb", 0) == crumbs.count("auth") + crumbs.count("my.cat")
    assert counts.get("network", 0) == sum(op in ("resource.fetch", "resource.xhr") for op in ops)
    assert len(found.memory) == ops.count("memory")
    assert len(found.snapshots) == sum(event["type"] == 2 for event in recorded.events)
    clicks = [mark for mark in found.marks if mark.kind in ("click", "slow_click", "dead_click", "rage_click")]
    assert sum(mark.times for mark in clicks) == crumbs.count("ui.click")
    assert found.start_ms == min(event["timestamp"] for event in recorded.events if event["type"] != 5)


@each
def test_a_recorded_session_is_in_order_and_can_be_drawn(recorded: Recording):
    """A recorded session can be drawn from its first snapshot on, and only its deliberately malformed breadcrumb
    counts as malformed.
    """
    found = read(enumerate(inflated(body) for body in recorded.bodies))

    times = [mark.at_ms for mark in found.marks]
    assert times == sorted(times)
    assert found.start_ms <= found.snapshots[0] <= found.end_ms
    assert (found.malformed, found.unreadable, found.truncated) == (0, {}, False)


@given(st.lists(JSON, max_size=6))
def test_any_json_is_accepted(values: list[Any]):
    """Any JSON is accepted: a malformed event is counted or skipped without affecting others."""
    found = timeline([*values, console_event("still here")])

    assert [mark.title for mark in found.marks if mark.kind == "console"][-1:] == ["still here"]


@given(st.sampled_from(["breadcrumb", "performanceSpan", "options", "video"]), JSON)
def test_any_payload_of_a_known_event_is_accepted(tag: str, payload: Any):
    """An event of a known type is accepted without an exception, whatever its payload."""
    assert timeline([custom_event(tag, payload)]).malformed <= 1
