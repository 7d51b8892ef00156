"""Tests how a response, a table or a bucket is evaluated, without a server: descriptions, types, columns,
rules.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import Message

from tasks.kafka.producing import unconfirmed_delivery
from tasks.sinks.bigquery import table as bigquery
from tasks.sinks.clickhouse import table as clickhouse
from tasks.sinks.clickhouse.answers import exception_of
from tasks.sinks.gcs.bucket import RETENTION_DAYS, expires, missing_rules, restrictions
from tasks.sinks.http.answers import Answer, describe_answer
from tasks.sinks.http.limits import BODY_BYTES_MIN, BodyLimit
from tasks.sinks.outcome import BLAME_ACTIONS, BLAME_MEANINGS, Action, Blame


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        (b"", "text/html", "an empty body"),
        (
            b"<html><head><title>\n Sign\tin </title><p>x",
            "text/html; charset=utf-8",
            "a web page (41 bytes): Sign in",
        ),
        (
            b"<html><style>p{}</style><p>No way <b>through</b>",
            "text/html",
            "a web page (48 bytes): No way through",
        ),
        (b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code></Error>", "", "markup (61 bytes): NoSuchBucket"),
        (b'{"a": "\x1b[31m"}', "application/json", 'JSON (14 bytes): {"a": " [31m"}'),
        (b"upstream\r\nconnect error", "text/plain", "the text (23 bytes): upstream connect error"),
        (b"\x00\x01\x02", "", "the text of 3 bytes"),
        (b"\xff\xfe" * 3, "", "the text (6 bytes): ������"),
    ],
)
def test_a_response_is_described_without_its_markup(body: bytes, content_type: str, shown: str) -> None:
    """A response is described without markup, as short printable text for logs, Flower and terminals."""
    assert describe_answer(Answer(200, body, content_type=content_type)) == shown


def test_a_long_response_is_described_in_one_short_line() -> None:
    """A long response is described in one line, and this line shows that the response was not read completely."""
    text = describe_answer(Answer(200, b"x" * 50_000, whole=False))

    assert text.startswith("the text (more than 50000 bytes): xxx")
    assert len(text) < 250
    assert text.isprintable()


def test_every_culprit_has_a_meaning_and_an_action() -> None:
    assert set(BLAME_ACTIONS) == set(BLAME_MEANINGS) == set(Blame)
    assert {blame.action for blame in Blame} == set(Action)
    assert {blame for blame in Blame if blame.blames_items} == {Blame.ROW, Blame.BATCH, Blame.SIZE}


@pytest.mark.parametrize(
    ("body", "code", "blame"),
    [
        (b"Code: 241. DB::Exception: Memory limit", "", Blame.SERVER),
        (b"Code: 60, e.displayText() = DB::Exception: Table x does not exist", "", Blame.TABLE),
        (b"something before\nCode: 27. DB::ParsingException: Cannot parse input", "", None),
        (b"something before\nCode: 27. DB::Exception: Cannot parse input: (at row 1)", "", Blame.BATCH),
        (b"", "497", Blame.CREDENTIALS),
        (b"", "99999", Blame.SERVER),
        (b"", "not a number", None),
        (b"Code: nothing", "", None),
        (b"Ok.\n", "", None),
    ],
)
def test_an_exception_is_found_by_its_header_or_in_the_body(body: bytes, code: str, blame: Blame | None) -> None:
    """An exception is found in the header or the body, even with status 200, which ClickHouse may send before the
    error.
    """
    headers = {"x-clickhouse-exception-code": code} if code else {}

    found = exception_of(Answer(200, body, headers=headers))

    assert (found and found.blame) == blame
    assert found is None or found.unproven


@pytest.mark.parametrize(
    ("kind", "wanted", "fits"),
    [
        ("UInt64", "UInt16", True),
        ("UInt8", "UInt16", False),
        ("Int64", "UInt32", True),
        ("Int32", "UInt32", False),
        ("UInt32", "Int32", False),
        ("Float64", "UInt16", False),
        ("Float32", "Float64", False),
        ("String", "LowCardinality(String)", True),
        ("LowCardinality(Nullable(String))", "String", True),
        ("FixedString(8)", "String", False),
        ("Enum8('a' = 1)", "LowCardinality(String)", False),
        ("Nullable(UInt16)", "Nullable(UInt16)", True),
        ("Nullable(UInt64)", "Nullable(UInt16)", True),
        ("UInt16", "Nullable(UInt16)", False),
        ("Array(UUID)", "Array(UUID)", True),
        ("Array(LowCardinality(String))", "Array(String)", True),
        ("Array(UInt8)", "Array(String)", False),
        ("DateTime64(3)", "DateTime", True),
        ("DateTime64(3, 'UTC')", "DateTime", True),
        ("DateTime('UTC')", "DateTime", True),
        ("Date", "DateTime", False),
        ("String", "UUID", False),
    ],
)
def test_a_column_fits_when_it_holds_every_value_of_ours(kind: str, wanted: str, fits: bool) -> None:
    """A column of a wider type fits, and a column of a narrower type does not, because ClickHouse silently
    truncates large numbers.
    """
    assert clickhouse.can_hold(kind, wanted) is fits


def test_valid_rows_span_two_partitions_and_have_every_column() -> None:
    """The probe rows span two partitions, so an insert that is limited to one partition refuses them after all
    other checks.
    """
    for name in clickhouse.TIME_COLUMN:
        first, second = map(json.loads, clickhouse.dry_run_rows(name, now=1_800_000_000).splitlines())
        assert first.keys() == second.keys() == clickhouse.COLUMNS[name].keys()
        column = clickhouse.TIME_COLUMN[name]
        assert first[column] - second[column] == 14 * 86_400


@pytest.mark.parametrize(
    ("engine", "key", "tried"),
    [
        ("ReplacingMergeTree", "(retention_days, toMonday(timestamp))", True),
        ("SharedReplacingMergeTree", "(retention_days,toMonday(timestamp))", True),
        ("ReplacingMergeTree", "retention_days", False),
        ("ReplacingMergeTree", "", False),
        ("Distributed", "(retention_days, toMonday(timestamp))", False),
    ],
)
def test_only_a_table_that_must_refuse_valid_rows_is_probed(engine: str, key: str, tried: bool) -> None:
    """A table is probed only if it is certain to refuse the probe rows; any other table would store them."""
    facts = clickhouse.TableFacts(engine, key, {})

    assert clickhouse.is_dry_run_safe("replays", facts) is tried


def resource(**changed: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the table as `migrate` creates it, with columns replaced, added, or omitted if None."""
    fields = {name: dict(field) for name, field in bigquery.columns_of("replay_events").items()}
    for name, field in changed.items():
        if field is None:
            del fields[name]
        else:
            fields[name] = {"name": name, **field}
    return {"kind": "bigquery#table", "type": "TABLE", "schema": {"fields": list(fields.values())}}


