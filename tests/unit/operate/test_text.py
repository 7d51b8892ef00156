"""Tests how numbers and times are shown to operators, and how times that operators type are parsed."""

from __future__ import annotations

import pytest

from ingest.operate.text import (
    age_seconds,
    clock_text,
    count_text,
    parse_time,
    runs_text,
    seconds_text,
    size_text,
    times_as_text,
    utc_text,
)


def test_ages_and_times_are_accepted() -> None:
    """Ages are counted back from now; a time without a time zone is interpreted as UTC."""
    assert parse_time("2h", now=10_000.0) == 2_800.0
    assert parse_time("1970-01-01T00:01", now=0.0) == 60.0
    assert parse_time("1970-01-01T01:00+01:00", now=5.0) == 0.0
    assert [age_seconds(text) for text in ("90s", "15m", "6h", "7d")] == [90, 900, 21_600, 604_800]


@pytest.mark.parametrize("text", ["yesterday", "", "2", "2w", "-2h", "2 h", "٢h"])
def test_other_text_is_refused_with_examples(text: str) -> None:
    """Text that is neither an age nor a time is refused, and the error message gives valid examples."""
    with pytest.raises(ValueError, match="like"):
        parse_time(text, now=0.0)
    with pytest.raises(ValueError, match="90s"):
        age_seconds(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (17.3 * 2**20, "17.3 MiB"), (5000 * 2**40, "5000.0 TiB")],
)
def test_sizes_have_binary_units(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


def test_times_and_numbers_read_as_people_write_them() -> None:
    assert [seconds_text(each) for each in (None, 0.25, 1.5)] == ["", "250 ms", "1.5 s"]
    assert [clock_text(each) for each in (245, 3723)] == ["4:05", "1:02:03"]
    assert [utc_text(each) for each in (None, 0)] == ["", "1970-01-01 00:00:00"]
    assert [runs_text(each) for each in ((), (7, 3, 5, 6))] == ["", "3, 5-7"]


def test_milliseconds_are_shown_as_times() -> None:
    """Only fields whose names end with `_ms`, and only valid times, are shown as times."""
    shown = times_as_text({"first_seen_ms": 1_500, "timestamp_ms": -1, "offset": 7, "note_ms": "none"})

    assert shown == {"first_seen": "1970-01-01T00:00:01.500Z", "timestamp": -1, "offset": 7, "note": "none"}


def test_one_item_is_counted_in_the_singular() -> None:
    assert [count_text(number, "broker") for number in (0, 1, 2000)] == ["0 brokers", "1 broker", "2,000 brokers"]
