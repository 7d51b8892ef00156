"""Compares every enabled sink and Kafka with the expected contents after a load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from ingest.local.compare.checks import compare_facts, compare_maps, compare_metrics, compare_sets
from ingest.local.compare.facts import read_facts
from ingest.local.compare.letters import read_letters
from ingest.local.compare.metrics import read_metrics
from ingest.local.compare.objects import read_objects
from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.report import Check, Report
from ingest.local.compare.rows import Rows, read_rows
from ingest.local.load.expectation import Expectation
from ingest.settings import Settings

K = TypeVar("K")


def reconcile(
    settings: Settings,
    expected: Expectation,
    *,
    statsd_url: str = "",
    exact_metrics: bool = False,
    extra_is_error: bool = True,
    progress: Callable[[str], None] = lambda name: None,
) -> Report:
    """Checks every enabled sink and Kafka. Raises ReconcileError if a server cannot be read.

    `extra_is_error` states whether data from other loads counts as an error. `exact_metrics` states whether
    repeated metrics count as errors, as they should in a run without a crash. Without `statsd_url`, metrics are
    not checked, because an agent cannot be queried.
    """
    began = time.monotonic()
    checks: list[Check] = []

    def add(*more: Check) -> None:
        checks.extend(more)
        for check in more:
            progress(check.name)

    if "gcs" in settings.sinks:
        objects = read_objects(settings, expected.objects)
        add(
            compare_maps(
                "GCS objects",
                expected.objects,
                objects,
                extra_is_error=extra_is_error,
                note="byte for byte (SHA-256)",
            )
        )
    if "clickhouse" in settings.sinks:
        add(*_row_checks(expected, read_rows(settings), extra_is_error))
    if "bigquery" in settings.sinks:
        add(compare_facts(expected.facts, read_facts(settings), extra_is_error=extra_is_error))
    if "datadog" in settings.sinks and statsd_url:
        add(compare_metrics(expected.metrics, read_metrics(statsd_url), exact=exact_metrics))
    letters, repeats = read_letters(settings)
    note = "original bytes and reason, each once" + (f"; {repeats} repeated records" if repeats else "")
    add(compare_maps("dead letters", expected.letters, letters, extra_is_error=extra_is_error, note=note))
    committed = CommittedOffsets(settings)
    try:
        found = committed.of(sorted(expected.ends))
    finally:
        committed.close()
    add(compare_maps("committed offsets", expected.ends, found, note="log end on every partition"))
    return Report(tuple(checks), time.monotonic() - began)


def _row_checks(expected: Expectation, rows: Rows, extra_is_error: bool) -> list[Check]:
    """Checks of ClickHouse."""
    dead = {name for name, flags in expected.clicks.items() if flags.dead}
    found_dead = {name for name, flags in rows.clicks.items() if flags.dead}

    def sets(name: str, left: Iterable[K], right: Iterable[K], note: str) -> Check:
        return compare_sets(name, left, right, extra_is_error=extra_is_error, note=note)

    return [
        sets("ClickHouse segments", expected.segments, rows.segments, "one row per segment"),
        sets("ClickHouse replay events", expected.segments, rows.replay_events, "one row per segment"),
        compare_maps(
            "ClickHouse clicks",
            expected.clicks,
            rows.clicks,
            extra_is_error=extra_is_error,
            note="event_hash with its dead and rage flags",
        ),
        sets("ClickHouse dead clicks", dead, found_dead, "event_hash"),
        sets("ClickHouse taps", expected.taps, rows.taps, "event_hash"),
        compare_maps(
            "billing outcomes",
            expected.outcomes,
            rows.outcomes,
            extra_is_error=extra_is_error,
            note="one per replay",
        ),
        compare_maps("ClickHouse doubles", {}, rows.duplicated, note="identities that FINAL returns twice"),
    ]
