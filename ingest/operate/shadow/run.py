"""Reads a scope of the topic, a chunk at a time, and compares what this release makes of it with what is stored.

Memory: one chunk of messages and what they make.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable

from ingest.operate.dlq import DeadLettersUnavailable
from ingest.operate.reconcile.account import Account, ReconcileFailed
from ingest.operate.reconcile.expected import Chunk, Expected, offset_of
from ingest.operate.reconcile.recordings import Recordings
from ingest.operate.reconcile.topic import CHUNK_MESSAGES_MAX, RecordingsTopic, Scope
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
    SinkName.BIGQUERY: "BigQuery was not compared: `replays-ingest reconcile` says which facts are missing",
    SinkName.DATADOG: "DataDog cannot be asked what it has",
}


def run(
    settings: Settings,
    scope: Scope,
    *,
    per_second_max: float | None = None,
    differences_max: int = 100,
    progress: Progress = lambda messages: None,
) -> Comparison:
    """The comparison. `per_second_max`: messages per second; `differences_max`: how many are kept of each sink.

    Raises ReconcileFailed when Kafka, the dead letters, ClickHouse or Cloud Storage cannot be read.
    """
    began = time.monotonic()
    at_once = (
        CHUNK_MESSAGES_MAX if per_second_max is None else max(1, min(CHUNK_MESSAGES_MAX, int(per_second_max)))
    )
    try:
        with RecordingsTopic(settings, scope, chunk_messages_max=at_once) as topic:
            account = Account(settings.kafka_topic, topic.spans())
            found = Comparison(settings.kafka_topic, RELEASE, account.spans)
            expected = Expected(settings, account)
            with contextlib.closing(_Sinks(settings, expected, found, differences_max)) as sinks:
                for span in account.spans:
                    for messages in topic.chunks(span):
                        sinks.compare(expected.of(messages))
                        progress(account.messages)
                        if per_second_max is not None:
                            time.sleep(max(0.0, account.messages / per_second_max - (time.monotonic() - began)))
    except (RangeError, DecisionsUnreadable, DeadLettersUnavailable, SinkError) as failure:
        raise ReconcileFailed(str(failure)) from failure
    found.messages, found.segments, found.rejects = account.messages, account.segments, account.rejects
    found.explained = {name: getattr(account, name) for name in ("given_up", "shed", "erased", "expired")}
    found.notes += [text for sink, text in NOT_COMPARED.items() if sink in settings.sinks]
    found.seconds = time.monotonic() - began
    return found


class _Sinks:
    """Asks Cloud Storage, ClickHouse and the dead letters for what a chunk should have become."""

    def __init__(self, settings: Settings, expected: Expected, found: Comparison, differences_max: int) -> None:
        self._expected, self._found, self._differences_max = expected, found, differences_max
        self._kept: Counter[str] = Counter()
        self._recordings = Recordings(settings) if SinkName.GCS in settings.sinks else None
        self._rows = StoredRows(settings) if SinkName.CLICKHOUSE in settings.sinks else None

    def compare(self, chunk: Chunk) -> None:
        """One chunk of one partition. Raises SinkError."""
        if self._recordings is not None:
            items = list(self._expected.items(chunk, SinkName.GCS))
            tally = self._tally(SinkName.GCS, len(items))
            for position, problem in sorted(self._recordings.absent(items).items()):  # type: ignore[arg-type]
                what = "no such object" if problem.value == Kind.MISSING else "other bytes are stored"
                self._note(tally, chunk, Kind(problem.value), SinkName.GCS, items[position], what)
        if self._rows is not None:
            self._compare_rows(self._rows, chunk)
        self._compare_letters(chunk)

    def _compare_rows(self, stored: StoredRows, chunk: Chunk) -> None:
        items = list(self._expected.items(chunk, SinkName.CLICKHOUSE))
        compared = stored.compare(items, chunk.batch.source.partition)  # type: ignore[arg-type]
        tally = self._tally(SinkName.CLICKHOUSE, compared.compared)
        tally.superseded += compared.superseded
        for one in compared.differences:
            self._add(
                tally, self._difference(chunk, one.kind, SinkName.CLICKHOUSE, one.item, one.what, one.offset)
            )

    def _compare_letters(self, chunk: Chunk) -> None:
        """A reject of this release that is no dead letter is a message that the live release took."""
        items = list(self._expected.items(chunk, SinkName.DEAD_LETTER))
        tally = self._tally(SinkName.DEAD_LETTER, len(items))
        known = self._expected.given_up.messages
        for item in items:
            if (chunk.batch.source.partition, offset_of(item)) not in known:
                what = "this release rejects the message, and there is no such dead letter"
                self._note(tally, chunk, Kind.MISSING, SinkName.DEAD_LETTER, item, what)

    def _tally(self, sink: SinkName, compared: int) -> Tally:
        tally = self._found.sinks.setdefault(str(sink), Tally())
        tally.compared += compared
        return tally

    def _note(self, tally: Tally, chunk: Chunk, kind: Kind, sink: SinkName, item: Item, what: str) -> None:
        self._add(tally, self._difference(chunk, kind, sink, name_of(item), what, offset_of(item)))

    def _add(self, tally: Tally, one: Difference) -> None:
        tally.count(one.kind)
        self._kept[one.sink] += 1
        if self._kept[one.sink] <= self._differences_max:
            self._found.differences.append(one)

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
