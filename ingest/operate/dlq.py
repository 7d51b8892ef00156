"""The dead-letter topic as operators see it: list, show, replay (docs/decisions/007-dead-letters-are-a-sink.md).

Two kinds of letters lie there. A *reject* is an original message that never parsed; replaying it produces it to
the topic that it came from. A *refused item* is a row or blob that one sink refused; replaying it writes
it to that sink alone, since all others have it.

A replayed letter is marked by another record in the same topic (header `replayed`), so the mark is as durable
as the letter and a second replay skips it. Equal letters (a batch may be flushed twice) are replayed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from ingest.settings import Settings
from tasks.errors import SinkError
from tasks.kafka.ranges import Bounds, RangeError, RangeReader, TopicMissing
from tasks.kafka.records import Record
from tasks.refused import revive
from tasks.sinks import build
from tasks.sinks.dead_letter.sink import producer_options

MARK = "replayed"
FROM = "replayed_from"
OWN_HEADERS = frozenset(
    ("reason", "error", "sink", "kind", "item", "topic", "partition", "offset", "batch_id", "first_seen", FROM)
)
SCAN_SECONDS_MAX = 600.0
CALL_SECONDS_MAX = 15.0


class DeadLettersUnavailable(Exception):
    """The dead-letter topic could not be read or written. The text says why."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `partition` and `offset` are its place in the dead-letter topic, `origin` the message's.

    `sink` is empty for a reject. `timestamp_ms` is when it was written there, unix milliseconds. `replayed`: it
    was sent again already, or is what came back of such a message: neither is sent again unless asked for.
    """

    partition: int
    offset: int
    timestamp_ms: int
    reason: str
    sink: str
    error: str
    origin: tuple[str, int, int]
    batch_id: str
    replayed: bool
    key: bytes | None = field(repr=False)
    value: bytes = field(repr=False)
    headers: tuple[tuple[str, bytes | None], ...] = field(repr=False)

    @property
    def id(self) -> str:
        """How operators name it."""
        return f"{self.partition}-{self.offset}"

    @property
    def identity(self) -> tuple[object, ...]:
        """What equal letters share: one message or item, refused by one sink."""
        return (self.origin, self.sink, dict(self.headers).get("item"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but the bytes, which are counted."""
        plain = {k: v for k, v in asdict(self).items() if k not in ("key", "value", "headers", "origin")}
        topic, partition, offset = self.origin
        return {
            "id": self.id,
            **plain,
            "origin": f"{topic}-{partition}-{offset}",
            "value_bytes": len(self.value),
            "headers": {name: _text(value) for name, value in self.headers},
        }


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters: each given field must match; `ids` are `partition-offset` in the dead-letter topic."""

    reason: str | None = None
    sink: str | None = None
    ids: frozenset[str] = frozenset()
    include_replayed: bool = False

    def takes(self, letter: Letter) -> bool:
        return (
            (self.reason is None or letter.reason == self.reason)
            and (self.sink is None or letter.sink == self.sink)
            and (not self.ids or letter.id in self.ids)
            and (self.include_replayed or not letter.replayed)
        )


@dataclass(slots=True)
class Replayed:
    """What a replay did. `failed` holds (letter id, error)."""

    produced: int = 0
    written: int = 0
    repeats: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def letters(settings: Settings, selection: Selection) -> Iterator[Letter]:
    """All selected letters, a partition after the other, in the order they were written.

    The topic is read twice, for the marks first, so that memory grows with the marks and not with the letters.
    Raises DeadLettersUnavailable.
    """
    marked = {mark for message in _scan(settings) if (mark := _header(message, MARK))}
    for message in _scan(settings):
        if _header(message, MARK) is None:
            letter = _letter(message, marked)
            if selection.takes(letter):
                yield letter


def mentioning(settings: Settings, text: bytes) -> Iterator[Letter]:
    """All letters, replayed ones too, in whose bytes or item's name `text` occurs. Reads the topic once.

    Whether a letter was replayed is not known here. Raises DeadLettersUnavailable.
    """
    for message in _scan(settings):
        if _header(message, MARK) is None:
            letter = _letter(message, ())
            if text in letter.value or text in (dict(letter.headers).get("item") or b""):
                yield letter


def replay(
    settings: Settings,
    selection: Selection,
    *,
    per_second_max: float,
    dry_run: bool = False,
    done: Callable[[Letter, str], None] = lambda letter, outcome: None,
) -> Replayed:
    """Sends every selected letter where it belongs, at most `per_second_max` a second, and marks it.

    A mark is written only after the replayed message was acknowledged by the broker, or the sink took the item.
    """
    summary = Replayed()
    seen: set[tuple[object, ...]] = set()
    writer = _Writer(settings)
    next_at = time.monotonic()
    try:
        for letter in letters(settings, selection):
            repeat = letter.identity in seen
            seen.add(letter.identity)
            if not dry_run and not repeat:
                time.sleep(max(0.0, next_at - time.monotonic()))
                next_at = max(next_at, time.monotonic()) + 1.0 / per_second_max
            outcome = _replay_one(writer, letter, summary, repeat=repeat, dry_run=dry_run)
            done(letter, outcome)
    finally:
        writer.close()
    return summary


def _replay_one(writer: _Writer, letter: Letter, summary: Replayed, *, repeat: bool, dry_run: bool) -> str:
    try:
        if repeat:
            summary.repeats += 1
        elif letter.sink:
            summary.written += 1
            if not dry_run:
                writer.write(letter)
        else:
            summary.produced += 1
            if not dry_run:
                writer.produce(letter)
        if not dry_run:
            writer.mark(letter)
    except (SinkError, DeadLettersUnavailable) as failure:
        summary.failed.append((letter.id, str(failure)))
        if letter.sink:
            summary.written -= 1
        else:
            summary.produced -= 1
        return f"failed: {failure}"
    if repeat:
        return "repeat"
    return f"written to {letter.sink}" if letter.sink else f"produced to {letter.origin[0]}"


class _Writer:
    """Produces messages and marks, and writes items to sinks; each call returns when it is durable."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer | None = None
        self._sinks: dict[str, Any] = {}

    def produce(self, letter: Letter) -> None:
        kept = [(name, value) for name, value in letter.headers if name not in OWN_HEADERS]
        origin = f"{self._settings.dlq_topic}-{letter.id}".encode()
        self._send(
            letter.origin[0] or self._settings.kafka_topic, letter.key, letter.value, [*kept, (FROM, origin)]
        )

    def write(self, letter: Letter) -> None:
        if letter.sink not in self._sinks:
            self._sinks[letter.sink] = build(letter.sink, self._settings)
        item = revive(letter.sink, letter.value, dict(letter.headers))
        token = f"{self._settings.dlq_topic}-{letter.id}"
        self._sinks[letter.sink].write([item], token, self._settings.sink_timeout_seconds)

    def mark(self, letter: Letter) -> None:
        self._send(self._settings.dlq_topic, None, b"", [(MARK, letter.id.encode())])

    def _send(self, topic: str, key: bytes | None, value: bytes, headers: list[tuple[str, bytes | None]]) -> None:
        if self._producer is None:
            self._producer = Producer(producer_options(self._settings))
        failures: list[str] = []
        answered: list[bool] = []

        def delivered(error: KafkaError | None, _message: KafkaMessage) -> None:
            answered.append(True)
            if error is not None:
                failures.append(error.str())

        try:
            self._producer.produce(topic, value, key, headers=list(headers), on_delivery=delivered)
        except (KafkaException, BufferError) as failure:
            raise DeadLettersUnavailable(f"could not produce to {topic}: {failure}") from failure
        self._producer.flush(CALL_SECONDS_MAX)
        if failures or not answered:
            raise DeadLettersUnavailable(f"{topic} did not take the message: {(failures or ['time-out'])[0]}")

    def close(self) -> None:
        for sink in self._sinks.values():
            sink.close()


