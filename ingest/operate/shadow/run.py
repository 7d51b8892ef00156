"""Reads a scope of the topic, one chunk at a time, and compares the items that this release would write with the
stored items.

Memory is bounded by one chunk of messages and its items.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable

from ingest.operate.dlq import DeadLettersUnavailable
from ingest.operate.reconcile.account import Account, ReconcileFailed
from ingest.operate.reconcile.expected import Chunk, ExpectedItems, offset_of
from ingest.operate.reconcile.recordings import Recordings
from ingest.operate.reconcile.topic import CHUNK_MESSAGES_MAX, RecordingsTopic, Scope, Span
from ingest.operate.shadow.comparison import Comparison, Difference, Kind, Tally
from ingest.operate.shadow.contents import StoredRows
from ingest.settings import Settings
from tasks.errors import SinkError
from tasks.kafka.decisions import DecisionsUnreadable
from tasks.kafka.ranges import RangeError
from tasks.refused import name_of
from tasks.release import RELEASE
from tasks.wire import Item, SinkName

Progress = Callable[[int], None]
NOT_COMPARED = {
    SinkName.BIGQUERY: "BigQuery was not compared: `replays-ingest reconcile` reports missing facts",
    SinkName.DATADOG: "Datadog cannot be queried",
}


def run(
    settings: Settings,
    scope: Scope,
    *,
    per_second_max: float | None = None,
    differences_max: int = 100,
    another_round: Callable[[], bool] | None = None,
    progress: Progress = lambda messages: None,
) -> Comparison:
    """Runs the comparison. `per_second_max`: messages per second; `differences_max`: maximum number of differences
    kept per sink.

    With `another_round`, the comparison follows the group, starting at the committed offsets unless the scope
    defines a start. After each round, `another_round` waits and returns whether to compare the offsets committed
    in the meantime. Raises ReconcileFailed when Kafka, the dead letters, ClickHouse or Cloud Storage cannot be
    read.
    """
    began = time.monotonic()
    found = Comparison(settings.kafka_topic, RELEASE, [])
    pace = _RateLimiter(per_second_max, progress)
    try:
        with (
            RecordingsTopic(settings, scope, chunk_messages_max=pace.at_once) as topic,
            contextlib.closing(_Sinks(settings, found, differences_max)) as sinks,
        ):
            positions = topic.committed()
            if another_round is None or scope != Scope(scope.partition):
                spans = topic.spans()
                positions |= {span.partition: max(span.stop, positions[span.partition]) for span in spans}
                _round(settings, topic, spans, sinks, pace)
            while another_round is not None and another_round():
                spans = topic.spans_from(positions)
                positions |= {span.partition: span.stop for span in spans}
                _round(settings, topic, spans, sinks, pace)
    except (RangeError, DecisionsUnreadable, DeadLettersUnavailable, SinkError) as failure:
        raise ReconcileFailed(str(failure)) from failure
    found.notes += [text for sink, text in NOT_COMPARED.items() if sink in settings.sinks]
    found.seconds = time.monotonic() - began
    return found


def _round(
    settings: Settings, topic: RecordingsTopic, spans: list[Span], sinks: _Sinks, pace: _RateLimiter
) -> None:
    """Compares these spans, taking the current dead letters and operators' decisions into account."""
    account = Account(settings.kafka_topic, spans)
    expected = ExpectedItems(settings, account)
    pace.begin()
    for span in spans:
        for messages in topic.chunks(span):
            sinks.compare(expected, expected.of(messages))
            pace.throttle(len(messages))
    sinks.found.add(account)


class _RateLimiter:
    """Limits the rate and reports progress."""

    def __init__(self, per_second_max: float | None, progress: Progress) -> None:
        self._per_second_max, self._progress = per_second_max, progress
        self._messages, self._since = 0, time.monotonic()
        self.at_once = max(1, min(CHUNK_MESSAGES_MAX, int(per_second_max or CHUNK_MESSAGES_MAX)))

    def begin(self) -> None:
        """Begins a round. The rate does not include the idle time before the round."""
        self._since = time.monotonic()

    def throttle(self, messages: int) -> None:
        """Counts compared messages and waits as long as the rate requires."""
        self._messages += messages
        self._progress(self._messages)
        if self._per_second_max is not None:
            time.sleep(max(0.0, self._since + messages / self._per_second_max - time.monotonic()))
        self._since = time.monotonic()


