"""Audits retention: compares a sorted listing of the bucket with the sorted object names from ClickHouse.

An object that is not listed is requested by name before it counts as missing, because its row may be newer than
the listing. An erasure deletes objects before rows, so objects of a concurrent erasure may be reported; run the
audit again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from rich.console import Group
from rich.table import Table

from ingest.operate.retention.bucket import Bucket, StoredObject
from ingest.operate.retention.rows import ReferencingRows
from ingest.operate.text import size_text
from ingest.settings import Settings
from tasks.errors import shortened
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.google import errors as google_errors
from tasks.wire import SinkName

EXAMPLES_MAX = 1000
SHOWN_MAX = 20
PROGRESS_OBJECTS = 1000
SUSPECTS_MAX = 1000

T = TypeVar("T")
Progress = Callable[[int], None]


class AuditFailed(Exception):
    """Raised if the bucket or ClickHouse could not be read. The message names the server and the reason."""


class Kind(StrEnum):
    """Kind of finding."""

    EXPIRED = "expired"
    ROW_WITHOUT_OBJECT = "row_without_object"


@dataclass(frozen=True, slots=True)
class RetentionFinding:
    """One finding. `overdue_days`: for an expired object, days since its retention ended. `segments`: for a
    missing object, the number of rows that refer to it."""

    kind: Kind
    object: str
    overdue_days: float = 0.0
    segments: int = 0


@dataclass(slots=True)
class Audit:
    """The result of an audit. Counts are complete; `examples` has at most EXAMPLES_MAX findings of each kind.

    `expired`: generations of objects that are past their retention by more than the grace period.
    `rows_without_object`: segments whose recording is not in the bucket.
    `unknown`: objects whose name contains no retention period; no lifecycle rule deletes them.
    """

    bucket: str
    grace_days: float
    objects: int = 0
    size_bytes: int = 0
    expired: int = 0
    expired_bytes: int = 0
    rows: int = 0
    rows_without_object: int = 0
    unknown: int = 0
    examples: list[RetentionFinding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if no object is kept for too long, and every row has its object."""
        return not (self.expired or self.rows_without_object)

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {"ok": self.ok, **asdict(self)}


def audit(
    settings: Settings, *, grace_days: float, now: float | None = None, progress: Progress = lambda objects: None
) -> Audit:
    """Runs the audit; changes nothing. `progress` receives the number of listed objects. Raises AuditFailed."""
    began, now = time.monotonic(), time.time() if now is None else now
    found = Audit(settings.gcs_bucket, grace_days)
    with contextlib.ExitStack() as closing:
        with _converting_errors("cloud storage", google_errors.classify):
            bucket = closing.enter_context(contextlib.closing(Bucket(settings)))
        missing = MissingObjects(found, _rows(settings, now, found, closing), bucket.missing)
        last = ""
        for stored in _with_converted_errors("cloud storage", google_errors.classify, bucket.objects()):
            if stored.name < last:
                raise AuditFailed(f"cloud storage: the listing is not in order, {stored.name} follows {last}")
            last = stored.name
            _count(found, stored, now)
            if stored.live:
                missing.listed(stored.name)
            if found.objects % PROGRESS_OBJECTS == 0:
                progress(found.objects)
        missing.ended()
        with _converting_errors("cloud storage", google_errors.classify):
            found.notes += bucket.mismatches()
    if found.unknown:
        found.notes.append(
            f"{found.unknown} objects have no retention in their name: no lifecycle rule deletes them"
        )
    progress(found.objects)
    found.seconds = time.monotonic() - began
    return found


def _count(found: Audit, stored: StoredObject, now: float) -> None:
    found.objects += 1
    found.size_bytes += stored.size_bytes
    if stored.retention_days is None:
        found.unknown += 1
    elif (overdue_days := stored.overdue_days(now)) > found.grace_days:
        found.expired += 1
        found.expired_bytes += stored.size_bytes
        if found.expired <= EXAMPLES_MAX:
            found.examples.append(RetentionFinding(Kind.EXPIRED, stored.name, overdue_days=round(overdue_days, 1)))


class _Lookahead(Generic[T]):
    """A sorted stream with one element of lookahead. `key` returns an element's name."""

    def __init__(self, elements: Iterator[T], key: Callable[[T], str]) -> None:
        self._elements, self._key = elements, key
        self._first = next(elements, None)

    def take_elements_before(self, name: str | None) -> Iterator[T]:
        """Removes and yields the elements whose names sort before this name, or all elements if the name is
        None."""
        while self._first is not None and (name is None or self._key(self._first) < name):
            taken, self._first = self._first, next(self._elements, None)
            yield taken

    def take(self, name: str) -> int:
        """Removes the elements with this name and returns their number."""
        taken = 0
        while self._first is not None and self._key(self._first) == name:
            self._first = next(self._elements, None)
            taken += 1
        return taken


