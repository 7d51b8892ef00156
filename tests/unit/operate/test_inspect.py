"""Tests the output of `replays-ingest inspect` for a message."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from ingest.core.parse import ParseRules
from ingest.operate.inspect import describe, render
from ingest.testing.messages import (
    REJECTED,
    REPLAY_ID,
    click_event,
    envelope,
    fetch_event,
    recording,
    snapshot_event,
    video_recording,
    viewport_event,
)
from tests.kit.parsing import ALL


def page(value: bytes, rules: ParseRules = ALL) -> str:
    """Returns the output for a terminal of 120 columns."""
    console = Console(file=io.StringIO(), width=120)
    console.print(render(describe(value, rules)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_segment_is_described_down_to_its_rows():
    """For a segment, the page shows the envelope, recording, object, rows by table, facts with their attributes,
    and metrics.
    """
    fetched = fetch_event({"request": {"size": 10}, "response": {"size": 20}})
    value = recording([snapshot_event(), viewport_event(), click_event(), fetched, {"type": 99}, None], 3)

    found = describe(value, ALL)

    assert found["reject"] is None
    assert found["envelope"]["replay_id"] == REPLAY_ID
    assert found["recording"]["segment_id"] == 3
    assert found["recording"]["events"] == {
        "FullSnapshot": 1,
        "Meta": 1,
        "Custom": 2,
        "unknown": 1,
        "malformed": 1,
    }
    assert found["object"]["name"] == f"30/11/{REPLAY_ID}/3"
    assert {name: len(rows) for name, rows in found["clickhouse"].items()} == {"replay_segments": 1, "replays": 2}
    assert [fact["event_type"] for fact in found["bigquery"]] == [
        "rrweb_event_count",
        "viewport",
        "ui.click",
        "resource.fetch",
    ]
    assert found["bigquery"][3]["attributes"]["request_size"] == 10
    assert [warning["warning"] for warning in found["warnings"]] == ["event_malformed"]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(("reason", "value"), [case[1:] for case in REJECTED], ids=[case[0] for case in REJECTED])
def test_a_reject_shows_its_reason_and_the_readable_part(reason: str, value: bytes):
    """For a reject, the page shows the reason, its meaning, and the envelope if it could be read."""
    found = describe(value, ALL)

    assert found["reject"]["reason"] == reason
    assert ("envelope" in found) == (reason not in ("not_msgpack", "schema"))
    assert f"Rejected: {reason}" in page(value)


def test_a_page_shows_rows_and_facts():
    """The page shows rows and facts in a readable form."""
    shown = page(video_recording(b"video", [click_event()]))

    assert "A segment" in shown
    assert "click_node_id=7" in shown
    assert "ui.click" in shown
    assert "replay_video" in shown
    assert "replays.recording_consumer.replay_video_count" in shown


def test_nothing_in_a_message_reaches_the_terminal_as_markup_or_control():
    """Markup and control characters in a message are not interpreted, because recordings are untrusted text."""
    evil = click_event(attributes={"title": "\x1b[2J[bold red]boo[/]", "id": "\u202e\x07"})

    shown = page(recording([evil]))

    assert "[bold red]boo[/]" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_many_rows_are_truncated_on_a_page_but_not_in_json():
    """A long list of rows is truncated on the page, which is for people, but not in the JSON output, which is for
    programs.
    """
    value = recording([viewport_event()] * 500)

    assert len(describe(value, ALL)["bigquery"]) == 501
    assert "more; --json shows all" in page(value)
    assert len(page(value).splitlines()) < 300


def test_a_message_over_the_limit_is_not_parsed():
    """For a message over the size limit, only the reason for its rejection is shown."""
    found = describe(envelope(b"hello"), ParseRules(message_bytes_max=10))

    assert found["reject"]["reason"] == "message_too_large"
    assert "envelope" not in found
