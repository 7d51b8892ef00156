"""Holds the sinks to account for a range of the topic: reads it again, and says what is missing where.

    replays-ingest reconcile --since 2h
    replays-ingest reconcile --partition 3 --start 1200 --stop 1900 --repair

Only offsets that the group has committed are looked at: of the others the system has not claimed anything yet.
Every message is parsed as the reader would, and each sink is asked for what it should hold of it
(`ingest/operate/presence.py`). What was given up on purpose is no loss: dead letters (rejects, abandoned batches,
items
that a sink refused), projects that are switched off, and what is older than its retention. A rate limit, though,
leaves no trace: what it shed shows as missing from every sink.

`repair` writes what is missing, and nothing else, through the sinks' own `write`, at a bounded rate, and asks
again. Rows and objects have identities, so a repair that overlaps with the reader's work is harmless. Memory: one
chunk of at most CHUNK_MESSAGES_MAX messages or about CHUNK_BYTES_MAX bytes, and the origins of dead letters.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException
from confluent_kafka import Message as KafkaMessage
from confluent_kafka import TopicPartition as KafkaPartition
from redis.exceptions import RedisError
from rich.console import Group
from rich.table import Table

from ingest.core.model import Batch, CutReason, Message, OffsetRange, Outcome, Reject, Segment, TopicPartition
from ingest.core.parse import parse
from ingest.core.parse.rows import believable
from ingest.operate.dlq import DeadLettersUnavailable, Selection, letters
from ingest.operate.presence import PRESENCES, Presence
from ingest.reader.encoding import items_of
from ingest.reader.parsing.inline import shed
from ingest.reader.process import rules_of
from ingest.reader.tenant_gate import TenantGate, TenantRules
from ingest.reader.tenant_rules import TenantStore
from ingest.settings import Settings
from tasks.errors import PermanentSinkError, SinkError
from tasks.kafka.options import kafka_options
from tasks.sinks import build
from tasks.sinks.base import Sink
from tasks.staging import Staging, connect
from tasks.wire import BlobItem, DeadLetterItem, Item, RowItem

CHUNK_MESSAGES_MAX = 1000
CHUNK_BYTES_MAX = 64 * 1024 * 1024
QUEUED_KBYTES_MAX = 32 * 1024
LETTERS_MAX = 1_000_000
EXAMPLES_MAX = 1000
CALL_SECONDS_MAX = 15.0
SILENT_SECONDS_MAX = 60.0
SHOWN_MAX = 20
WRITE_ITEMS_MAX = 200
WRITE_TRIES = 5
DAY_SECONDS = 86_400
AUDIT_READ_MAX = 1000
RULES_PAST = ("tenant_revive", "tenant_limit")


class ReconcileFailed(Exception):
    """The account could not be made: the topic, the dead letters or a sink did not answer. Says which, and why."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at: offsets [start, stop) of one partition, or a window of Kafka timestamps in unix seconds,
    or nothing of that: all that the topic still holds.

    A window is from the first message that is not older than `since` up to the first that is not older than
    `until`. Raises ValueError for a mixture of both.
    """

    partition: int | None = None
    start: int | None = None
    stop: int | None = None
    since: float | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        by_offset = self.start is not None or self.stop is not None
        if by_offset and self.partition is None:
            raise ValueError("offsets are those of one partition: say which")
        if by_offset and (self.since is not None or self.until is not None):
            raise ValueError("either offsets or a window of time")


@dataclass(slots=True)
class Span:
    """One partition's part. `gone`: offsets that were asked for and that the topic no longer holds; `open`: those
    that are not committed yet and therefore were not looked at."""

    partition: int
    start: int
    stop: int
    gone: int = 0
    open: int = 0


@dataclass(frozen=True, slots=True)
class Missing:
    """One item that its sink does not hold (`problem`: missing or differs), and the message it comes from."""

    sink: str
    item: str
    problem: str
    partition: int
    offset: int
    segment: str
    """project/replay/segment; empty for a dead letter."""


@dataclass(slots=True)
class Tally:
    """One sink: items asked for, those that were not there, and those of them that are there now."""

    checked: int = 0
    missing: int = 0
    differs: int = 0
    repaired: int = 0

    @property
    def left(self) -> int:
        """Still not there."""
        return self.missing + self.differs - self.repaired


@dataclass(slots=True)
class Account:
    """What came of it. `examples` holds at most EXAMPLES_MAX of each sink's missing items, `unrepaired` as many of
    those that a repair wrote and that are not there all the same."""

    topic: str
    spans: list[Span]
    repairing: bool = False
    messages: int = 0
    segments: int = 0
    rejects: int = 0
    given_up: int = 0
    """Segments and items that are dead letters."""
    shed: int = 0
    expired: int = 0
    sinks: dict[str, Tally] = field(default_factory=dict)
    examples: list[Missing] = field(default_factory=list)
    unrepaired: list[Missing] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing is missing (any more)."""
        return not self.failures and all(tally.left == 0 for tally in self.sinks.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        for name, tally in self.sinks.items():
            found["sinks"][name]["left"] = tally.left
        return {"ok": self.ok, **found}


Told = Callable[[Missing], None]
Progress = Callable[[int], None]


def run(
    settings: Settings,
    scope: Scope,
    *,
    repair: bool = False,
    per_second_max: float = 200.0,
    by: str = "unknown",
    missing: Told = lambda found: None,
    progress: Progress = lambda messages: None,
) -> Account:
    """The account of a scope. `missing` is told every item that is not there, `progress` the messages so far.

    `repair` writes them, at most `per_second_max` a second, as `by` in the audit; without an audit (Redis away)
    nothing is written. Raises ReconcileFailed.
    """
    began = time.monotonic()
    with _Topic(settings) as topic:
        account = Account(settings.kafka_topic, topic.spans(scope), repair)
        work = _Work(settings, account, missing, per_second_max if repair else 0.0)
        try:
            if repair:
                work.audit(by, scope, "begins")
            for span in account.spans:
                for chunk in topic.chunks(span):
                    work.take(span.partition, chunk)
                    progress(account.messages)
            if repair:
                work.audit(by, scope, "ends")
            if not account.ok:
                work.note_past_rules()
        except (SinkError, RedisError) as failure:
            raise ReconcileFailed(str(failure)) from failure
        finally:
            work.close()
    account.seconds = time.monotonic() - began
    return account


class _Topic:
    """The recordings' topic, read by offset; nothing is subscribed to and nothing committed."""

    def __init__(self, settings: Settings) -> None:
        self._name = settings.kafka_topic
        self._window = (0.0, math.inf)
        self._consumer = Consumer(
            {
                "group.id": settings.kafka_group,  # to ask for its committed offsets
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "queued.max.messages.kbytes": QUEUED_KBYTES_MAX,
                **kafka_options(settings),
            }
        )

    def __enter__(self) -> _Topic:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def spans(self, scope: Scope) -> list[Span]:
        """The offsets to be read, a partition each; partitions with nothing to read are left out."""
        self._window = (scope.since or 0.0, math.inf if scope.until is None else scope.until)
        try:
            found = self._consumer.list_topics(self._name, timeout=CALL_SECONDS_MAX).topics[self._name]
            if found.error is not None:
                raise ReconcileFailed(f"topic {self._name}: {found.error}")
            numbers = sorted(found.partitions) if scope.partition is None else [scope.partition]
            asked = [KafkaPartition(self._name, number) for number in numbers]
            committed = {p.partition: p.offset for p in self._consumer.committed(asked, timeout=CALL_SECONDS_MAX)}
            spans = [self._span(scope, number, max(0, committed[number])) for number in numbers]
        except KafkaException as failure:
            raise ReconcileFailed(f"topic {self._name}: {failure.args[0]}") from failure
        return [span for span in spans if span.start < span.stop or span.gone or span.open]

    def _span(self, scope: Scope, partition: int, committed: int) -> Span:
        source = KafkaPartition(self._name, partition)
        low, high = self._consumer.get_watermark_offsets(source, timeout=CALL_SECONDS_MAX, cached=False)
        start, stop = scope.start, scope.stop
        if scope.since is not None:
            start = self._at(partition, scope.since, high)
        if scope.until is not None:
            stop = self._at(partition, scope.until, high)
        first = low if start is None else start
        last = max(high, committed) if stop is None else stop
        until = min(last, committed)
        return Span(
            partition,
            max(first, low),
            max(until, first, low),
            gone=max(0, min(low, last) - first),
            open=max(0, min(last, high) - max(committed, first)),
        )

    def _at(self, partition: int, seconds: float, high: int) -> int:
        """The first offset whose message is not older than this; the end if there is none."""
        asked = [KafkaPartition(self._name, partition, int(seconds * 1000))]
        found = self._consumer.offsets_for_times(asked, timeout=CALL_SECONDS_MAX)[0]
        if found.error is not None:
            raise KafkaException(found.error)
        return high if found.offset in (-1, OFFSET_END) else found.offset

    def chunks(self, span: Span) -> Iterator[list[Message]]:
        """The messages of a span, some at a time."""
        chunk: list[Message] = []
        size_bytes = 0
        for message in self._messages(span):
            chunk.append(message)
            size_bytes += len(message.value)
            if len(chunk) >= CHUNK_MESSAGES_MAX or size_bytes >= CHUNK_BYTES_MAX:
                yield chunk
                chunk, size_bytes = [], 0
        if chunk:
            yield chunk

    def _messages(self, span: Span) -> Iterator[Message]:
        if span.start >= span.stop:
            return
        source = TopicPartition(self._name, span.partition)
        self._consumer.assign([KafkaPartition(self._name, span.partition, span.start)])
        heard_at = time.monotonic()
        while True:
            record = self._consumer.poll(1.0)
            if record is None:
                if time.monotonic() - heard_at > SILENT_SECONDS_MAX:
                    raise ReconcileFailed(f"{source}: nothing was heard for {SILENT_SECONDS_MAX:.0f} s")
                continue
            heard_at = time.monotonic()
            error = record.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    return
                if error.fatal() or not error.retriable():
                    raise ReconcileFailed(f"{source}: {error.str()}")
                continue
            offset = record.offset() or 0
            if offset >= span.stop:
                return
            message = _message(source, record)
            if self._window[0] <= message.timestamp_ms / 1000 < self._window[1] or not message.timestamp_ms:
                yield message
            if offset + 1 >= span.stop:
                return


def _message(source: TopicPartition, record: KafkaMessage) -> Message:
    timestamp = record.timestamp()
    return Message(
        source=source,
        epoch=0,
        offset=record.offset() or 0,
        value=_bytes(record.value()) or b"",
        key=_bytes(record.key()),
        headers=tuple((pair[0], _bytes(pair[1])) for pair in record.headers() or ()),
        timestamp_ms=timestamp[1] if timestamp[0] else 0,
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


class _Letters:
    """Where dead letters of these spans came from: messages by their place, refused items by sink and name."""

    def __init__(self, settings: Settings, spans: Iterable[Span]) -> None:
        self.messages: set[tuple[int, int]] = set()
        self.items: set[tuple[str, str]] = set()
        limits = {span.partition: (span.start, span.stop) for span in spans}
        try:
            for letter in letters(settings, Selection(include_replayed=True)):
                topic, partition, offset = letter.origin
                start, stop = limits.get(partition, (0, 0))
                if topic != settings.kafka_topic or (not start <= offset < stop and not letter.sink):
                    continue
                if letter.sink:
                    item = dict(letter.headers).get("item") or b""
                    self.items.add((letter.sink, item.decode("utf-8", "replace")))
                else:
                    self.messages.add((partition, offset))
                if len(self.messages) + len(self.items) > LETTERS_MAX:
                    raise ReconcileFailed(f"more than {LETTERS_MAX} dead letters: take a smaller range")
        except DeadLettersUnavailable as failure:
            raise ReconcileFailed(str(failure)) from failure


class _Work:
    """Takes chunks: parses, asks, writes if it may, and counts."""

    def __init__(self, settings: Settings, account: Account, missing: Told, per_second_max: float) -> None:
        self._settings, self._account, self._told = settings, account, missing
        self._rules = rules_of(settings)
        self._gate = TenantGate()
        self._staging = Staging(connect(settings), settings)
        self._letters = _Letters(settings, account.spans)
        self._presences: dict[str, Presence] = {}
        self._sinks: dict[str, Sink[Any]] = {}
        self._per_second_max = per_second_max
        self._run = int(time.time() * 1000)
        try:
            killed = TenantStore(connect(settings), settings.key_prefix).rules().killed
            self._gate.rules = TenantRules(killed)
        except (RedisError, ValueError) as error:
            account.notes.append(f"tenant rules are unknown, switched-off projects show as missing: {error}")
        if "datadog" in settings.sinks:
            account.notes.append("DataDog cannot be asked what it has")

    def audit(self, by: str, scope: Scope, phase: str) -> None:
        """The deed, where operators' others are."""
        tallies = {
            name: f"{tally.repaired} of {tally.missing + tally.differs}" for name, tally in self._sinks_told()
        }
        what = {"what": f"reconcile {phase}", "by": by, "topic": self._account.topic, "scope": asdict(scope)}
        self._staging.audit({**what, **tallies})

    def note_past_rules(self) -> None:
        """What a project lost to a rule that is no longer in force looks like a loss: names such projects."""
        deeds = [deed for deed in self._staging.audited(AUDIT_READ_MAX) if deed.get("what") in RULES_PAST]
        for project in sorted({deed.get("project", "") for deed in deeds}):
            last = next(deed for deed in deeds if deed.get("project") == project)
            at = datetime.fromtimestamp(float(last["at"]), UTC).isoformat(timespec="seconds")
            self._account.notes.append(
                f"project {project} was switched off or limited ({last['what']} by {last.get('by', '')} at {at}): "
                "what was dropped by that rule counts as missing here"
            )

    def _sinks_told(self) -> list[tuple[str, Tally]]:
        return sorted(self._account.sinks.items())

    def take(self, partition: int, messages: Sequence[Message]) -> None:
        """One chunk of one partition. Raises SinkError when a sink cannot be asked."""
        account = self._account
        account.messages += len(messages)
        outcomes = [(message, self._outcome(message)) for message in messages]
        batch = Batch(
            TopicPartition(account.topic, partition),
            0,
            OffsetRange(messages[0].offset, messages[-1].offset + 1),
            tuple(outcome for _, outcome in outcomes if isinstance(outcome, Segment)),
            tuple(outcome for _, outcome in outcomes if isinstance(outcome, Reject)),
            0,
            CutReason.COUNT,
        )
        names = {
            message.offset: f"{outcome.project_id}/{outcome.replay_id}/{outcome.segment_id}"
            for message, outcome in outcomes
            if isinstance(outcome, Segment)
        }
        account.segments += len(batch.segments)
        account.rejects += len(batch.rejects)
        for sink in self._settings.sinks:
            if sink in PRESENCES or sink == "dead_letter":
                self._account_for(sink, batch, names)

    def _outcome(self, message: Message) -> Outcome | None:
        """What the message should have become; None when nothing is expected of it."""
        account = self._account
        if shed(message, self._gate, time.monotonic) is not None:
            account.shed += 1
            return None
        outcome = parse(message, self._rules)
        if isinstance(outcome, Segment):
            if (message.source.partition, message.offset) in self._letters.messages:
                account.given_up += 1
                return None
            at = believable(outcome.received, message.timestamp_ms)
            if at + outcome.retention_days * DAY_SECONDS < time.time():
                account.expired += 1
                return None
        return outcome

    def _account_for(self, sink: str, batch: Batch, names: dict[int, str]) -> None:
        """One sink's part of a chunk."""
        items = [item for item in items_of(batch, sink) if not self._refused(sink, item)]
        tally = self._account.sinks.setdefault(sink, Tally())
        tally.checked += len(items)
        absent = self._absent(sink, batch.source.partition, items)

        def of(item: Item, problem: str) -> Missing:
            offset = _offset(item)
            return Missing(sink, _name(item), problem, batch.source.partition, offset, names.get(offset, ""))

        for position, problem in sorted(absent.items()):
            tally.missing += problem == "missing"
            tally.differs += problem != "missing"
            found = of(items[position], problem)
            if tally.missing + tally.differs <= EXAMPLES_MAX:
                self._account.examples.append(found)
            self._told(found)
        if absent and self._per_second_max:
            wanted = [items[position] for position in sorted(absent)]
            self._write(sink, batch, [self._anew(sink, item) for item in wanted])
            # Dead letters are in an append-only topic: what the broker acknowledged is there.
            still = {} if sink == "dead_letter" else self._absent(sink, batch.source.partition, wanted)
            tally.repaired += len(wanted) - len(still)
            room = EXAMPLES_MAX - (tally.left - len(still))
            self._account.unrepaired += [of(wanted[place], why) for place, why in sorted(still.items())][
                : max(0, room)
            ]

    def _refused(self, sink: str, item: Item) -> bool:
        if (sink, _name(item)) not in self._letters.items:
            return False
        self._account.given_up += 1
        return True

    def _absent(self, sink: str, partition: int, items: Sequence[Item]) -> dict[int, str]:
        if sink == "dead_letter":
            known = self._letters.messages
            return {
                place: "missing" for place, item in enumerate(items) if (partition, _offset(item)) not in known
            }
        if not items:
            return {}
        if sink not in self._presences:
            self._presences[sink] = PRESENCES[sink](self._settings)
        return self._presences[sink].absent(items)

    def _anew(self, sink: str, item: Item) -> Item:
        """BigQuery remembers insert ids for a minute or so, and would not store what went meanwhile. The row's own
        identity is the column `row_id`, which stays."""
        if sink == "bigquery" and isinstance(item, RowItem):
            return msgspec.structs.replace(item, id=f"{item.id}-{self._run}")
        return item

    def _write(self, sink: str, batch: Batch, items: Sequence[Item]) -> None:
        """In small writes at the rate that is allowed. What a sink does not take is a failure of the account."""
        if sink not in self._sinks:
            self._sinks[sink] = build(sink, self._settings)
        at_once = max(1, min(WRITE_ITEMS_MAX, int(self._per_second_max)))
        for start in range(0, len(items), at_once):
            some = items[start : start + at_once]
            began = time.monotonic()
            # Another token than the batch's, and than an earlier repair's: ClickHouse would take the write for one
            # that it has done, which is just what is in doubt. Rows replace each other all the same.
            token = f"reconcile-{self._run}-{batch.id}:{sink}:{start}"
            try:
                self._write_patiently(sink, some, token)
            except SinkError as error:
                self._account.failures.append(f"{sink}, {len(some)} items of {batch.id}: {error}")
                return
            time.sleep(max(0.0, len(some) / self._per_second_max - (time.monotonic() - began)))

    def _write_patiently(self, sink: str, items: Sequence[Item], token: str) -> None:
        for attempt in range(WRITE_TRIES):
            try:
                self._sinks[sink].write(items, token, self._settings.sink_timeout_seconds)
                return
            except PermanentSinkError:
                raise
            except SinkError:
                if attempt + 1 == WRITE_TRIES:
                    raise
                time.sleep(0.5 * 2**attempt)

    def close(self) -> None:
        for presence in self._presences.values():
            with contextlib.suppress(Exception):
                presence.close()
        for sink in self._sinks.values():
            sink.close()


def _name(item: Item) -> str:
    """As dead letters name it."""
    if isinstance(item, BlobItem):
        return item.name
    if isinstance(item, RowItem):
        return f"{item.table}/{item.id}"
    return f"offset {_offset(item)}"


def _offset(item: Item) -> int:
    assert isinstance(item, BlobItem | RowItem | DeadLetterItem), item
    return item.offset


def moment(text: str, now: float) -> float:
    """Unix seconds of what an operator types: `90s`, `30m`, `2h`, `3d` before `now`, or a time in ISO 8601 (UTC
    where it names no zone). Raises ValueError.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": DAY_SECONDS}
    if text[-1:] in units and text[:-1].isdigit():
        return now - int(text[:-1]) * units[text[-1]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither an age like 2h nor a time like 2026-05-01T12:00") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def render(account: Account) -> Group:
    """For people: what was looked at, a line a sink, and the first of what is missing."""
    about = [
        f"{account.topic}, partition {span.partition}: [{span.start}, {span.stop})"
        + (f", {span.gone} offsets are no longer in the topic" if span.gone else "")
        + (f", {span.open} are not committed yet and were not looked at" if span.open else "")
        for span in account.spans
    ]
    about.append(
        f"{account.messages} messages: {account.segments} segments, {account.rejects} rejects, "
        f"{account.given_up} given up as dead letters, {account.shed} shed, {account.expired} past their retention"
    )
    table = Table("sink", "checked", "missing", "differs", *(["repaired"] if account.repairing else []), "")
    for name, tally in account.sinks.items():
        numbers = [tally.checked, tally.missing, tally.differs] + [tally.repaired] * account.repairing
        table.add_row(name, *(f"{number:,}" for number in numbers), "NOT OK" if tally.left else "ok")
    examples = [*_lines(account.examples, ""), *_lines(account.unrepaired, "still ")]
    return Group(*about, table, *examples, *account.notes, *(f"failed: {text}" for text in account.failures))


def _lines(told: Sequence[Missing], still: str) -> Iterator[str]:
    """The first SHOWN_MAX of each sink."""
    shown: Counter[str] = Counter()
    for one in told:
        shown[one.sink] += 1
        if shown[one.sink] <= SHOWN_MAX:
            where = f"segment {one.segment or '-'}, partition {one.partition} offset {one.offset}"
            yield f"{still}{one.problem}: {one.sink} {one.item} ({where})"
