"""Formats numbers and times, and parses ages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
UNIX_MS_MAX = 253_402_300_800_000  # start of the year 10,000
AGE = re.compile(r"([0-9]{1,9})([smhd])")


def size_text(size_bytes: float) -> str:
    """Formats a size: `17 B`, `17.3 MiB`."""
    size, units = float(size_bytes), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    for larger in units:
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def seconds_text(seconds: float | None) -> str:
    """Formats a short duration: `250 ms`, `1.5 s`, empty for None."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def clock_text(seconds: float) -> str:
    """Formats a duration as a media player does: `1:02:03`, `4:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def utc_text(seconds: float | None) -> str:
    """Formats Unix seconds as UTC: `2026-05-01 12:00:03`, empty for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def times_as_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same values, with times in Unix milliseconds (names ending in `_ms`) converted to ISO 8601,
    UTC."""
    return {
        name.removesuffix("_ms") if name.endswith("_ms") else name: (
            datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            if name.endswith("_ms") and isinstance(value, int) and 0 <= value < UNIX_MS_MAX
            else value
        )
        for name, value in values.items()
    }


def count_text(count: int, noun: str, nouns: str = "") -> str:
    """Formats a count and its noun: `1 broker`, `3 brokers`. `nouns`: the plural, if it is irregular."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def runs_text(numbers: Iterable[int]) -> str:
    """Formats numbers as ranges: `3, 5-7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def age_seconds(text: str) -> int:
    """Converts an age such as `90s`, `15m`, `6h` or `7d` to seconds. Raises ValueError."""
    found = AGE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not like 90s, 15m, 6h or 7d")
    return int(found[1]) * UNIT_SECONDS[found[2]]


def parse_time(text: str, now: float) -> float:
    """Converts `text` to Unix seconds: an age such as `2h`, subtracted from `now`, or an ISO 8601 time, in UTC
    unless it states an offset.

    Raises ValueError.
    """
    if AGE.fullmatch(text):
        return now - age_seconds(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither an age like 2h nor a time like 2026-05-01T12:00") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
