"""Tests how clicks and taps become rows: which are dead or rage clicks, what is truncated, and what is dropped."""

from __future__ import annotations

from hashlib import md5
from typing import Any
from uuid import UUID

import pytest

from ingest.core.parse import ParseRules
from ingest.testing.messages import (
    RECEIVED,
    REPLAY_ID,
    breadcrumb,
    click_event,
    dead_click_event,
    multi_click_event,
    node,
    rage_click_event,
    recording,
    slow_click_event,
    tap_event,
)
from tests.kit.parsing import ALL, NO_SAMPLING, clicks, events_parsed, facts, kinds, metric, parsed, taps


def flags(*events: Any) -> list[tuple[int, int]]:
    """Returns (is_dead, is_rage) for each click row."""
    return [(click["click_is_dead"], click["click_is_rage"]) for click in clicks(events_parsed(events))]


def test_a_click_a_dead_click_and_a_rage_click():
    """A click, a dead click and a rage click have the flags (0, 0), (1, 0) and (1, 1), each with a row and a
    fact.
    """
    events = [click_event(1), dead_click_event(2), rage_click_event(3)]

    assert flags(*events) == [(0, 0), (1, 0), (1, 1)]
    assert kinds(events_parsed(events, NO_SAMPLING)) == ["ui.click", "ui.deadClick", "ui.rageClick"]
    assert metric(events_parsed(events), "replay.rage_click_detected") == [1]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (dead_click_event(tag="a"), (1, 0)),
        (dead_click_event(tag="input"), (1, 0)),
        (dead_click_event(tag="div"), (0, 0)),
        (dead_click_event(tag="A"), (0, 0)),
        (dead_click_event(tag=None), (0, 0)),
        (dead_click_event(tag=["a"]), (0, 0)),
        (dead_click_event(timeAfterClickMs=6999), (0, 0)),
        (dead_click_event(timeAfterClickMs=7000.5), (1, 0)),
        (dead_click_event(endReason="mutation"), (0, 0)),
        (dead_click_event(endReason=None), (0, 0)),
        (dead_click_event(clickCount=4), (1, 0)),
        (dead_click_event(clickCount=5), (1, 1)),
        (rage_click_event(tag="div"), (0, 0)),
        (rage_click_event(timeAfterClickMs=100), (0, 0)),
        (slow_click_event(clickCount=9), (0, 0)),
    ],
)
def test_dead_is_seven_seconds_without_a_reaction_and_rage_is_five_clicks(event: Any, expected: tuple[int, int]):
    """A click is dead or rage only on links, buttons and inputs; every other slow click is an ordinary click."""
    assert flags(event) == [expected]


def test_a_slow_click_keeps_its_category():
    """A slow click becomes a click row, and its fact distinguishes it from an ordinary click."""
    assert kinds(events_parsed([slow_click_event()])) == ["ui.slowClickDetected"]


def test_lower_case_counts_are_read_too():
    """Click counts with lower-case keys, which some SDKs and Relay versions send, are read."""
    lower = {"timeafterclickms": 7000, "clickcount": 5, "node": node(), "endReason": "timeout"}

    assert flags(breadcrumb("ui.slowClickDetected", lower)) == [(1, 1)]


def test_a_click_and_its_later_dead_click_are_one_row():
    """A click and its dead click share the event_hash md5(replay, whole seconds, node), so only one row
    remains.
    """
    plain, dead = clicks(events_parsed([click_event(7), dead_click_event(7)]))

    assert plain["event_hash"] == dead["event_hash"]
    assert plain["event_hash"] == str(UUID(md5(f"{REPLAY_ID}{RECEIVED}7".encode()).hexdigest()))
    assert plain["timestamp"] == RECEIVED


@pytest.mark.parametrize("node_id", [-1, -(2**31), -(2**70)])
def test_a_negative_node_drops_the_click_with_a_warning(node_id: int):
    """A click with a negative node is dropped with a warning, because the node column is unsigned.

    The next click is unaffected.
    """
    segment = events_parsed([click_event(node_id), click_event(8)])

    assert [click["click_node_id"] for click in clicks(segment)] == [8]
    assert kinds(segment) == ["negative-click-node-id", "ui.click"]
    assert segment.warnings == ("negative_click_node_id",)


@pytest.mark.parametrize("node_id", [0, 2**32 - 1])
def test_a_node_may_be_any_number_that_its_column_holds(node_id: int):
    """Any node id that fits in an unsigned 32-bit integer, the type of the column, is accepted."""
    assert [click["click_node_id"] for click in clicks(events_parsed([click_event(node_id)]))] == [node_id]


