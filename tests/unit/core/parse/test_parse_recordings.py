"""Parses recorded sessions: the events that an SDK sent become rows for the actions performed on the page.

tests/recordings describes the sessions. test_parse_foreign.py covers recordings that we may not redistribute.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.kit.parsing import clicks, fact_seconds, metric, session
from tests.kit.recordings import RECORDINGS, Action, Recording, inflated

each_recording = pytest.mark.parametrize("recorded", RECORDINGS, ids=lambda recorded: recorded.name)
SHOPS = [recorded for recorded in RECORDINGS if recorded.name.endswith("-shop")]
each_shop = pytest.mark.parametrize("recorded", SHOPS, ids=lambda recorded: recorded.name)

# The actions that click on an element. The SDK merges clicks on one element within a second into one breadcrumb.
CLICKING = {
    "paint", "shadow btn", "details", "contenteditable", "dialog", "close", "half", "icon path", "radio",
    "click add", "click dead", "click dead 2", "rage x7", "slow link", "plain div", "click cart nav", "check",
    "home nav",
}  # fmt: skip
MERGED_MS = 1000
SDK_VERSIONS = {"v7": "7.120.4", "v11": "11.12.0"}

# Maps each kind of fact to the category or op of the SDK's events.
CRUMB_CATEGORIES = {
    "ui.blur": "ui.blur",
    "ui.focus": "ui.focus",
    "console": "console",
    "hydration_error": "replay.hydrate-error",
    "mutations": "replay.mutations",
    "multi_click": "ui.multiClick",
    "navigation": "navigation",
    "sentry.feedback": "sentry.feedback",
    "ui.click": "ui.click",
    "ui.input": "ui.input",
    "ui.keyDown": "ui.keyDown",
}
OWN_CATEGORIES = {"auth", "my.cat"}
SPANS = {
    "memory": "memory",
    "navigation.span": "navigation",
    "resource.fetch": "resource.fetch",
    "resource.iframe": "resource.iframe",
    "resource.link": "resource.link",
    "resource.other": "resource.other",
    "resource.video": "resource.video",
    "resource.img": "resource.img",
    "resource.script": "resource.script",
    "resource.xhr": "resource.xhr",
}


def facts_of(recorded: Recording) -> list[dict[str, Any]]:
    """Returns the analytics rows of the whole session, with decoded attributes."""
    rows = [row for segment in recorded.segments for row in segment.bigquery]
    decoded = [json.loads(row.json) | {"timestamp": fact_seconds(row)} for row in rows]
    return [row | {"attributes": json.loads(row["attributes"])} for row in decoded]


def click_actions(recorded: Recording) -> list[Action]:
    """Returns the actions for which the SDK sends a click breadcrumb."""
    left: list[Action] = []
    for action in recorded.actions:
        again = any(a.what == action.what and action.start_ms - a.stop_ms < MERGED_MS for a in left)
        if action.what in CLICKING and not again:
            left.append(action)
    return left


def rows_during(action: Action, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows whose timestamp is between the start and the end of the action."""
    return [row for row in rows if action.start_ms <= row["timestamp"] * 1000 < action.stop_ms]


@each_recording
def test_a_session_of_an_sdk_is_stored_to_the_byte(recorded: Recording):
    """Every segment parses, and its blob equals the bytes that the SDK compressed."""
    for number, (segment, body) in enumerate(zip(recorded.segments, recorded.bodies, strict=True)):
        (blob,) = segment.blobs

        assert blob.name == f"90/42/{recorded.facts['replayId']}/{number}"
        assert bytes(blob.content) == body


@each_recording
def test_only_the_deliberately_malformed_breadcrumb_causes_a_warning(recorded: Recording):
    """The only warning is about the navigation whose data is a string, which page v11-extra adds on purpose."""
    odd = [crumb for crumb in recorded.payloads("breadcrumb") if not isinstance(crumb.get("data", {}), dict)]
    warnings = [warning for segment in recorded.segments for warning in segment.warnings]

    assert warnings == ["event_malformed"] * len(odd)
    assert len(odd) == (recorded.name == "v11-extra")


@each_recording
def test_every_event_of_a_session_is_counted(recorded: Recording):
    """The sum of `rrweb_event_count` equals the number of events sent."""
    counts = [
        fact["attributes"]["count"] for fact in facts_of(recorded) if fact["event_type"] == "rrweb_event_count"
    ]

    assert counts == [len(json.loads(inflated(body))) for body in recorded.bodies]


