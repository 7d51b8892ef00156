"""Rows fit their columns, and their identities are unique and the same on every delivery."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.core.model import Message, Segment
from ingest.core.parse import ParseRules, parse
from ingest.core.parse.rows import hashed, moment
from ingest.testing.messages import (
    LEFT_OUT,
    RECEIVED,
    REPLAY_ID,
    canvas_event,
    click_event,
    fetch_event,
    hydration_error_event,
    multi_click_event,
    rage_click_event,
    recording,
    replay_event,
    tap_event,
    video_recording,
    viewport_event,
)
from tests.kit.parsing import (
    ALL,
    NO_SAMPLING,
    OFFSET,
    SOURCE,
    events_parsed,
    fact_seconds,
    message,
    metric,
    parsed,
    session,
    table,
)

UUID_TEXT = "51553901-8c9b-4260-a6f9-99572f1661ee"
ALL_EVENTS = [click_event(), tap_event(), fetch_event(), canvas_event(), multi_click_event(), viewport_event()]


def test_a_second_delivery_produces_the_same_rows():
    """A message that is delivered again produces byte-identical rows.

    At another offset, only the columns with the Kafka position differ.
    """
    value = recording([*ALL_EVENTS, rage_click_event()])

    first, again = parsed(value), parsed(value)
    elsewhere = parse(Message(SOURCE, 9, 1_000_000, value, timestamp_ms=RECEIVED * 1000 + 60_000), ALL)

    assert first == again
    assert isinstance(elsewhere, Segment)
    assert [row.id for row in elsewhere.clickhouse] == [row.id for row in first.clickhouse]
    assert [(row.id, row.json) for row in elsewhere.bigquery] == [(row.id, row.json) for row in first.bigquery]
    assert elsewhere.blobs[0].name == first.blobs[0].name


def test_no_two_rows_of_a_table_share_an_identity():
    """Identities are unique within a segment and across segments, except for a tap that occurs in several
    segments.
    """
    segments = [parsed(recording([*ALL_EVENTS, *ALL_EVENTS[2:]], segment_id=number)) for number in range(3)]

    facts = [row.id for segment in segments for row in segment.bigquery]
    assert len(facts) == len(set(facts))
    sessions = [row.id for segment in segments for row in segment.clickhouse if b"click_tag" not in row.json]
    assert len(sessions) - len(set(sessions)) == 2  # The same tap occurs three times.


def test_an_identity_consists_of_project_replay_segment_event_and_kind():
    """An identity consists of project, replay, segment, event and kind, as documented in docs/rows.md for users
    who look up a fact.
    """
    segment = parsed(recording([{"type": 3}, viewport_event()], segment_id=6))

    assert [row.id for row in segment.bigquery] == [
        f"11-{REPLAY_ID}-6--1-rrweb_event_count",
        f"11-{REPLAY_ID}-6-1-viewport",
    ]
    assert {row.table for row in segment.bigquery} == {"replay_events"}
    assert json.loads(segment.bigquery[1].json) == {
        "row_id": f"{REPLAY_ID}-6-1-viewport",
        "event_type": "viewport",
        "timestamp": "2026-09-21T14:13:20Z",
        "org_id": 1,
        "project_id": 11,
        "replay_id": REPLAY_ID,
        "segment_id": 6,
        "retention_days": 30,
        "attributes": '{"href":"https://shop.example/","width":1280,"height":720}',
    }


@given(st.integers(min_value=0, max_value=2**32 * 1_000_000))
def test_a_moment_is_written_as_python_writes_it(microseconds: int):
    """Every timestamp that a row can contain is written as `datetime.isoformat` writes it, with Z for UTC."""
    exact = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)

    assert moment(microseconds / 1_000_000) == exact.isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize("missing", ["None", "refuse()"])
def test_identities_do_not_need_the_fast_implementation_of_md5(missing: str):
    """Where Python has no `_md5`, or refuses to use it, hashes are those of `hashlib`."""
    program = f"""
import sys, types

def refuse():
    def md5(data, usedforsecurity=True):
        raise ValueError("not in FIPS mode")
    module = types.ModuleType("_md5")
    module.md5 = md5
    return module