def _scan(settings: Settings) -> Iterator[Record]:
    """Every record of the dead-letter topic up to its end as of now, a partition after the other."""
    try:
        with RangeReader(settings, settings.dlq_topic, bounds=Bounds(seconds_max=SCAN_SECONDS_MAX)) as topic:
            yield from topic.read_all()
    except TopicMissing as error:
        raise DeadLettersUnavailable(f"{error}; run `replays-ingest migrate`") from error
    except RangeError as error:
        raise DeadLettersUnavailable(str(error)) from error


def _letter(record: Record, marked: Iterable[str]) -> Letter:
    named = {name: _text(value) for name, value in record.headers}
    partition, offset = record.partition, record.offset
    origin = (named.get("topic", ""), _number(named.get("partition")), _number(named.get("offset")))
    return Letter(
        partition=partition,
        offset=offset,
        timestamp_ms=record.timestamp_ms,
        reason=named.get("reason", "unknown"),
        sink=named.get("sink", ""),
        error=named.get("error", ""),
        origin=origin,
        batch_id=named.get("batch_id", ""),
        replayed=f"{partition}-{offset}" in marked or FROM in named,
        key=record.key,
        value=record.value,
        headers=record.headers,
    )


def _header(record: Record, name: str) -> str | None:
    return next((_text(value) for each, value in record.headers if each == name), None)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _number(text: str | None) -> int:
    return int(text) if text and text.lstrip("-").isdigit() else -1
