"""Tests how each category of event becomes a fact, and how values of the wrong type are handled."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from ingest.testing.messages import (
    RECEIVED,
    asset_event,
    breadcrumb,
    canvas_event,
    click_event,
    console_event,
    custom_event,
    fetch_event,
    hydration_error_event,
    memory_event,
    mutations_event,
    options_event,
    recording,
    span_event,
    video_event,
    viewport_event,
    vital_event,
)
from tests.kit.parsing import (
    NO_SAMPLING,
    body_sizes,
    clicks,
    events_parsed,
    fact_seconds,
    facts,
    kinds,
    metric,
    parsed,
)

HEAP = {"jsHeapSizeLimit": 4294705152, "totalJSHeapSize": 21_000_000, "usedJSHeapSize": 17_000_000}


@pytest.mark.parametrize(
    ("event", "kind", "attributes"),
    [
        (hydration_error_event(), "hydration_error", {"url": "https://shop.example/cart"}),
        (mutations_event(), "mutations", {"count": 1738, "limit": False}),
        (breadcrumb("navigation", {"from": "/", "to": "/cart"}), "navigation", {"from": "/", "to": "/cart"}),
        (console_event(), "console", {"level": "error", "message": "it broke"}),
        (breadcrumb("ui.blur"), "ui.blur", {}),
        (breadcrumb("ui.focus"), "ui.focus", {}),
        (breadcrumb("sentry.feedback", {"feedbackId": "f1"}), "sentry.feedback", {"feedback_id": "f1"}),
        (breadcrumb("device.battery", {"level": 81.5, "charging": True}), "device.battery", None),
        (breadcrumb("device.orientation", {"position": "landscape"}), "device.orientation", None),
        (breadcrumb("device.connectivity", {"state": "wifi"}), "device.connectivity", None),
        (breadcrumb("ui.scroll", {"direction": "up"}), "ui.scroll", None),
        (breadcrumb("ui.swipe", {"direction": "left"}), "ui.swipe", None),
        (breadcrumb("app.background"), "app.background", {}),
        (breadcrumb("app.foreground"), "app.foreground", {}),
        (memory_event(), "memory", HEAP),
        (memory_event(nested=False), "memory", HEAP),
        (options_event(), "sdk_options", {"sessionSampleRate": 0.1, "shouldRecordCanvas": True}),
        (options_event(unknownKey=1), "sdk_options", {"sessionSampleRate": 0.1, "shouldRecordCanvas": True}),
    ],
)
def test_an_event_becomes_one_fact(event: Any, kind: str, attributes: dict[str, Any] | None):
    """Each event becomes one fact, which has the event's kind and the attributes of that kind."""
    ((found, fields),) = facts(events_parsed([event]))

    assert found == kind
    assert fields == (event["data"]["payload"]["data"] if attributes is None else attributes)


def test_a_viewport_has_url_and_size():
    """An rrweb event of type 4 becomes a viewport fact with URL and size."""
    attributes = {"href": "https://shop.example/", "width": 1280, "height": 720}
    assert facts(events_parsed([viewport_event()])) == [("viewport", attributes)]


@pytest.mark.parametrize("op", ["navigation.navigate", "navigation.push", "navigation"])
def test_a_navigation_span_has_target_and_duration(op: str):
    fields = {"url": "/cart", "duration": 0.25, "op": op}
    assert facts(events_parsed([span_event(op, "/cart", {"size": 1})])) == [("navigation.span", fields)]


@pytest.mark.parametrize("op", ["resource.script", "resource.img"])
def test_an_asset_has_its_sizes(op: str):
    """An asset's fact contains the asset's transferred, encoded and decoded sizes."""
    ((kind, fields),) = facts(events_parsed([asset_event(op)]))

    assert kind == op
    assert (fields["size"], fields["encoded_body_size"], fields["decoded_body_size"]) == (31872, 31356, 90210)
    assert (fields["status_code"], fields["duration"]) == (200, 0.25)


@pytest.mark.parametrize("op", ["resource", "paint", "replay.throttled", "", None, 7, ["a"]])
def test_a_span_of_another_kind_is_skipped(op: Any):
    """A span of an unknown kind is skipped and does not count as malformed."""
    segment = events_parsed([span_event(op, "first-paint", {"size": 1})])

    assert facts(segment) == []
    assert segment.warnings == ()


@pytest.mark.parametrize("category", ["replay.throttled", "sentry.event", "", None, 7, {"a": 1}])
def test_a_breadcrumb_of_another_category_is_skipped(category: Any):
    """A breadcrumb of an unsupported category is skipped and does not count as malformed."""
    segment = events_parsed([breadcrumb(category, {"a": 1})])

    assert facts(segment) == []
    assert segment.warnings == ()