sys.modules["_md5"] = {missing}
from ingest.core.parse.rows import hashed
print(hashed("a replay"))
"""

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == hashed("a replay")


def test_every_row_is_one_line_of_json_with_its_offset():
    """Each row is one line of JSON with its Kafka offset; newlines in strings are escaped."""
    event = click_event(attributes={"title": "two\nlines", "class": "a\u2028b"})

    segment = parsed(recording([event, *ALL_EVENTS], replay_event=replay_event(release="one\ntwo")))

    for row in (*segment.clickhouse, *segment.bigquery):
        assert b"\n" not in row.json
        assert isinstance(json.loads(row.json), dict)
        assert row.offset == OFFSET
    assert segment.blobs[0].offset == OFFSET


def test_only_the_first_segment_is_billed():
    """Only the first segment of a replay produces an outcome, which is keyed by the replay."""
    assert table(parsed(recording(segment_id=1)), "replay_outcomes") == []

    (row,) = [row for row in parsed(recording()).clickhouse if row.table == "replay_outcomes"]
    assert row.id == REPLAY_ID
    assert json.loads(row.json) == {
        "org_id": 1,
        "project_id": 11,
        "replay_id": UUID_TEXT,
        "key_id": 7,
        "category": "replay",
        "outcome": "accepted",
        "quantity": 1,
        "timestamp": RECEIVED,
    }


@pytest.mark.parametrize("key_id", [None, LEFT_OUT, -1])
def test_an_outcome_without_a_key_is_written(key_id: Any):
    """The outcome of a message without a key is written with a null key column."""
    assert table(parsed(recording(key_id=key_id)), "replay_outcomes")[0]["key_id"] is None


def test_a_segment_row_locates_its_bytes():
    """The segment row has the location of its bytes, and its stored, inflated and video sizes."""
    (row,) = table(parsed(video_recording(b"video", segment_id=2)), "replay_segments")

    assert (row["object"], row["segment_id"], row["size_video"]) == (f"30/11/{REPLAY_ID}/2", 2, 5)
    assert (row["partition"], row["offset"], row["replay_id"]) == (SOURCE.partition, OFFSET, UUID_TEXT)
    assert row["size_compressed"] > 0 < row["size_uncompressed"]


def test_a_replay_id_in_capitals_is_the_same_replay():
    """A replay id in capitals yields the same object names as a replay id in lower case."""
    assert parsed(recording(replay_id=REPLAY_ID.upper())) == parsed(recording())


# Impossible times


@pytest.mark.parametrize("received", [0, 123123123123, 2**63 - 1, 2**32])
@pytest.mark.parametrize("timestamp_ms", [0, RECEIVED * 1000])
def test_an_impossible_year_stays_within_the_columns(received: int, timestamp_ms: int):
    """A segment with an impossible year is written with Kafka's timestamp instead."""
    segment = parsed(recording(ALL_EVENTS, received=received), timestamp_ms=timestamp_ms)

    rows = [json.loads(row.json) for row in segment.clickhouse]
    times = [row.get("timestamp", row.get("received")) for row in rows]
    times += [fact_seconds(row) for row in segment.bigquery]
    assert all(0 <= time < 2**32 for time in times)
    if timestamp_ms:
        assert all(abs(time - RECEIVED) < 60 for time in times)
    assert segment.received == received


@pytest.mark.parametrize("timestamp", [-1, 0, 1e300, "1", None, RECEIVED * 1000])
def test_an_impossible_session_time_is_replaced_by_the_segments(timestamp: Any):
    """A session time that is not a number, or more than 30 days from the segment's time, is replaced by the
    segment's time.
    """
    assert session(parsed(recording(replay_event=replay_event(timestamp=timestamp))))["timestamp"] == RECEIVED


# Contents of the replay_event


