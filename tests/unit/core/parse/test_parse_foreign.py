"""The parser reads third-party recordings: real snapshots, real spans, and the public example.

These recordings may not be redistributed: set REPLAYS_FIXTURES to their directory, or place them in
shared/fixtures beside the checkout.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from ingest.testing.messages import recording
from tests.kit.parsing import clicks, events_parsed, facts, kinds, metric, parsed, rejected, session
from tests.kit.paths import foreign_fixtures

FIXTURES = foreign_fixtures()

pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no recorded material in {FIXTURES}")


def recordings() -> list[Path]:
    """Returns the files with rrweb events."""
    patterns = ("rrweb/**/*.json", "relay/rrweb*.json", "sentry-javascript/bit-*")
    return sorted(path for pattern in patterns for path in FIXTURES.glob(pattern))


def events_of(path: Path) -> list[Any]:
    """Returns the events of a file; a single event counts as an array of one."""
    events = json.loads(path.read_bytes())
    return events if isinstance(events, list) else [events]


@pytest.mark.parametrize("path", recordings(), ids=lambda path: path.name)
def test_a_real_recording_is_stored_and_counted(path: Path):
    """The blob of a real recording decodes to the same JSON, every event is counted, and none is malformed."""
    events = events_of(path)

    segment = events_parsed(events)

    assert json.loads(zlib.decompress(segment.blobs[0].content)) == events
    assert json.loads(json.loads(segment.bigquery[0].json)["attributes"]) == {"count": len(events)}
    assert segment.warnings == ()
    assert kinds(segment).count("viewport") == sum(event["type"] == 4 for event in events)


def test_a_real_request_has_its_sizes():
    """A real fetch request recorded by SDK 7.46 or later becomes a fact with the size of its body."""
    segment = events_parsed(events_of(FIXTURES / "relay/rrweb-request.json"))

    ((kind, fields),) = facts(segment)
    assert kind == "resource.fetch"
    assert (fields["method"], fields["status_code"], fields["request_size"]) == ("POST", 200, 2949)
    assert fields["duration"] == pytest.approx(0.164)
    assert metric(segment, "replays.usecases.ingest.request_body_size") == [2949]


def test_a_real_navigation_and_a_real_link_are_facts():
    assert kinds(events_parsed(events_of(FIXTURES / "relay/rrweb-performance-navigation.json"))) == [
        "navigation.span"
    ]
    assert kinds(events_parsed(events_of(FIXTURES / "relay/rrweb-performance-resource.json"))) == ["resource.link"]


@pytest.mark.parametrize("name", ["replay.json", "replay_missing_user.json"])
def test_a_real_replay_event_becomes_a_session_row(name: str):
    """A real replay event becomes a session row. Its tags are omitted because they are not pairs, and its ids
    because they are not UUIDs.
    """
    text = (FIXTURES / "relay" / name).read_bytes()

    segment = parsed(recording(replay_event=text))

    row = session(segment)
    assert row["environment"] == "production"
    assert row.get("user", "") == ("123" if name == "replay.json" else "")
    assert segment.warnings == ()


def test_the_sdks_own_examples_become_facts():
    """The SDK's breadcrumb and span templates become facts after their placeholders are filled in."""
    template = json.loads((FIXTURES / "sentry-javascript/template-replay-events.json").read_bytes())
    events = []
    for payload in template.values():
        if isinstance(payload, dict) and ("category" in payload or "op" in payload):
            tag = "breadcrumb" if "category" in payload else "performanceSpan"
            events.append({"type": 5, "timestamp": 1, "data": {"tag": tag, "payload": fill_template(payload)}})

    segment = events_parsed(events)

    assert segment.warnings == ()
    assert len(clicks(segment)) >= 1
    expected = {"ui.click", "console", "memory", "resource.fetch", "web-vital.largest-contentful-paint"}
    assert expected <= set(kinds(segment))


def fill_template(template: Any) -> Any:
    """Returns the template with each placeholder replaced by a value of the type that the placeholder names."""
    if isinstance(template, list):
        return [fill_template(item) for item in template]
    if not isinstance(template, dict):
        return template
    if "$any" in template:
        return {"Number": 3, "String": "text", "Array": [1], "Object": {}, "Boolean": True}[template["$any"]]
    if "$matching" in template:
        return "error"
    if "$containing" in template:
        return fill_template(template["$containing"])
    return {key: fill_template(value) for key, value in template.items()}


def test_a_truncated_real_body_is_stored_without_events():
    """The SDK's own example of an incomplete JSON body is stored without events."""
    text = (FIXTURES / "sentry-javascript/fixJson__1_incompleteJson.txt").read_bytes()

    segment = parsed(recording(text))

    assert zlib.decompress(segment.blobs[0].content) == text
    assert segment.warnings == ("recording_not_json",)
    assert segment.bigquery == ()


def test_the_public_example_message_is_a_reject():
    """The public example, whose payload is the five bytes `hello`, is rejected."""
    example = FIXTURES / "sentry-kafka-schemas/examples/ingest-replay-recordings/1/recording.msgpack"

    assert rejected(example.read_bytes()).reason == "no_header"