@dataclass(frozen=True, slots=True)
class ReferencedNames:
    """Sorted names of the objects that rows in ClickHouse refer to."""

    segments: Iterator[str]
    indexed: Iterator[str]
    packed: Iterator[tuple[str, int]]


class MissingObjects:
    """Merges the listing with the names from ClickHouse and counts the names that are not in the bucket.

    `missing` looks up the given names in the bucket and returns those for which the bucket has no object.
    """

    def __init__(self, found: Audit, rows: ReferencedNames, missing: Callable[[list[str]], list[str]]) -> None:
        self._found, self._missing = found, missing
        self._segments = _Lookahead(rows.segments, str)
        self._indexed = _Lookahead(rows.indexed, str)
        self._packed = _Lookahead(rows.packed, lambda row: row[0])
        self._suspects: dict[str, int] = {}
        self._named = 0
        self._last = ""

    def listed(self, name: str) -> None:
        """Processes the next live object; the caller must pass the objects sorted by name."""
        self._pass(name)
        self._found.rows += bool(self._segments.take(name))
        self._packed.take(name)

    def ended(self) -> None:
        """Processes the remaining names from ClickHouse. Must be called after the last listed object."""
        self._pass(None)
        self._confirm_suspects()

    def _pass(self, name: str | None) -> None:
        for own in self._segments.take_elements_before(name):
            if own == self._last:
                continue
            self._last = own
            self._found.rows += 1
            for _ in self._indexed.take_elements_before(own):
                pass
            if not self._indexed.take(own):
                self._add_suspect(own, 1)
        for packed, segments in self._packed.take_elements_before(name):
            self._add_suspect(packed, segments)

    def _add_suspect(self, name: str, segments: int) -> None:
        self._suspects[name] = segments
        if len(self._suspects) >= SUSPECTS_MAX:
            self._confirm_suspects()

    def _confirm_suspects(self) -> None:
        """Requests each object by name, because a row may have been written after the listing."""
        with _converting_errors("cloud storage", google_errors.classify):
            missing = self._missing(list(self._suspects))
        for name in missing:
            self._found.rows_without_object += self._suspects[name]
            self._named += 1
            if self._named <= EXAMPLES_MAX:
                self._found.examples.append(
                    RetentionFinding(Kind.ROW_WITHOUT_OBJECT, name, segments=self._suspects[name])
                )
        self._suspects.clear()


def _rows(settings: Settings, now: float, found: Audit, closing: contextlib.ExitStack) -> ReferencedNames:
    if SinkName.CLICKHOUSE not in settings.sinks:
        found.notes.append("clickhouse is disabled: rows were not checked")
        return ReferencedNames(iter(()), iter(()), iter(()))
    with _converting_errors("clickhouse", clickhouse_errors.classify):
        rows = closing.enter_context(contextlib.closing(ReferencingRows(settings, now)))
    return ReferencedNames(
        _with_converted_errors("clickhouse", clickhouse_errors.classify, rows.segments()),
        _with_converted_errors("clickhouse", clickhouse_errors.classify, rows.indexed()),
        _with_converted_errors("clickhouse", clickhouse_errors.classify, rows.packed()),
    )


@contextlib.contextmanager
def _converting_errors(what: str, classify: Callable[[BaseException], Any]) -> Iterator[None]:
    """Converts any error of a client to AuditFailed, with one line that names the server."""
    try:
        yield
    except AuditFailed:
        raise
    except Exception as error:
        raise AuditFailed(f"{what}: {shortened(classify(error).message)}") from error


def _with_converted_errors(
    what: str, classify: Callable[[BaseException], Any], elements: Iterable[T]
) -> Iterator[T]:
    with _converting_errors(what, classify):
        yield from elements


def render(found: Audit) -> Group:
    """Formats the result for a terminal."""
    table = Table("what", "found", "")
    table.add_row(
        f"objects past their retention by more than {found.grace_days:g} days",
        f"{found.expired:,} ({size_text(found.expired_bytes)})",
        "NOT OK" if found.expired else "ok",
    )
    table.add_row(
        "rows without their object",
        f"{found.rows_without_object:,}",
        "NOT OK" if found.rows_without_object else "ok",
    )
    summary = (
        f"bucket {found.bucket}: {found.objects:,} objects, {size_text(found.size_bytes)}; "
        f"{found.rows:,} segments in ClickHouse"
    )
    return Group(summary, table, *_lines(found), *found.notes)


def _lines(found: Audit) -> Iterator[str]:
    """Yields lines for the first SHOWN_MAX findings of each kind."""
    expired = [finding for finding in found.examples if finding.kind is Kind.EXPIRED]
    missing = [finding for finding in found.examples if finding.kind is Kind.ROW_WITHOUT_OBJECT]
    for finding in expired[:SHOWN_MAX]:
        yield f"expired: {finding.object} ({finding.overdue_days:g} days ago)"
    for finding in missing[:SHOWN_MAX]:
        yield f"missing: {finding.object} ({finding.segments} segments refer to it)"