def test_a_session_row_holds_the_fields_of_the_replay_event():
    """The session row has the columns of Snuba's table, filled from the replay event."""
    row = session(parsed(recording()))

    assert row == {
        "event_hash": row["event_hash"],
        "timestamp": RECEIVED,
        "replay_id": UUID_TEXT,
        "segment_id": 0,
        "org_id": 1,
        "project_id": 11,
        "retention_days": 30,
        "partition": SOURCE.partition,
        "offset": OFFSET,
        "replay_type": "session",
        "replay_start_timestamp": RECEIVED - 5,
        "urls": ["https://shop.example/"],
        "error_ids": ["d5ec6b0a-0a8f-4d2b-9f6e-2e0fd3b9c1aa"],
        "platform": "javascript",
        "release": "shop@4.12.0",
        "environment": "production",
        "dist": "42",
        "user": "u-1",
        "user_id": "u-1",
        "user_name": "ada",
        "user_email": "ada@shop.example",
        "ip_address_v4": "192.0.2.7",
        "user_geo_city": "Porto",
        "user_geo_country_code": "PT",
        "user_geo_region": "Portugal",
        "user_geo_subdivision": "Norte",
        "os_name": "Linux",
        "browser_name": "Firefox",
        "browser_version": "143.0",
        "device_name": "Pixel",
        "device_brand": "Google",
        "device_family": "Pixel",
        "device_model": "9",
        "sdk_name": "sentry.javascript.react",
        "sdk_version": "9.40.0",
        "error_sample_rate": 1.0,
        "session_sample_rate": 0.1,
        "tags.key": ["plan"],
        "tags.value": ["gold"],
    }


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        ({"id": "1", "username": "ada", "email": "a@b", "ip_address": "192.0.2.7"}, "1"),
        ({"id": 7, "username": "ada"}, "7"),
        ({"id": None, "username": "ada", "email": "a@b"}, "ada"),
        ({"id": "", "email": "a@b", "ip_address": "192.0.2.7"}, "a@b"),
        ({"ip_address": "192.0.2.7"}, "192.0.2.7"),
        ({"ip_address": "2001:db8::7"}, "2001:db8::7"),
        ({"ip_address": "not an address"}, None),
        ({}, None),
        (None, None),
        ("ada", None),
    ],
)
def test_a_user_is_the_first_of_id_name_email_and_address(user: Any, shown: str | None):
    """The user is the first of id, name, email and address that is set; it is absent if none of them is set."""
    assert session(parsed(recording(replay_event=replay_event(user=user)))).get("user") == shown


@pytest.mark.parametrize(
    ("address", "columns"),
    [
        ("192.0.2.7", ("192.0.2.7", None)),
        ("2001:db8::7", (None, "2001:db8::7")),
        ("::ffff:192.0.2.7", (None, "::ffff:192.0.2.7")),
        ("fe80::1%eth0", (None, None)),
        ("192.0.2.256", (None, None)),
        ("192.0.2.07", (None, None)),
        ("192.0.2.7\n", (None, None)),
        ("{{auto}}", (None, None)),
        (7, (None, None)),
    ],
)
def test_an_address_goes_into_the_column_of_its_version(address: Any, columns: tuple[str | None, str | None]):
    """An IP address that ClickHouse would refuse is left out, because it would force a bisection of the whole
    batch.
    """
    row = session(parsed(recording(replay_event=replay_event(user={"ip_address": address}))))

    assert (row.get("ip_address_v4"), row.get("ip_address_v6")) == columns


WRONG = (None, 7, 1.5, True, "text", [], [1, None], {}, {"a": 1})
FIELDS = tuple(json.loads(replay_event()))


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_a_wrong_type_affects_no_other_field(field: str):
    """If one field has a wrong type, all other fields of the row are unchanged."""
    good = session(parsed(recording()))
    for wrong in WRONG:
        segment = parsed(recording([click_event()], replay_event=replay_event(**{field: wrong})))

        row = session(segment)
        kept = {name for name in good if row.get(name) == good[name]}
        assert len(kept) >= len(good) - 11, (wrong, set(good) - kept)
        assert segment.warnings == ()
        assert len(segment.bigquery) == 2


@pytest.mark.parametrize("outer", ["user", "contexts"])
def test_a_nested_value_of_a_wrong_type_affects_nothing_else(outer: str):
    inside = json.loads(replay_event())[outer]
    for name in inside:
        for wrong in WRONG:
            row = session(parsed(recording(replay_event=replay_event(**{outer: {**inside, name: wrong}}))))
            assert row["release"] == "shop@4.12.0"
            assert row["sdk_name"] == "sentry.javascript.react"