@pytest.mark.parametrize(
    ("changed", "problems"),
    [
        ({}, 0),
        ({"theirs": {"type": "STRING"}}, 0),
        ({"theirs": {"type": "STRING", "mode": "REQUIRED"}}, 1),
        ({"theirs": {"type": "STRING", "mode": "REPEATED"}}, 0),
        ({"org_id": {"type": "INT64", "mode": "REQUIRED"}}, 0),
        ({"org_id": {"type": "NUMERIC"}}, 0),
        ({"org_id": {"type": "STRING"}}, 1),
        ({"attributes": {"type": "STRING"}}, 0),
        ({"attributes": {"type": "RECORD"}}, 1),
        ({"attributes": {"type": "JSON", "mode": "REQUIRED"}}, 1),
        ({"timestamp": {"type": "DATETIME"}}, 1),
        ({"segment_id": {"type": "INTEGER", "mode": "REPEATED"}}, 1),
        ({"segment_id": None}, 1),
    ],
)
def test_a_bigquery_table_fits_or_the_difference_is_named(
    changed: dict[str, dict[str, Any] | None], problems: int
) -> None:
    found = list(bigquery.mismatches("replay_events", resource(**changed)))

    assert len(found) == problems, found


def test_the_good_row_of_bigquery_has_every_column() -> None:
    row = bigquery.good_row("replay_events", 1.0)

    assert row.keys() == bigquery.columns_of("replay_events").keys()
    assert row["timestamp"] == "1970-01-01T00:00:01+00:00"


