"""Tests the filters of Flower's page of parked batches."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.flower.selection import Selection, duration_text, parked_rows, selection

NOW = 1_000_000.0


def about(number: int = 0, **changed: Any) -> dict[str, Any]:
    """Returns the entry of a parked batch in the form that a reader writes."""
    entry = {
        "batch_id": f"recordings-0-{number}-{number + 1}",
        "batch": f"recordings-0-{number}-{number + 1}:abc",
        "reader": "reader-1",
        "topic": "recordings",
        "partition": 0,
        "start": number,
        "stop": number + 1,
        "stage": "rows",
        "attempt": 3,
        "messages": 1,
        "size_bytes": 2000,
        "error": "rows/clickhouse/0: timed out; rows/bigquery/1: 503",
        "parked_at": NOW - 30,
        "retry_at": NOW + 12,
    }
    return {**entry, **changed}


def test_the_sinks_of_a_batch_are_those_that_its_error_names():
    """The sinks of a batch are the sinks that its error names; names of unknown sinks are ignored."""
    row, other = parked_rows([about(), about(1, error="rows/kitchen/0: wet; missed 3 deadlines")], NOW)

    assert row.sinks == ("clickhouse", "bigquery")
    assert other.sinks == ()


def test_a_batch_is_as_old_as_its_first_parking():
    """The age of a batch is measured from when it was first parked, even if a failed retry parked it again.

    Entries from older releases do not record when the batch was first parked.
    """
    again, older = parked_rows([about(first_parked_at=NOW - 4000), about(1)], NOW)

    assert (again.parked_seconds, older.parked_seconds) == (4000, 30)
    assert [Selection(age_seconds_min=3600).matches(row) for row in (again, older)] == [True, False]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Selection(), [0, 1]),
        (Selection(sink="clickhouse"), [0]),
        (Selection(sink="gcs"), []),
        (Selection(text="TIMED"), [0]),
        (Selection(text="-1-2"), [1]),
        (Selection(text="reader-1"), [0, 1]),
        (Selection(sink="datadog", text="timed"), []),
    ],
)
def test_filters_match_sink_and_text(chosen: Selection, expected: list[int]):
    """A batch is selected if all filters match.

    The text is searched for, case-insensitively, in the error, the batch id and the reader's name.
    """
    rows = parked_rows([about(0), about(1, error="rows/datadog/0: refused")], NOW)

    assert [number for number, row in enumerate(rows) if chosen.matches(row)] == expected


def test_secrets_and_control_characters_of_an_error_are_not_shown():
    """Secrets and control characters are removed from an error, because it is text from a server."""
    (row,) = parked_rows([about(error="http://me:hunter2@host/\x1b[31m refused")], NOW)

    assert "hunter2" not in row.error
    assert "\x1b" not in row.error


def test_an_invalid_entry_is_skipped():
    """An invalid entry is skipped, and all other entries are still shown."""
    assert [row.start for row in parked_rows([about(partition="?"), {}, about(2)], NOW)] == [2]


@pytest.mark.parametrize(
    ("sink", "text", "age"), [("kitchen", "", ""), ("", "x" * 201, ""), ("", "", "7"), ("", "", "-1")]
)
def test_values_that_the_form_does_not_offer_are_refused(sink: str, text: str, age: str):
    """Values that the form does not offer are refused."""
    with pytest.raises(ValueError, match=r"sink|text|age"):
        selection(sink, text, age)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 m"), (200, "3 m 20 s"), (7500, "2 h 5 m"), (273_600, "3 d 4 h"), (-5, "0 s")],
)
def test_a_length_of_time_has_two_units(seconds: float, text: str):
    """A duration is shown in two units, without parts that are zero."""
    assert duration_text(seconds) == text