def test_a_breadcrumb_of_the_application_is_a_fact_that_names_its_category():
    """Every custom breadcrumb of an application becomes a fact of the kind `breadcrumb`, with the scalar fields of
    the breadcrumb's data.
    """
    event = breadcrumb("cart", {"items": 3, "coupon": "X", "inner": {"a": 1}, "big": "y" * 5000}, message="added")

    ((kind, fields),) = facts(events_parsed([event]))

    assert kind == "breadcrumb"
    assert (fields["category"], fields["message"]) == ("cart", "added")
    assert fields["data"] == {"items": 3, "coupon": "X", "big": "y" * 2048}


@pytest.mark.parametrize("data", [None, [1], "text", 7])
def test_a_breadcrumb_of_the_application_may_have_any_data(data: Any):
    """A custom breadcrumb of an application becomes a fact whatever its data is; only its category is required."""
    ((kind, fields),) = facts(events_parsed([breadcrumb("x" * 1000, data)]))

    assert (kind, fields["category"], fields["data"]) == ("breadcrumb", "x" * 64, {})


def test_a_key_has_its_modifiers_and_element():
    """The fact for a pressed key contains the modifiers, and the target element as a selector and as a node."""
    node = {"id": 9, "tagName": "input", "textContent": "", "attributes": {}}
    data = {"nodeId": 9, "node": node, "key": "Enter", "metaKey": False, "ctrlKey": True, "altKey": 1}

    ((kind, fields),) = facts(events_parsed([breadcrumb("ui.keyDown", data, message="body > input")]))

    assert kind == "ui.keyDown"
    assert fields == {
        "selector": "body > input",
        "node_id": 9,
        "tag": "input",
        "key": "Enter",
        "meta": False,
        "ctrl": True,
    }


def test_an_input_names_its_element_and_not_the_typed_text():
    """The fact for an input names the element but never the typed text, which the SDK does not send."""
    data = {"nodeId": "nine", "node": {"id": 9, "tagName": "input", "textContent": "secret"}, "value": "secret"}

    ((kind, fields),) = facts(events_parsed([breadcrumb("ui.input", data, message="input")]))

    assert (kind, fields) == ("ui.input", {"selector": "input", "node_id": None, "tag": "input"})


@pytest.mark.parametrize("op", ["resource.link", "resource.css", "resource.video", "resource.beacon"])
def test_a_resource_of_any_known_kind_is_a_fact_of_its_kind(op: str):
    """A resource with any initiator type of Resource Timing becomes a fact of the kind `resource.<type>`."""
    ((kind, _),) = facts(events_parsed([asset_event(op)]))

    assert kind == op


def test_a_resource_of_an_unknown_kind_is_a_fact_without_it():
    """A resource of an unknown kind becomes a fact without a kind, so that a sender cannot create new kinds of
    facts.
    """
    ((kind, _),) = facts(events_parsed([asset_event("resource.made-up")]))

    assert kind == "resource.other"


def vitals_of(*events: tuple[str, str, float]) -> list[Any]:
    """Parses spans given as (op, description, Unix seconds), and returns the values of their web vitals."""
    spans = [span_event(op, text, startTimestamp=at, endTimestamp=at) for op, text, at in events]
    return [fields["value"] for kind, fields in facts(events_parsed(spans)) if kind.startswith("web-vital.")]


def test_the_first_contentful_paint_is_the_time_since_its_page_began_to_load():
    """The first contentful paint is the time in milliseconds since its page began to load.

    `navigation.push` does not load a page, and a page load hours earlier belongs to another page.
    """
    load, paint = ("navigation.navigate", "https://a/", 1000.0), ("paint", "first-contentful-paint", 1000.764)

    assert vitals_of(load, paint) == [764.0]
    assert vitals_of(load, ("navigation.push", "/b", 1000.5), paint) == [764.0]
    assert vitals_of(load, ("navigation.reload", "https://a/", 1000.5), paint) == [264.0]
    assert vitals_of(paint) == [None]
    assert vitals_of(load, ("paint", "first-contentful-paint", 999.0)) == [None]
    assert vitals_of(load, ("paint", "first-contentful-paint", 9000.0)) == [None]
    assert vitals_of(("navigation.navigate", "https://a/", 1000000.0), paint) == [None]


@pytest.mark.parametrize(
    ("op", "name"),
    [("largest-contentful-paint", "largest-contentful-paint"), ("web-vital", "first-input-delay")],
)
def test_vitals_of_older_sdks_are_facts(op: str, name: str):
    """Web vitals are read from the spans of SDK 7, and the first input delay from those of SDKs 8 and 9."""
    ((kind, fields),) = facts(events_parsed([span_event(op, name, {"value": 12.5, "size": 7})]))

    assert (kind, fields["value"], fields["op"]) == (f"web-vital.{name}", 12.5, op)


