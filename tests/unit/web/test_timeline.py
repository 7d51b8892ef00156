"""What happened in a replay, told from its own events: every kind of them, and nothing that stops the rest."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.testing import messages
from ingest.web.timeline import MARKS_MAX, Timeline, read
from tests.kit.recordings import RECORDINGS, Recording

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def of(*events: Any, segment_id: int = 0) -> Timeline:
    return read([(segment_id, json.dumps(events).encode())])


@pytest.mark.parametrize("recorded", RECORDINGS, ids=lambda recorded: recorded.name)
def test_a_real_sessions_timeline_is_whole(recorded: Recording) -> None:
    """In order of time, nothing malformed; it can be drawn from its first snapshot on."""
    timeline = read([(0, json.dumps(recorded.events).encode())])

    times = [mark.at_ms for mark in timeline.marks]
    assert times == sorted(times)
    assert timeline.malformed == 0
    assert timeline.snapshots
    assert timeline.start_ms <= timeline.snapshots[0] <= timeline.end_ms
    assert not timeline.truncated


@pytest.mark.parametrize(
    ("event", "kind", "level"),
    [
        (messages.viewport_event(), "page", ""),
        (messages.click_event(), "click", ""),
        (messages.dead_click_event(), "dead_click", "warn"),
        (messages.rage_click_event(), "rage_click", "bad"),
        (messages.multi_click_event(), "multi_click", ""),
        (messages.tap_event(), "tap", ""),
        (messages.hydration_error_event(), "hydration_error", "bad"),
        (messages.mutations_event(), "mutations", "warn"),
        (messages.console_event(), "console", "bad"),
        (messages.fetch_event(), "network", ""),
        (messages.asset_event(), "asset", ""),
        (messages.vital_event(), "vital", ""),
        (messages.options_event(), "options", ""),
        (messages.video_event(), "video", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind_of_event_is_a_mark(event: Any, kind: str, level: str) -> None:
    (mark,) = of(event, segment_id=3).marks

    assert (mark.kind, mark.level, mark.segment_id) == (kind, level, 3)


def test_a_click_and_its_later_report_are_one_mark() -> None:
    """The identity of the row: the same second and node."""
    (mark,) = of(messages.click_event(), messages.dead_click_event()).marks

    assert (mark.kind, mark.times) == ("dead_click", 1)


def test_memory_is_a_line_and_not_a_mark() -> None:
    timeline = of(messages.memory_event(), messages.memory_event(nested=False))

    assert len(timeline.memory) == 2
    assert timeline.marks == []


def test_one_unreadable_segment_is_named_and_the_others_are_read() -> None:
    whole = json.dumps([messages.click_event()]).encode()

    timeline = read([(0, whole), (1, b"{"), (2, b"\xff"), (3, whole)])

    assert [mark.segment_id for mark in timeline.marks] == [0]
    assert [mark.times for mark in timeline.marks] == [2]
    assert set(timeline.unreadable) == {1, 2}


def test_a_flood_of_marks_is_cut_and_says_so() -> None:
    events = [messages.console_event(str(number)) for number in range(MARKS_MAX + 5)]

    timeline = of(*events)

    assert len(timeline.marks) == MARKS_MAX
    assert timeline.truncated
    assert timeline.counts() == Counter(console=MARKS_MAX)


@given(st.lists(JSON, max_size=6))
def test_any_json_is_read(values: list[Any]) -> None:
    """A wrong shape costs its event alone, and is counted or skipped."""
    timeline = of(*values, messages.console_event("still here"))

    assert [mark.title for mark in timeline.marks if mark.kind == "console"][-1:] == ["still here"]


@given(st.sampled_from(["breadcrumb", "performanceSpan", "options", "video"]), JSON)
def test_any_payload_of_a_known_event_is_read(tag: str, payload: Any) -> None:
    timeline = of(messages.custom_event(tag, payload))

    assert timeline.malformed <= 1
