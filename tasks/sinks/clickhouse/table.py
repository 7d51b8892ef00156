"""Checks whether a table accepts the rows of this release: its engine, its columns, and rows that are known to be
good.

The good rows are never stored. They span two partitions, but the insert allows only one
(`max_partitions_per_insert_block`). The server parses them, checks the table's constraints, and refuses the block
as a whole before it writes anything, so the expected response is TOO_MANY_PARTS. Only a table that has the
partition key created by `migrate` is tested in this way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.sinks.clickhouse.answers import exception_of, failure_of
from tasks.sinks.http.answers import Answer
from tasks.sinks.outcome import Blame, Failure

PROBE_UUID = "00000000-0000-4000-8000-000000000000"
RETENTION_DAYS = 30
TWO_WEEKS_SECONDS = 14 * 86_400
PARTITIONS_SETTING = "max_partitions_per_insert_block"
TOO_MANY_PARTS = "252"

_Column = tuple[str, Any]
"""ClickHouse's type, and a possible value in our rows."""

_TEXT: _Column = ("String", "check")
_SHORT: _Column = ("LowCardinality(String)", "check")
_PLACE: dict[str, _Column] = {
    "project_id": ("UInt64", 1),
    "replay_id": ("UUID", PROBE_UUID),
    "segment_id": ("UInt64", 0),
    "received": ("DateTime", 0),
    "retention_days": ("UInt16", RETENTION_DAYS),
    "object": ("String", "check"),
}

COLUMNS: dict[str, dict[str, _Column]] = {
    "replays": {
        "replay_id": ("UUID", PROBE_UUID),
        "replay_type": _SHORT,
        "error_sample_rate": ("Nullable(Float64)", 0.5),
        "session_sample_rate": ("Nullable(Float64)", 0.5),
        "event_hash": ("UUID", PROBE_UUID),
        "segment_id": ("Nullable(UInt16)", 0),
        "timestamp": ("DateTime", 0),
        "replay_start_timestamp": ("Nullable(DateTime)", 0),
        "trace_ids": ("Array(UUID)", [PROBE_UUID]),
        "error_ids": ("Array(UUID)", [PROBE_UUID]),
        **dict.fromkeys(("title", "url"), _TEXT),
        "urls": ("Array(String)", ["check"]),
        "segment_names": ("Array(String)", ["check"]),
        "org_id": ("UInt64", 1),
        "project_id": ("UInt64", 1),
        **dict.fromkeys(("platform", "environment"), _SHORT),
        **dict.fromkeys(("release", "dist"), _TEXT),
        "ip_address_v4": ("Nullable(IPv4)", "127.0.0.1"),
        "ip_address_v6": ("Nullable(IPv6)", "::1"),
        **dict.fromkeys(("user", "user_id", "user_name", "user_email"), _TEXT),
        **dict.fromkeys(
            (
                *("user_geo_city", "user_geo_country_code", "user_geo_region", "user_geo_subdivision"),
                *("os_name", "os_version", "browser_name", "browser_version"),
                *("device_name", "device_brand", "device_family", "device_model"),
                *("sdk_name", "sdk_version", "ota_updates_channel", "ota_updates_runtime_version"),
            ),
            _SHORT,
        ),
        "ota_updates_update_id": _TEXT,
        "tags.key": ("Array(String)", ["check"]),
        "tags.value": ("Array(String)", ["check"]),
        "click_node_id": ("UInt32", 0),
        "click_tag": _SHORT,
        "click_id": _TEXT,
        "click_class": ("Array(String)", ["check"]),
        "click_text": _TEXT,
        "click_role": _SHORT,
        **dict.fromkeys(
            ("click_alt", "click_testid", "click_aria_label", "click_title", "click_component_name"), _TEXT
        ),
        "click_is_dead": ("UInt8", 0),
        "click_is_rage": ("UInt8", 0),
        **dict.fromkeys(("tap_message", "tap_view_class", "tap_view_id"), _TEXT),
        "retention_days": ("UInt16", RETENTION_DAYS),
        "partition": ("UInt16", 0),
        "offset": ("UInt64", 0),
    },
    "replay_segments": {
        "org_id": ("UInt64", 1),
        **_PLACE,
        "size_compressed": ("UInt64", 1),
        "size_uncompressed": ("UInt64", 1),
        "size_video": ("UInt64", 0),
        "partition": ("UInt16", 0),
        "offset": ("UInt64", 0),
    },
    "replay_outcomes": {
        "org_id": ("UInt64", 1),
        "project_id": ("UInt64", 1),
        "replay_id": ("UUID", PROBE_UUID),
        "key_id": ("Nullable(UInt64)", 0),
        "category": _SHORT,
        "outcome": _SHORT,
        "quantity": ("UInt32", 1),
        "timestamp": ("DateTime", 0),
    },
    "replay_objects": {
        **_PLACE,
        "name": _TEXT,
        "start_bytes": ("UInt64", 0),
        "length_bytes": ("UInt64", 1),
    },
}
NON_STORING_ENGINES = ("Null", "Memory", "Buffer")
# Views fill these tables. No rows are inserted into these tables directly, but an insert fails if one of the
# tables is missing.
VIEW_TABLES = ("replay_summaries", "replay_places")
TIME_COLUMN = {"replays": "timestamp", "replay_segments": "received", "replay_objects": "received"}