@pytest.mark.parametrize("tag", ["mobile.something", "", None, 7, ["breadcrumb"]])
def test_a_custom_event_with_another_tag_is_skipped(tag: Any):
    """A custom event with an unknown tag is skipped, whatever its payload is."""
    segment = events_parsed([custom_event(tag, payload) for payload in ({}, None, "text", [1])])

    assert facts(segment) == []
    assert segment.warnings == ()


@pytest.mark.parametrize(
    "name",
    [
        "largest-contentful-paint",
        "first-contentful-paint",
        "cumulative-layout-shift",
        "interaction-to-next-paint",
    ],
)
def test_a_web_vital_is_recognized_by_its_name(name: str):
    """A web vital is recognized by its name, whatever the op of its span is, even `paint`."""
    ((kind, fields),) = facts(events_parsed([vital_event(name)]))
    assert kind == f"web-vital.{name}"
    assert (fields["rating"], fields["size"], fields["value"]) == ("good", 1250.5, 1250.5)

    assert kinds(events_parsed([span_event("paint", name, {"value": 1})])) == [f"web-vital.{name}"]


def test_a_paint_without_data_is_still_read():
    """Of the two paint spans that the SDK sends per page load, one is read as a web vital, and neither is
    malformed.
    """
    segment = events_parsed([span_event("paint", "first-paint"), span_event("paint", "first-contentful-paint")])

    assert kinds(segment) == ["web-vital.first-contentful-paint"]
    assert segment.warnings == ()


def test_an_unknown_web_vital_is_skipped():
    """An unknown web vital is skipped, so that the number of fact kinds stays small."""
    assert facts(events_parsed([vital_event("time-to-nowhere"), vital_event(None)])) == []


def test_canvas_size_is_that_of_its_events_json():
    """The canvas size is the JSON size of events with type 3 and source 9; other events and malformed events do
    not count.
    """
    drawn = canvas_event(40)
    others = [{"type": 3, "data": {"source": 1}}, {"type": 3, "data": None}, {"type": 3}]

    ((kind, fields),) = facts(events_parsed([*others, drawn]))

    assert kind == "canvas_size"
    assert fields == {"size": len(json.dumps(drawn, separators=(",", ":")))}


def test_a_video_event_describes_the_video():
    """The fact for a video event describes the video, as needed for the reconciliation of mobile replays."""
    ((kind, fields),) = facts(events_parsed([video_event(size=123)]))

    assert (kind, fields["size"], fields["duration"], fields["container"]) == ("mobile_event", 123, 5000, "mp4")


def test_canvas_mutations_and_options_are_sampled():
    """For each segment, either all three sampled facts or none of them are written."""
    events = [canvas_event(), mutations_event(), options_event()]

    assert kinds(events_parsed(events)) == ["canvas_size", "mutations", "sdk_options"]
    assert kinds(events_parsed(events, NO_SAMPLING)) == []


# Times


@pytest.mark.parametrize(
    ("event", "seconds"),
    [
        (breadcrumb("ui.blur", timestamp=RECEIVED + 1.25), RECEIVED + 1.25),
        (breadcrumb("ui.blur", timestamp=None), RECEIVED),
        ({**viewport_event(), "timestamp": RECEIVED * 1000 + 750}, RECEIVED + 0.75),
        ({**options_event(), "timestamp": RECEIVED + 2.5}, RECEIVED + 2.5),
        (span_event("memory", "", HEAP), RECEIVED + 0.5),
        (breadcrumb("ui.blur", timestamp=1e300), RECEIVED),
        (breadcrumb("ui.blur", timestamp=-1), RECEIVED),
        (breadcrumb("ui.blur", timestamp="soon"), RECEIVED),
        ({**viewport_event(), "timestamp": [1]}, RECEIVED),
    ],
)
def test_a_fact_has_the_time_of_its_event_in_seconds(event: Any, seconds: float):
    """A fact has the time of its event in seconds, whether the event's time is in seconds or milliseconds.

    An impossible time is replaced by the time of the segment.
    """
    segment = events_parsed([event])

    assert fact_seconds(segment.bigquery[-1]) == seconds


# Sizes of requests


@pytest.mark.parametrize(
    ("request_side", "response_side"),
    [
        *product(
            ({}, {"request": {}}, {"request": {"size": 1002}}),
            ({}, {"response": {}}, {"response": {"size": 8001}}),
        )
    ],
)
def test_sizes_of_request_and_response_in_all_nine_permutations(
    request_side: dict[str, Any], response_side: dict[str, Any]
):
    """The sizes of request and response may each be known or unknown, independently of each other."""
    segment = events_parsed([fetch_event({**request_side, **response_side})])

    has = [bool(side and next(iter(side.values()))) for side in (request_side, response_side)]
    assert body_sizes(segment) == ([1002] * has[0], [8001] * has[1])
    ((_, fields),) = facts(segment)
    assert fields["request_size"] == (1002 if has[0] else None)
    assert fields["response_size"] == (8001 if has[1] else None)


