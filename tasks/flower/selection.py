"""The filters on the parked-batches page, and the fields of each batch that the page shows. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.printed import printable, without_secrets
from tasks.wire import SinkName

TEXT_CHARACTERS_MAX = 200
ERROR_CHARACTERS_MAX = 500
AGE_CHOICES = {0: "any time", 60: "1 minute", 600: "10 minutes", 3600: "1 hour", 21_600: "6 hours"}
# An error names its tasks, as in `rows/clickhouse/0: timed out; rows/bigquery/0: ...`.
_TASK = re.compile(r"\b(?:blobs|rows)/([a-z_]{1,30})/\d+:")


@dataclass(frozen=True, slots=True)
class ParkedBatch:
    """One row of the page. `sinks` are the sinks that the error names.

    `parked_seconds`: time since the reader first parked the batch. `retry_seconds`: time until the reader's own
    retry.
    """

    batch_id: str
    reader: str
    topic: str
    partition: int
    start: int
    stop: int
    stage: str
    attempt: int
    messages: int
    size_bytes: int
    error: str
    sinks: tuple[str, ...]
    parked_seconds: float
    retry_seconds: float
    reference: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters; all must match. `text` must occur in the error, batch id or reader name; case is ignored."""

    sink: str = ""
    text: str = ""
    age_seconds_min: int = 0

    def matches(self, batch: ParkedBatch) -> bool:
        """Returns True if the batch matches every filter."""
        searched = f"{batch.error} {batch.batch_id} {batch.reader}".lower()
        return (
            (not self.sink or self.sink in batch.sinks)
            and self.text.lower() in searched
            and batch.parked_seconds >= self.age_seconds_min
        )


def selection(sink: str, text: str, age: str) -> Selection:
    """Returns the selection that these form fields specify. Raises ValueError for values that the form does not
    offer.
    """
    if sink and sink not in set(SinkName):
        raise ValueError(f"no sink has the name {sink[:40]!r}")
    if len(text) > TEXT_CHARACTERS_MAX:
        raise ValueError(f"the text must have at most {TEXT_CHARACTERS_MAX} characters")
    if age and age not in map(str, AGE_CHOICES):
        raise ValueError("the age must be one that the form offers")
    return Selection(sink, text, int(age or 0))


def parked_rows(found: Iterable[Mapping[str, Any]], now: float) -> list[ParkedBatch]:
    """Returns the entries of `Coordination.parked()` as rows, in the same order; invalid entries are skipped."""
    rows = []
    for entry in found:
        try:
            rows.append(_row(entry, now))
        except (KeyError, TypeError, ValueError):
            continue
    return rows


def _row(entry: Mapping[str, Any], now: float) -> ParkedBatch:
    error = printable(without_secrets(str(entry.get("error", ""))))[:ERROR_CHARACTERS_MAX]
    return ParkedBatch(
        batch_id=str(entry["batch_id"]),
        reader=str(entry.get("reader", "")),
        topic=str(entry.get("topic", "")),
        partition=int(entry.get("partition", -1)),
        start=int(entry.get("start", -1)),
        stop=int(entry.get("stop", -1)),
        stage=str(entry.get("stage", "")),
        attempt=int(entry.get("attempt", 0)),
        messages=int(entry.get("messages", 0)),
        size_bytes=int(entry.get("size_bytes", 0)),
        error=error,
        sinks=tuple(dict.fromkeys(name for name in _TASK.findall(error) if name in set(SinkName))),
        parked_seconds=max(0.0, now - float(entry.get("first_parked_at") or entry.get("parked_at", now))),
        retry_seconds=max(0.0, float(entry.get("retry_at", now)) - now),
        reference=str(entry.get("batch", "")),
    )


def duration_text(seconds: float) -> str:
    """Formats a duration in its two largest units: `4 s`, `3 m 20 s`, `2 h 5 m`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    units = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    parts: list[str] = []
    for length, unit in units:
        if whole >= length or (unit == "s" and not parts):
            parts.append(f"{whole // length} {unit}")
            whole %= length
    return " ".join(parts[:2])