_WRAPPED = re.compile(r"(?:LowCardinality|Nullable)\((.*)\)\Z")
_NUMBER = re.compile(r"(U?Int|Float)(\d+)\Z")
_DATETIME = re.compile(r"DateTime(?:64\(\d+(?:, ?'[^']*')?\)|\('[^']*'\))?\Z")


@dataclass(frozen=True, slots=True)
class TableFacts:
    """The server's description of one table. `columns` maps the names of columns to types and default kinds."""

    engine: str
    partition_key: str
    columns: Mapping[str, tuple[str, str]]


def facts_query(tables: Iterable[str]) -> str:
    """Returns the query for the facts about these tables; `facts_of` parses its result."""
    names = ", ".join(f"'{table}'" for table in tables)
    return (
        "SELECT t.name, t.engine, t.partition_key, c.columns FROM system.tables AS t LEFT JOIN "
        "(SELECT table, groupArray((name, type, default_kind)) AS columns FROM system.columns "
        "WHERE database = currentDatabase() GROUP BY table) AS c ON c.table = t.name "
        f"WHERE t.database = currentDatabase() AND t.name IN ({names}) FORMAT JSONCompact"
    )


def facts_of(answer: Answer) -> dict[str, TableFacts] | None:
    """Returns the facts by table; a missing table is left out. Returns None if this is not a response to
    `facts_query`."""
    result = answer.json_object() if answer.status == 200 else None
    try:
        return {
            table: TableFacts(engine, key, {name: (kind, default) for name, kind, default in columns})
            for table, engine, key, columns in (result or {})["data"]
        }
    except (LookupError, TypeError, ValueError):
        return None


def mismatches(table: str, facts: TableFacts | None) -> Iterator[str]:
    """Yields one phrase for each difference between a table and the rows of this release."""
    if facts is None:
        yield f"{table} is missing; run `replays-ingest migrate`"
        return
    if facts.engine in NON_STORING_ENGINES:
        yield f"{table} has the engine {facts.engine}, which does not store inserted rows"
    if table in VIEW_TABLES:
        return
    missing = [name for name in COLUMNS[table] if name not in facts.columns]
    if missing:
        yield f"it lacks {', '.join(f'{table}.{name}' for name in missing)}; run `replays-ingest migrate`"
    for name, (wanted, _) in COLUMNS[table].items():
        if name in missing:
            continue
        kind, default = facts.columns[name]
        if default in ("MATERIALIZED", "ALIAS"):
            yield f"column {table}.{name} is {default}, and this release writes it"
        elif not can_hold(kind, wanted):
            yield f"column {table}.{name} is {kind}, and this release writes {wanted}: alter it back"


def can_hold(kind: str, wanted: str) -> bool:
    """Returns whether a column of type `kind` holds every value of type `wanted`."""
    nullable = "Nullable(" in wanted and "Nullable(" not in kind
    if kind == wanted or nullable:
        return kind == wanted
    have, need = _plain(kind), _plain(wanted)
    if have.startswith("Array(") and need.startswith("Array("):
        return can_hold(have[6:-1], need[6:-1])
    have_number, need_number = _NUMBER.match(have), _NUMBER.match(need)
    if have_number and need_number:
        wider = int(have_number[2]) >= int(need_number[2]) + (have_number[1] == "Int" and need_number[1] == "UInt")
        return wider and (have_number[1] == need_number[1] or (have_number[1], need_number[1]) == ("Int", "UInt"))
    if need == "DateTime":
        return _DATETIME.match(have) is not None
    return have == need


def is_dry_run_safe(table: str, facts: TableFacts) -> bool:
    """Returns whether an insert of `dry_run_rows` is certain to be refused because it spans two partitions."""
    column = TIME_COLUMN.get(table)
    key = facts.partition_key.replace(" ", "")
    return facts.engine.endswith("MergeTree") and column is not None and f"toMonday({column})" in key


def dry_run_rows(table: str, now: float) -> bytes:
    """Returns two valid rows from different weeks, in JSONEachRow format."""
    lines = []
    for seconds in (int(now), int(now) - TWO_WEEKS_SECONDS):
        row = {name: value for name, (_, value) in COLUMNS[table].items()}
        lines.append(json.dumps(row | {TIME_COLUMN[table]: seconds}))
    return "\n".join(lines).encode()


def failure_of_dry_run(answer: Answer) -> Failure | None:
    """Returns the problem revealed by the response to an insert of `dry_run_rows`. Returns None if the table
    accepts these rows.
    """
    exception = exception_of(answer)
    if (
        exception is not None
        and f"Code: {TOO_MANY_PARTS}" in exception.message
        and (PARTITIONS_SETTING in exception.message)
    ):
        return None
    failure = exception or failure_of(answer, rows=2)
    if failure is None:
        return None  # a server without that limit stored them
    text = f"it refuses rows that are known to be good: {failure.message}"
    return Failure(Blame.TABLE if failure.blame.blames_items else failure.blame, text)


def _plain(kind: str) -> str:
    found = _WRAPPED.match(kind)
    return _plain(found[1]) if found else kind