def test_older_names_of_sizes_take_precedence():
    """If the size fields of SDK 7.44 and 7.45 are present, they take precedence over the newer fields."""
    both = {"requestBodySize": 1, "responseBodySize": 2, "request": {"size": 3}, "response": {"size": 4}}

    assert body_sizes(events_parsed([fetch_event(both)])) == ([1], [2])


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        ({"request": {"size": "1002"}, "response": {"size": 8001.9}}, ([1002], [8001])),
        ({"request": {"size": "many"}, "response": {"size": 8001}}, ([], [8001])),
        ({"request": {"size": None}, "response": {"size": 8001}}, ([], [8001])),
        ({"request": None, "response": {"size": 8001}}, ([], [8001])),
        ({"request": "GET", "response": {"size": 8001}}, ([], [8001])),
        ({"request": [1], "response": {"size": 8001}}, ([], [8001])),
        ({"request": {"size": {}}, "response": {"size": 8001}}, ([], [8001])),
        ({"request": {"size": 10**400}, "response": {"size": 8001}}, ([], [8001])),
        ({"requestBodySize": "7", "responseBodySize": []}, ([7], [])),
    ],
)
def test_each_side_is_a_number_or_unknown_on_its_own(data: dict[str, Any], sizes: tuple[list[int], list[int]]):
    """The request and response sizes are converted with `int()`; either may be unknown."""
    assert body_sizes(events_parsed([fetch_event(data)])) == sizes


@pytest.mark.parametrize("data", [None, ..., "text", 7, []])
def test_a_request_without_data_is_still_a_request(data: Any):
    """A request without data becomes a fact with unknown sizes."""
    segment = events_parsed([span_event("resource.xhr", "https://api.shop.example/", data)])

    assert kinds(segment) == ["resource.xhr"]
    assert body_sizes(segment) == ([], [])


def test_one_hydration_error_and_two_sizes_among_events_without_data():
    """Events without data do not prevent the parser from counting a hydration error and recording the sizes of a
    request and its response.
    """
    events = [
        hydration_error_event(),
        fetch_event({"method": "POST", "statusCode": 200, "request": {"size": 1002}, "response": {"size": 8001}}),
        {"type": 5, "timestamp": 1, "data": None},
        {"type": 5, "timestamp": 1},
        {"type": 3, "data": None},
        {"type": 2},
    ]

    segment = events_parsed(events)

    assert metric(segment, "replay.hydration_error_breadcrumb") == [1]
    assert body_sizes(segment) == ([1002], [8001])


# Unusual texts and numbers


@pytest.mark.parametrize("number", [2**64 - 1, 2**64, -(2**63) - 1, 10**200, 10**400, 1e308, -0.0])
def test_numbers_of_any_size_crash_nothing(number: Any):
    """A very large number in any numeric field raises no exception.

    The click next to the event with the very large number is read.
    """
    events = [
        options_event(sessionSampleRate=number),
        breadcrumb("ui.scroll", {"x": number}, timestamp=number),
        span_event("memory", "", {"memory": {"usedJSHeapSize": number}}, startTimestamp=number),
        vital_event(value=number, size=number),
        fetch_event({"statusCode": number, "request": {"size": number}}),
        mutations_event(count=number),
        viewport_event(width=number),
        {**viewport_event(), "timestamp": number},
        click_event(),
    ]

    segment = parsed(recording(json.dumps(events).encode()))

    assert len(clicks(segment)) == 1
    assert kinds(segment)[-1] == "ui.click"


def test_half_an_emoji_loses_no_event():
    """JavaScript can write a lone surrogate, which is not valid Unicode.

    The lone surrogate is stored as the replacement character.
    """
    text = rb'[{"type":5,"data":{"tag":"breadcrumb","payload":{"category":"console","message":"cut \ud83d"}}}]'

    segment = parsed(recording(text))

    assert facts(segment) == [("console", {"level": "", "message": "cut �"})]
    assert segment.warnings == ()


def test_texts_are_bounded():
    """Long strings, such as a console message that contains a whole page, are truncated."""
    ((_, fields),) = facts(events_parsed([console_event("x" * 100_000)]))
    assert len(fields["message"]) == 1024

    ((_, fields),) = facts(events_parsed([breadcrumb("ui.scroll", {f"{n}": "x" * 100_000 for n in range(20)})]))
    assert len(json.dumps(fields)) < 40_000


def test_an_event_of_an_unknown_type_is_skipped():
    """An event of an unknown type, which a newer version of rrweb may add, is skipped."""
    segment = events_parsed([{"type": 8}, {"type": 99, "data": 1}, {"type": -1}, {"type": 10**30}, click_event()])

    assert kinds(segment) == ["ui.click"]