def test_lifecycle_rules_are_compared_by_their_effect() -> None:
    def rule(age: int, *prefixes: str, action: str = "Delete") -> dict[str, Any]:
        condition: dict[str, Any] = {"age": age} | ({"matchesPrefix": list(prefixes)} if prefixes else {})
        return {"action": {"type": action}, "condition": condition}

    assert expires([rule(30, "30/")], 30)
    assert expires([rule(10)], 30)
    assert not expires([rule(60, "30/")], 30)
    assert not expires([rule(30, "60/")], 30)
    assert not expires([rule(30, "30/", action="SetStorageClass")], 30)
    assert [line[:35] for line in missing_rules([rule(30)], "segment")] == [
        "a lifecycle rule deletes 60/ after ",
        "a lifecycle rule deletes 90/ after ",
    ]
    assert next(missing_rules([rule(30)], "packed"))[:7] == "no rule"
    assert "60/, 90/" in next(missing_rules([rule(30, "30/")], "segment"))


def test_lifecycle_rules_that_differ_from_ours_are_named() -> None:
    """A lifecycle rule for only some of the objects does not count, so their prefix is reported. A rule that
    deletes objects too early is reported with its prefix and age.
    """

    def rule(prefix: str, **condition: Any) -> dict[str, Any]:
        return {"action": {"type": "Delete"}, "condition": {"matchesPrefix": [prefix], **condition}}

    ours = [rule(f"{days}/", **{name: days}) for days in RETENTION_DAYS for name in ("age", "daysSinceCustomTime")]
    noncurrent = rule("30/", age=1, numNewerVersions=1)

    assert list(missing_rules([*ours, noncurrent], "packed")) == []
    assert not expires([rule("30/", age=30, isLive=False)], 30)
    assert not expires([rule("30/", age=30, matchesStorageClass=["NEARLINE"])], 30)
    assert not expires([rule("30/11/", age=30)], 30)
    assert expires([rule("3", age=30)], 30)
    assert "for 90/:" in "".join(missing_rules(ours[:-1], "packed"))
    assert list(missing_rules([*ours, rule("60/11/", age=7)], "segment")) == [
        "a lifecycle rule deletes 60/ after 7 days: recordings are lost; correct the rule"
    ]


def test_a_plain_bucket_hinders_nothing() -> None:
    assert list(restrictions({"kind": "storage#bucket", "name": "b"})) == []
    assert (
        len(list(restrictions({"objectRetention": {"mode": "Enabled"}, "billing": {"requesterPays": True}}))) == 2
    )


def test_a_body_limit_halves_the_refused_size_and_stays_positive() -> None:
    limit = BodyLimit(9_000_000)

    limit.refused(8_000_000)
    assert limit.bytes_max == 4_000_000
    limit.refused(6_000_000)  # This refusal is reported by a thread that started before the limit was lowered.
    assert limit.bytes_max == 3_000_000
    for _ in range(40):
        limit.refused(limit.bytes_max)
    assert limit.bytes_max == BODY_BYTES_MIN


def test_a_delivery_report_proves_a_record_by_its_offset() -> None:
    """A delivery report confirms a record only if it has an offset, which a record that was never sent does not
    have.
    """
    assert unconfirmed_delivery(Message()) is not None
