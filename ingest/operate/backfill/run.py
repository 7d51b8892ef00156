"""Rebuilds the rows of a selection, one page of segments at a time.

For each page, the run compares the rows, writes those that differ, and compares them again. Memory is bounded by
the recordings and rows of one page: at most PAGE_SEGMENTS segments and about PAGE_BYTES of recordings.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from redis.exceptions import RedisError

from ingest.core.stored_recording import BlobError
from ingest.operate.backfill.facts import StoredFacts
from ingest.operate.backfill.outcome import Difference, Outcome, Tally
from ingest.operate.backfill.rebuild import StoredSegment, rebuild_rows
from ingest.operate.backfill.selection import Selection, StoredSegments, recording_names
from ingest.operate.reconcile.problem import Problem
from ingest.operate.reconcile.recordings import Recordings
from ingest.operate.reconcile.repair import Repair
from ingest.operate.retention.bucket import Bucket
from ingest.operate.shadow.contents import StoredRows
from ingest.reader.configuration import rules_of
from ingest.reader.erasures import Erasures, erasures_of
from ingest.settings import Settings
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.errors import SinkError, shortened
from tasks.kafka.decisions import DecisionsUnreadable, load
from tasks.kafka.producing import NotProduced
from tasks.kafka.ranges import RangeError
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.google import errors as google_errors
from tasks.wire import Item, Row, SinkName

UNBOUNDED_ITEMS_PER_SECOND = 1e9
"""The rate limit applies to whole pages, by their number of segments."""

Progress = Callable[[int], None]
Wrong = dict[int, tuple[Problem, str]]


class BackfillFailed(Exception):
    """Raised if reading from a server, or writing to it, failed. Rows written so far remain, and a later run
    continues."""


class Backfill:
    """One backfill request. Methods raise BackfillFailed."""

    def __init__(self, settings: Settings, selection: Selection) -> None:
        self._settings, self._selection = settings, selection
        self._now = time.time()

    def count(self) -> int:
        """Returns the number of selected stored segments."""
        with _converting_errors(), contextlib.closing(self._segments()) as segments:
            return segments.count()

    def run(
        self,
        *,
        dry_run: bool,
        per_second_max: float,
        by: str = "unknown",
        differences_max: int = 1000,
        progress: Progress = lambda segments: None,
    ) -> Outcome:
        """Rebuilds and writes; a dry run only compares. `per_second_max`: recordings per second. The run is
        recorded in the audit trail.
        """
        began, found = time.monotonic(), Outcome(dry_run)
        with _converting_errors(), contextlib.ExitStack() as closing:
            segments = closing.enter_context(contextlib.closing(self._segments()))
            if not dry_run:
                self._audit("begins", by, found)
            pages = closing.enter_context(contextlib.closing(_Pages(self._settings, found, differences_max)))
            seen, page_began = 0, time.monotonic()
            for page in _with_converted_errors(segments.pages(max(1, int(per_second_max)))):
                pages.take(page)
                seen += len(page)
                progress(seen)
                time.sleep(max(0.0, page_began + len(page) / per_second_max - time.monotonic()))
                page_began = time.monotonic()
            self._report_recordings_without_rows(segments, found, closing)
            if not dry_run:
                self._audit("ends", by, found)
        if SinkName.DATADOG in self._settings.sinks:
            found.notes.append("metrics are not sent again: Datadog would count them twice")
        found.seconds = time.monotonic() - began
        return found

    def _segments(self) -> StoredSegments:
        try:
            return StoredSegments(self._settings, self._selection, self._now)
        except Exception as error:
            raise clickhouse_errors.classify(error).error() from error

    def _report_recordings_without_rows(
        self, segments: StoredSegments, found: Outcome, closing: contextlib.ExitStack
    ) -> None:
        try:
            bucket = closing.enter_context(contextlib.closing(Bucket(self._settings)))
            listed = recording_names(bucket, self._selection)
            names = next(listed, None)
            while names is not None:
                for name in segments.unlisted(names):
                    found.note("without_rows", name)
                names = next(listed, None)
            for replay_id in segments.unknown_replays():
                found.note("without_rows", f"replay {replay_id}")
        except Exception as error:
            raise google_errors.classify(error).error() from error

    def _audit(self, phase: str, by: str, found: Outcome) -> None:
        coordination = Coordination(connect(self._settings), self._settings)
        chosen = asdict(self._selection)
        if self._selection.replay_ids is not None:
            chosen["replay_ids"] = len(self._selection.replay_ids)
        written = {name: tally.written for name, tally in sorted(found.sinks.items())}
        coordination.audit({"what": f"backfill {phase}", "by": by, "selection": chosen, **written})


class _Pages:
    """Rebuilds pages and records the outcome."""

    def __init__(self, settings: Settings, found: Outcome, differences_max: int) -> None:
        self._found, self._differences_max = found, differences_max
        self._rules = rules_of(settings)
        self._erasures = _erasures(settings)
        self._recordings = Recordings(settings)
        self._rows = StoredRows(settings)
        self._facts = StoredFacts(settings) if SinkName.BIGQUERY in settings.sinks else None
        self._repair = None if found.dry_run else Repair(settings, UNBOUNDED_ITEMS_PER_SECOND)
        self._shown: Counter[str] = Counter()
        self._run = int(time.time() * 1000)

    def take(self, page: Sequence[StoredSegment]) -> None:
        """Processes one page. Raises SinkError if reading from a server fails."""
        wanted = [segment for segment in page if not self._is_erased(segment)]
        contents = self._recordings.contents([segment.object for segment in wanted])
        clicks: dict[int, list[tuple[StoredSegment, Row]]] = {}
        facts: list[tuple[StoredSegment, Row]] = []
        for segment in wanted:
            content = contents[segment.object]
            if content is None:
                self._found.note("gone", segment.object)
                continue
            try:
                rows = rebuild_rows(segment, content, self._rules)
            except BlobError as error:
                self._found.note("unreadable", f"{segment.object}: {error}")
                continue
            self._found.recordings += 1
            clicks.setdefault(segment.partition, []).extend((segment, row) for row in rows.clickhouse)
            facts += [(segment, row) for row in rows.bigquery]
        for partition, rebuilt_rows in clicks.items():
            self._compare_and_write(SinkName.CLICKHOUSE, rebuilt_rows, self._row_comparison(partition))
        if self._facts is not None:
            self._compare_and_write(SinkName.BIGQUERY, facts, self._facts.compare)

    def _row_comparison(self, partition: int) -> Callable[[Sequence[Row]], Wrong]:
        def compare(items: Sequence[Row]) -> Wrong:
            comparison = self._rows.compare(items, partition, unexpected=False)
            return {
                difference.position: (Problem(difference.kind.value), difference.what)
                for difference in comparison.differences
                if difference.position is not None
            }

        return compare

    def _compare_and_write(
        self,
        sink: SinkName,
        rebuilt_rows: Sequence[tuple[StoredSegment, Row]],
        compare: Callable[[Sequence[Row]], Wrong],
    ) -> None:
        """Compares rows, writes the rows that are missing or differ, and compares these rows again."""
        tally = self._found.sinks.setdefault(str(sink), Tally())
        items = [row for _, row in rebuilt_rows]
        tally.rebuilt += len(items)
        differences_found = compare(items)
        for position, (problem, what) in sorted(differences_found.items()):
            tally.count(problem)
            self._add_difference(sink, rebuilt_rows[position], problem, what)
        if not differences_found or self._repair is None:
            return
        to_write = [items[position] for position in sorted(differences_found)]
        differing = [
            items[place] for place, (problem, _) in sorted(differences_found.items()) if problem is Problem.DIFFERS
        ]
        failure = self._write(sink, to_write, differing)
        if failure:
            self._found.failures.append(failure)
        left = len(compare(to_write))
        tally.left += left
        tally.written += len(to_write) - left

    def _write(self, sink: SinkName, items: Sequence[Item], differing: Sequence[Row]) -> str:
        assert self._repair is not None
        try:
            if sink is SinkName.BIGQUERY and self._facts is not None and differing:
                self._facts.delete(differing)
        except SinkError as error:
            return shortened(f"{sink}: {len(differing)} rows that differ could not be deleted: {error}")
        self._run += 1
        return self._repair.write_items(sink, f"backfill-{self._run}", items)

    def _add_difference(
        self, sink: SinkName, rebuilt_rows: tuple[StoredSegment, Row], problem: Problem, what: str
    ) -> None:
        self._shown[sink] += 1
        if self._shown[sink] <= self._differences_max:
            segment, row = rebuilt_rows
            name = f"{row.table}/{row.id}"
            self._found.differences.append(Difference(problem, str(sink), name, what, *segment.key))

    def _is_erased(self, segment: StoredSegment) -> bool:
        erased = self._erasures.covers(segment.project_id, segment.replay_id, segment.received)
        self._found.erased += erased
        return erased

    def close(self) -> None:
        for server in (self._recordings, self._rows, self._facts, self._repair):
            if server is not None:
                with contextlib.suppress(Exception):
                    server.close()


def _erasures(settings: Settings) -> Erasures:
    in_force = {key: entry.value for key, entry in load(settings).entries.items() if entry.value is not None}
    return erasures_of(in_force, time.time())


def _with_converted_errors(pages: Iterable[Any]) -> Iterator[Any]:
    """Yields the pages from ClickHouse, and converts the driver's errors to SinkError."""
    try:
        yield from pages
    except SinkError:
        raise
    except Exception as error:
        raise clickhouse_errors.classify(error).error() from error


@contextlib.contextmanager
def _converting_errors() -> Iterator[None]:
    try:
        yield
    except (SinkError, RangeError, DecisionsUnreadable, NotProduced, RedisError) as failure:
        raise BackfillFailed(shortened(str(failure))) from failure