@each_recording
def test_every_event_of_a_known_kind_becomes_a_fact(recorded: Recording):
    """For each kind, the number of facts equals the number of events of that kind that the SDK sent."""
    found = Counter(fact["event_type"] for fact in facts_of(recorded))
    crumbs = Counter(
        crumb["category"] for crumb in recorded.payloads("breadcrumb") if isinstance(crumb.get("data", {}), dict)
    )
    spans = Counter(
        "navigation" if span["op"].startswith("navigation.") else span["op"]
        for span in recorded.payloads("performanceSpan")
    )
    vitals = Counter(
        f"web-vital.{span['description']}"
        for span in recorded.payloads("performanceSpan")
        if span["op"] in ("web-vital", "paint", "largest-contentful-paint")
        and span["description"] != "first-paint"
    )
    own = {name: count for name, count in crumbs.items() if name in OWN_CATEGORIES}
    own_facts = [
        fact["attributes"]["category"] for fact in facts_of(recorded) if fact["event_type"] == "breadcrumb"
    ]

    assert {kind: found[kind] for kind in CRUMB_CATEGORIES} == {
        kind: crumbs[name] for kind, name in CRUMB_CATEGORIES.items()
    }
    assert {kind: found[kind] for kind in SPANS} == {kind: spans[name] for kind, name in SPANS.items()}
    assert {kind: count for kind, count in found.items() if kind.startswith("web-vital.")} == vitals
    assert Counter(own_facts) == own


@each_recording
def test_the_first_contentful_paint_has_the_value_that_a_browser_measures(recorded: Recording):
    """The first contentful paint equals the browser's own value, in milliseconds since the page began to load."""
    values = [
        fact["attributes"]["value"]
        for fact in facts_of(recorded)
        if fact["event_type"] == "web-vital.first-contentful-paint"
    ]
    spans = recorded.payloads("performanceSpan")
    loads = [span["startTimestamp"] for span in spans if span["op"] == "navigation.navigate"]
    paints = [span["startTimestamp"] for span in spans if span["description"] == "first-contentful-paint"]

    assert values == [
        pytest.approx(1000 * (paint - load), abs=0.01) for load, paint in zip(loads, paints, strict=True)
    ]


@each_recording
def test_click_rows_have_the_environment(recorded: Recording):
    """Each click row has the same environment as the session's row."""
    for segment in recorded.segments:
        assert {row.get("environment") for row in clicks(segment)} <= {session(segment)["environment"]}


@each_recording
def test_each_click_in_the_page_is_a_click_at_its_time(recorded: Recording):
    """Each click on the page becomes exactly one click fact, whose time is within that click's time range."""
    rows = [fact for fact in facts_of(recorded) if fact["event_type"] == "ui.click"]
    done = click_actions(recorded)

    assert [len(rows_during(action, rows)) for action in done] == [1] * len(done)
    assert len(rows) == len(done)


@each_recording
def test_a_session_lasts_as_long_as_its_page(recorded: Recording):
    """All rows of a session have the same start time and SDK version, and the last row's timestamp is between the
    visitor's last action and the end of the visit.
    """
    rows = [session(segment) for segment in recorded.segments]

    (began,) = {row["replay_start_timestamp"] for row in rows}
    assert {row["sdk_version"] for row in rows} == {SDK_VERSIONS[recorded.name.split("-")[0]]}
    assert 0 <= began - recorded.facts["start"] // 1000 <= 1
    assert recorded.facts["actions"][-1]["t"] // 1000 <= rows[-1]["timestamp"] <= recorded.facts["end"] // 1000


@each_shop
def test_dead_and_rage_clicks_are_distinguished_from_others(recorded: Recording):
    """Clicks on a button that has no effect are dead clicks, and seven quick clicks are a rage click.

    A click that is followed by a change to the page is not a dead click.
    """
    rows = [row for segment in recorded.segments for row in clicks(segment)]
    dead = {row["click_id"] for row in rows if row["click_is_dead"]}
    rage = {row["click_id"] for row in rows if row["click_is_rage"]}

    assert (dead, rage) == ({"dead", "rage"}, {"rage"})
    for kind, what in (("ui.deadClick", "click dead 2"), ("ui.rageClick", "rage x7"), ("rage_click", "rage x7")):
        (found,) = [fact for fact in facts_of(recorded) if fact["event_type"] == kind]
        (done,) = [action for action in recorded.actions if action.what == what]
        assert rows_during(done, [found]) == [found]
    assert sum(sum(metric(segment, "replay.rage_click_detected")) for segment in recorded.segments) == 1


@each_shop
def test_the_requests_of_the_page_have_method_status_and_size(recorded: Recording):
    """The requests made by `doFetch` and `doXhr` in shop.html become facts with their method, status and size.

    SDK 7 does not report a refused request.
    """
    rows = [fact for fact in facts_of(recorded) if fact["event_type"] in ("resource.fetch", "resource.xhr")]
    found = [
        (row["event_type"].split(".")[1], sent["method"], sent["status_code"], sent["request_size"])
        for row in rows
        for sent in [row["attributes"]]
    ]
    expected = [
        ("fetch", "GET", 200, None),
        (
            "fetch",
            "POST",
            201,
            len(json.dumps({"item": "boots", "n": 2, "emoji": "x"}, separators=(",", ":"))) + 3,
        ),
        ("fetch", "GET", 404, None),
        ("fetch", "PUT", 503, 1000),
        ("fetch", "GET", 0, None),
        ("xhr", "POST", 201, len("hello xhr ✓".encode())),
    ]
    if recorded.name.startswith("v7"):
        expected.remove(("fetch", "GET", 0, None))

    assert sorted(found, key=str) == sorted(expected, key=str)
