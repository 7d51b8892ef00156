"""With `bigquery_write=storage`, the parser encodes facts as protobuf, and they are staged unchanged."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ingest.core.model import Batch, CutReason, Message, OffsetRange, Segment, TopicPartition
from ingest.core.parse import ParseRules, parse, rows_of_recording
from ingest.core.parse.rows import Identity
from ingest.local.load.produce import PROFILES, values
from ingest.operate.inspect import describe
from ingest.reader.configuration import rules_of
from ingest.reader.encoding import Encoder, items_of
from ingest.settings import Settings
from ingest.testing import messages as make
from tasks.proto_rows import FACT_COLUMNS
from tasks.wire import EncodedRows, Row, SinkName, decode_items

SOURCE = TopicPartition("source", 0)
JSON = ParseRules(sample_segment_rate=1.0, sample_event_rate=1.0)
PROTO = replace(JSON, bigquery_write="storage")
SEGMENTS = 60
MESSAGES = [
    value
    for value in values(PROFILES["small"], SEGMENTS, seed=7)
    if isinstance(parse(Message(SOURCE, 1, 0, value), JSON), Segment)
]
ENCODER = Encoder((SinkName.BIGQUERY,), 8, "reader")


def segment(rules: ParseRules, value: bytes, offset: int = 5) -> Segment:
    """Returns the segment of a message."""
    outcome = parse(Message(SOURCE, 1, offset, value), rules)
    assert isinstance(outcome, Segment)
    return outcome


def batch(*segments: Segment) -> Batch:
    return Batch(SOURCE, 1, OffsetRange(0, 1000), segments, (), 1, CutReason.COUNT)


def contents(rows: Any) -> list[tuple[str, str, int, dict[str, Any]]]:
    """Returns the rows, with decoded columns."""
    return [(row.table, row.id, row.offset, json.loads(row.json)) for row in rows]


def test_both_forms_have_the_same_facts() -> None:
    """Both forms have the same tables, identities, offsets and columns, and segments differ only in their size."""
    for offset, value in enumerate(MESSAGES):
        as_json, as_proto = segment(JSON, value, offset), segment(PROTO, value, offset)

        assert not as_proto.bigquery
        assert contents(as_proto.facts) == contents(as_json.bigquery)
        assert as_proto.facts_count == as_json.facts_count == len(as_json.bigquery)
        for same in ("blobs", "clickhouse", "metrics", "warnings"):
            assert getattr(as_proto, same) == getattr(as_json, same)


@pytest.mark.parametrize(
    "events",
    [
        [make.breadcrumb("x", {"m": '"\\ \u2028 \U0001f600' * 2000})],
        [make.breadcrumb("k" * 300, {})] * 3,
        [make.hydration_error_event()] * 5000,
        [],
    ],
)
def test_long_and_numerous_facts_are_the_same_in_both_forms(events: list[Any]) -> None:
    value = make.recording(events)

    assert contents(segment(PROTO, value).facts) == contents(segment(JSON, value).bigquery)


def test_rows_above_the_limit_are_left_out() -> None:
    """As with JSON rows, facts that would exceed `rows_bytes_max` are left out, with a warning."""
    few = segment(replace(PROTO, rows_bytes_max=20_000), make.recording([make.hydration_error_event()] * 1000))

    assert "rows_over_limit" in few.warnings
    assert 10 < few.facts_count < 200


def test_a_batch_is_staged_as_one_task_with_the_rows_as_they_are() -> None:
    """A batch is staged as one task. The worker gets the bytes that the reader encoded; they contain the same rows
    as the batch's JSON form.
    """
    segments = [segment(PROTO, value, offset) for offset, value in enumerate(MESSAGES)]
    encoded = ENCODER.encode(batch(*segments))
    ((name, payload),) = encoded.payloads.items()
    (entry,) = encoded.manifest.tasks

    items = decode_items(SinkName.BIGQUERY, payload)

    assert name == entry.name == "rows/bigquery/0"
    assert isinstance(items, EncodedRows)
    assert items.staged.rows == b"".join(each.proto_facts for each in segments)
    assert items.staged.columns == FACT_COLUMNS
    assert entry.items == len(items) == sum(each.facts_count for each in segments)
    as_json = [row for offset, value in enumerate(MESSAGES) for row in segment(JSON, value, offset).bigquery]
    assert contents(items) == contents(as_json)
    assert contents(items_of(batch(*segments), SinkName.BIGQUERY)) == contents(as_json)


def test_both_forms_in_one_batch_are_two_tasks() -> None:
    """A batch that contains facts in both forms (JSON and encoded) is staged as two tasks, whatever the settings
    of the parser processes are.
    """
    payloads = ENCODER.encode(batch(segment(JSON, MESSAGES[0]), segment(PROTO, MESSAGES[1]))).payloads

    kinds = [type(decode_items(SinkName.BIGQUERY, payload)) for payload in payloads.values()]

    assert list(payloads) == ["rows/bigquery/0", "rows/bigquery/1"]
    assert kinds == [list, EncodedRows]


def test_the_setting_chooses_the_form() -> None:
    """The reader stages facts as protobuf if `bigquery_write` is `storage`. Commands that show or rebuild rows
    always use JSON.
    """
    settings = Settings(bigquery_write="storage")
    rules = rules_of(settings)
    shown, usual = (describe(MESSAGES[0], each)["bigquery"] for each in (rules, rules_of(Settings())))
    rebuilt = rows_of_recording(b"[]", Identity(1, 2, "a" * 32, 0, 30, None, 0, 0, 0), None, rules)

    assert segment(rules, MESSAGES[0]).proto_facts
    assert shown == usual
    assert [type(row) for row in rebuilt.bigquery] == [Row]