class _Sinks:
    """Queries Cloud Storage, ClickHouse and the dead letters for the expected items of a chunk."""

    def __init__(self, settings: Settings, found: Comparison, differences_max: int) -> None:
        self.found, self._differences_max = found, differences_max
        self._counts: Counter[str] = Counter()
        self._recordings = Recordings(settings) if SinkName.GCS in settings.sinks else None
        self._rows = StoredRows(settings) if SinkName.CLICKHOUSE in settings.sinks else None

    def compare(self, expected: ExpectedItems, chunk: Chunk) -> None:
        """Compares one chunk of one partition. Raises SinkError."""
        if self._recordings is not None:
            items = list(expected.items(chunk, SinkName.GCS))
            tally = self._tally(SinkName.GCS, len(items))
            for position, problem in sorted(self._recordings.find_problems(items).items()):  # type: ignore[arg-type]
                what = "object is missing" if problem.value == Kind.MISSING else "different bytes are stored"
                self._note(tally, chunk, Kind(problem.value), SinkName.GCS, items[position], what)
        if self._rows is not None:
            self._compare_rows(self._rows, expected, chunk)
        self._compare_letters(expected, chunk)

    def _compare_rows(self, stored: StoredRows, expected: ExpectedItems, chunk: Chunk) -> None:
        items = list(expected.items(chunk, SinkName.CLICKHOUSE))
        comparison = stored.compare(items, chunk.batch.source.partition)  # type: ignore[arg-type]
        tally = self._tally(SinkName.CLICKHOUSE, comparison.compared)
        tally.superseded += comparison.superseded
        for difference in comparison.differences:
            self._add(
                tally,
                self._difference(
                    chunk,
                    difference.kind,
                    SinkName.CLICKHOUSE,
                    difference.item,
                    difference.what,
                    difference.offset,
                ),
            )

    def _compare_letters(self, expected: ExpectedItems, chunk: Chunk) -> None:
        """Reports messages that this release rejects but that have no dead letter, which means that the live
        release accepted them.
        """
        items = list(expected.items(chunk, SinkName.DEAD_LETTER))
        tally = self._tally(SinkName.DEAD_LETTER, len(items))
        known = expected.given_up.messages
        for item in items:
            if (chunk.batch.source.partition, offset_of(item)) not in known:
                what = "this release rejects the message, but it has no dead letter"
                self._note(tally, chunk, Kind.MISSING, SinkName.DEAD_LETTER, item, what)

    def _tally(self, sink: SinkName, compared: int) -> Tally:
        tally = self.found.sinks.setdefault(str(sink), Tally())
        tally.compared += compared
        return tally

    def _note(self, tally: Tally, chunk: Chunk, kind: Kind, sink: SinkName, item: Item, what: str) -> None:
        self._add(tally, self._difference(chunk, kind, sink, name_of(item), what, offset_of(item)))

    def _add(self, tally: Tally, difference: Difference) -> None:
        tally.count(difference.kind)
        self._counts[difference.sink] += 1
        if self._counts[difference.sink] <= self._differences_max:
            self.found.differences.append(difference)

    def _difference(
        self, chunk: Chunk, kind: Kind, sink: SinkName, item: str, what: str, offset: int
    ) -> Difference:
        topic, partition = chunk.batch.source
        owner = chunk.segments.get(offset)
        if owner is None:
            return Difference(kind, str(sink), item, what, topic, partition, offset)
        project, replay, segment = owner.split("/")
        return Difference(
            kind, str(sink), item, what, topic, partition, offset, int(project), replay, int(segment)
        )

    def close(self) -> None:
        for server in (self._recordings, self._rows):
            if server is not None:
                with contextlib.suppress(Exception):
                    server.close()