@pytest.mark.parametrize(
    ("attributes", "testid"),
    [
        ({}, ""),
        ({"data-test-id": "c"}, "c"),
        ({"data-test-id": "c", "data-testid": "b"}, "b"),
        ({"data-test-id": "c", "data-testid": "b", "testId": "a"}, "a"),
        ({"testId": "", "data-testid": "b"}, "b"),
        ({"testId": 7}, ""),
        ({"testId": 7, "data-testid": "b"}, ""),
        ({"testId": None, "data-test-id": "c"}, "c"),
    ],
)
def test_a_test_id_has_three_names_in_this_order(attributes: dict[str, Any], testid: str):
    """The test id is the first of testId, data-testid and data-test-id; a value that is not a string counts as
    empty.
    """
    assert clicks(events_parsed([click_event(attributes=attributes)]))[0]["click_testid"] == testid


@pytest.mark.parametrize(
    ("written", "classes"),
    [
        ("", []),
        ("one", ["one"]),
        ("  one   two ", ["one", "two"]),
        ("one\ttwo", ["one\ttwo"]),
        (" ".join(f"c{number}" for number in range(12)), [f"c{number}" for number in range(10)]),
        (None, []),
        (["one"], []),
    ],
)
def test_classes_are_split_on_spaces_and_ten_are_kept(written: Any, classes: list[str]):
    """The class attribute is split on spaces, and the first ten names are kept; empty names do not count."""
    assert clicks(events_parsed([click_event(attributes={"class": written})]))[0]["click_class"] == classes


def test_texts_of_a_click_are_truncated():
    """Each string is truncated to the width of its column: 64, 32 or 1024 characters."""
    long = "é" * 3000
    names = ("id", "alt", "title", "aria-label", "role", "data-testid", "data-sentry-component")
    clicked = {"id": 7, "tagName": long, "textContent": long, "attributes": dict.fromkeys(names, long)}

    (click,) = clicks(
        events_parsed([breadcrumb("ui.click", {"node": clicked, "url": long}, message=long, timestamp=RECEIVED)])
    )

    short = ("id", "alt", "title", "aria_label", "testid", "component_name")
    assert {len(click[f"click_{name}"]) for name in short} == {64}
    assert {len(click[f"click_{name}"]) for name in ("tag", "role")} == {32}
    assert len(click["click_text"]) == 1024
    assert len(click["url"]) <= 2048


def test_a_click_with_malformed_attributes_is_still_a_click():
    """A click row is written without its malformed attributes, because each attribute is validated on its own."""
    odd = {"id": 5, "alt": None, "title": {}, "role": ["button"], "aria-label": True}

    (click,) = clicks(events_parsed([click_event(attributes=odd)]))

    assert {click[f"click_{name}"] for name in ("id", "alt", "title", "role", "aria_label")} == {""}


@pytest.mark.parametrize("attributes", [None, "text", [1], ...])
def test_a_node_without_attributes_is_still_clicked(attributes: Any):
    """A click on a node whose attributes are missing or invalid, as some SDKs send them, still becomes a row."""
    clicked = {"id": 7, "tagName": "a", "attributes": attributes}
    clicked = {name: value for name, value in clicked.items() if value is not ...}

    assert len(clicks(events_parsed([breadcrumb("ui.click", {"node": clicked})]))) == 1


def test_twenty_clicks_and_twenty_taps_are_kept_per_segment():
    """By default the first twenty clicks and the first twenty taps of a segment are kept, in order."""
    events = [event for number in range(25) for event in (click_event(number), tap_event(f"view {number}"))]

    segment = events_parsed(events)
    few = parsed(recording(events), ParseRules(clicks_per_segment_max=2, taps_per_segment_max=0))

    assert [click["click_node_id"] for click in clicks(segment)] == list(range(20))
    assert [tap["tap_view_id"] for tap in taps(segment)] == [f"view {number}" for number in range(20)]
    assert (len(clicks(few)), len(taps(few))) == (2, 0)


def test_a_tap_has_message_class_and_id():
    """A tap's row contains the message, the view's class and the view's id; the row's identity consists of the
    replay's id, the time in whole seconds, and the view's id.
    """
    (tap,) = taps(events_parsed([tap_event("add", "Button")]))

    assert (tap["tap_message"], tap["tap_view_class"], tap["tap_view_id"]) == ("add_item", "Button", "add")
    assert tap["event_hash"] == str(UUID(md5(f"{REPLAY_ID}{RECEIVED}add".encode()).hexdigest()))


def test_multi_clicks_and_rage_clicks_are_sampled():
    """`multi_click` and `rage_click` facts are sampled.

    A rage click's row and `ui.rageClick` fact are always written.
    """
    events = [multi_click_event(count=3), rage_click_event()]

    by_kind = dict(facts(events_parsed(events, ALL)))
    assert by_kind["multi_click"]["click_count"] == 3
    assert by_kind["rage_click"]["click_count"] == 5
    assert kinds(events_parsed(events, NO_SAMPLING)) == ["ui.rageClick"]
    assert flags(*events) == [(1, 1)]
