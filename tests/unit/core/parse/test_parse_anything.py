"""Any bytes produce an outcome, never an exception, and the same bytes always produce the same outcome."""

from __future__ import annotations

import json
import zlib
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.core.model import Segment
from ingest.core.parse import REASONS, WARNINGS, parse
from ingest.operate.inspect import describe, render
from ingest.testing.messages import (
    MALFORMED_EVENTS,
    asset_event,
    breadcrumb,
    canvas_event,
    click_event,
    console_event,
    dead_click_event,
    envelope,
    fetch_event,
    frame,
    hydration_error_event,
    memory_event,
    multi_click_event,
    mutations_event,
    options_event,
    recording,
    replay_event,
    tap_event,
    video_event,
    viewport_event,
    vital_event,
)
from tests.kit.parsing import ALL, clicks, fact_seconds, message, parsed

FEW_EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**30, 1e308, "", "7", "\U0001f600", "\x00"])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
GOOD = (
    asset_event(),
    breadcrumb("ui.scroll", {"x": 1}),
    breadcrumb("sentry.feedback", {"feedbackId": "f"}),
    canvas_event(),
    click_event(attributes={"class": "a b", "data-testid": "t"}),
    console_event(),
    dead_click_event(),
    fetch_event({"method": "GET", "request": {"size": 1}, "response": {"size": 2}}),
    hydration_error_event(),
    memory_event(),
    multi_click_event(),
    mutations_event(),
    options_event(),
    tap_event(),
    video_event(),
    viewport_event(),
    vital_event(),
)


@st.composite
def changed_document(draw: st.DrawFn, whole: Any) -> Any:
    """Returns a document with one value replaced, removed or duplicated."""
    if not isinstance(whole, dict | list) or not whole or draw(st.integers(0, 4)) == 0:
        return draw(values)
    if isinstance(whole, list):
        place = draw(st.integers(0, len(whole) - 1))
        return [draw(changed_document(item)) if at == place else item for at, item in enumerate(whole)]
    name = draw(st.sampled_from(sorted(whole)))
    if draw(st.integers(0, 5)) == 0:
        return {key: value for key, value in whole.items() if key != name}
    return {**whole, name: draw(changed_document(whole[name]))}


def assert_well_formed(value: bytes) -> None:
    """Asserts that the outcome is the same on every parse, its rows are JSON objects that fit their columns, and
    it can be displayed.
    """
    outcome = parse(message(value), ALL)
    assert outcome == parse(message(value), ALL)
    description = describe(value, ALL)
    json.dumps(description, allow_nan=False)
    render(description)
    if not isinstance(outcome, Segment):
        assert outcome.reason in REASONS
        assert outcome.value == value
        return
    assert set(outcome.warnings) <= set(WARNINGS)
    for row in (*outcome.clickhouse, *outcome.bigquery):
        fields = msgspec.json.decode(row.json)
        is_fact = row.table == "replay_events"
        seconds = fact_seconds(row) if is_fact else fields.get("timestamp", fields.get("received"))
        assert 0 <= seconds < 2**32
        assert 0 <= fields.get("click_node_id", 0) < 2**32
        if is_fact:
            msgspec.json.decode(fields["attributes"], type=dict[str, Any])
    ids = [row.id for row in outcome.bigquery]
    assert len(ids) == len(set(ids))


@given(st.binary(max_size=300))
@FEW_EXAMPLES
def test_any_bytes_as_a_message(value: bytes):
    """A message of arbitrary bytes, usually not valid msgpack, produces an outcome."""
    assert_well_formed(value)


@given(st.binary(max_size=300))
@FEW_EXAMPLES
def test_any_bytes_as_a_payload(payload: bytes):
    """A payload of arbitrary bytes, usually without a header, produces an outcome."""
    assert_well_formed(envelope(payload))


@given(st.binary(max_size=100), st.binary(max_size=200))
@FEW_EXAMPLES
def test_any_bytes_as_header_and_body(header: bytes, body: bytes):
    """Arbitrary headers with a valid body, and arbitrary bodies with a valid header, produce an outcome."""
    assert_well_formed(envelope(frame(b"[]", headers=header)))
    assert_well_formed(envelope(frame(body)))
    assert_well_formed(envelope(frame(b"[" + body)))
    assert_well_formed(envelope(frame(zlib.compress(body))))
    assert_well_formed(envelope(frame(zlib.compress(b"[" + body + b"]"))))


@given(st.data())
@FEW_EXAMPLES
def test_a_good_message_with_one_byte_changed_or_cut_off(data: st.DataObject):
    value = bytearray(recording([*GOOD, {"type": 3}], replay_video=data.draw(st.sampled_from([None, b"v" * 30]))))
    place = data.draw(st.integers(0, len(value) - 1))
    value[place] = data.draw(st.integers(0, 255))

    assert_well_formed(bytes(value))
    assert_well_formed(bytes(value[:place]))


@given(st.dictionaries(st.sampled_from(("replay_id", "received", "payload", "version", "x")), values, max_size=3))
@FEW_EXAMPLES
def test_any_fields_in_the_envelope(fields: dict[str, Any]):
    """An envelope with fields of any type that msgpack supports produces an outcome."""
    whole = {name: value for name, value in fields.items() if not _too_large(value)}
    payload = whole.pop("payload", frame(b"[]"))
    assert_well_formed(envelope(payload, **whole))


def _too_large(value: Any) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, msgspec.MsgspecError):
        return True
    return False


@given(changed_document(json.loads(replay_event())))
@FEW_EXAMPLES
def test_any_shape_of_the_replay_event(document: Any):
    assert_well_formed(recording(replay_event=json.dumps(document).encode()))


@given(st.sampled_from(GOOD).flatmap(changed_document))
@FEW_EXAMPLES
def test_an_event_of_any_shape_affects_no_other_event(event: Any):
    """The clicks before and after a malformed event are read, even if the malformed event is itself a click."""
    text = json.dumps([click_event(100), event, {"type": 3}, click_event(101)]).encode()

    assert_well_formed(recording(text))
    found = [click["click_node_id"] for click in clicks(parsed(recording(text)))]
    assert (found[0], found[-1]) == (100, 101)
    assert len(found) <= 3


@given(st.lists(st.sampled_from(MALFORMED_EVENTS) | st.sampled_from(GOOD) | values, max_size=12))
@FEW_EXAMPLES
def test_any_mix_of_events(events: list[Any]):
    """A list that mixes valid events, malformed events, and values that are not events produces an outcome."""
    assert_well_formed(recording(json.dumps(events).encode()))