def test_identifiers_that_are_not_uuids_are_left_out():
    """Ids that are not UUIDs are left out of the array columns; UUIDs are accepted with and without dashes."""
    ids = ["1", None, 7, UUID_TEXT, REPLAY_ID.upper(), "g" * 32]

    row = session(parsed(recording(replay_event=replay_event(error_ids=ids, trace_ids=ids))))

    assert row["error_ids"] == row["trace_ids"] == [UUID_TEXT, UUID_TEXT]


def test_lists_and_texts_of_a_session_are_bounded():
    """Lists and strings in a session row are bounded, because a page can send any number of entries."""
    many = [f"https://shop.example/{number}" for number in range(1000)]
    tags = [[f"key {number}", "v" * 10_000] for number in range(1000)]

    row = session(parsed(recording(replay_event=replay_event(urls=many, tags=tags, release="r" * 10_000))))

    assert row["urls"] == many[:100]
    assert len(row["tags.key"]) == len(row["tags.value"]) == 128
    assert {len(value) for value in row["tags.value"]} == {len(row["release"])} == {2048}


def test_tags_that_are_not_pairs_are_left_out():
    """Tags that are not pairs are left out, because the arrays of keys and values must have the same length."""
    tags = [["a", "b"], ["alone"], "text", None, ["a", "b", "c"], [None, 1], ["n", 2]]

    row = session(parsed(recording(replay_event=replay_event(tags=tags))))

    assert list(zip(row["tags.key"], row["tags.value"], strict=True)) == [("a", "b"), ("", "1"), ("n", "2")]


# Sampling


def test_sampling_is_decided_per_segment():
    """The sampled share is correct over many segments, and a segment always gets the same decision."""
    rules = ParseRules(sample_segment_rate=0.2, sample_event_rate=0.0)

    def sampled() -> list[bool]:
        segments = [parsed(recording([canvas_event()], segment_id=number), rules) for number in range(1000)]
        return [len(segment.bigquery) == 2 for segment in segments]

    first = sampled()
    assert 140 < sum(first) < 260
    assert first == sampled()


def test_some_facts_are_never_sampled():
    """Facts of clicks, hydration errors, requests and viewports are never sampled."""
    events = [click_event(), hydration_error_event(), fetch_event(), viewport_event()]

    assert events_parsed(events, ALL).bigquery == events_parsed(events, NO_SAMPLING).bigquery


# Metrics and totals


def test_sizes_of_a_segment_are_measured():
    """Stored and inflated bytes are measured for every segment."""
    segment = parsed(recording([click_event()]))

    assert metric(segment, "replays.usecases.ingest.size_compressed") == [len(segment.blobs[0].content)]
    assert metric(segment, "replays.usecases.ingest.size_uncompressed") == [
        len(json.dumps([click_event()], separators=(",", ":")))
    ]


def test_an_oversized_segment_is_kept_and_counted():
    """A segment with more than 20 MB of JSON, which no SDK should send, is stored and counted as oversized."""
    segment = parsed(recording(b"[" + b" " * 20_000_000 + b"]"))

    assert segment.warnings == ("oversized_segment",)
    assert metric(segment, "replays.consumer.recording.oversized_segment") == [1]


def test_a_segment_states_its_staged_bytes():
    """The staged bytes of a segment exceed the size of its object and rows only by a small overhead per row."""
    segment = parsed(recording(ALL_EVENTS))

    rows = (*segment.clickhouse, *segment.bigquery)
    exact = sum(len(blob.content) for blob in segment.blobs) + sum(len(row.json) for row in rows)
    assert exact < segment.size_bytes < exact + 200 * (len(rows) + len(segment.metrics))


def test_facts_of_a_segment_are_bounded():
    """Only the first 2000 facts of a segment are kept, and a warning is recorded."""
    segment = events_parsed([viewport_event()] * 2100)

    assert len(segment.bigquery) == 2000
    assert segment.warnings == ("events_over_limit",)


def test_identity_depends_on_content_only():
    """The identity of a row depends only on the content, and not on epoch, key or headers."""
    value = recording(ALL_EVENTS)
    here = parse(message(value), ALL)
    there = parse(Message(SOURCE, 2, OFFSET, value, key=b"k", headers=(("a", b"b"),)), ALL)

    assert isinstance(here, Segment)
    assert isinstance(there, Segment)
    assert here == there
