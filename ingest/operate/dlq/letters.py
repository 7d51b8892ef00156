"""Reads the dead-letter topic and detects which letters were replayed.

A replayed letter is marked by another record in the same topic, so the mark is as durable as the letter. If a
replayed message is rejected again, it becomes another letter. The new letter also counts as replayed if its bytes
match the mark; its headers prove nothing, because any producer can send them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ingest.core.parse.envelope import project_of
from ingest.settings import Settings
from tasks.kafka.letters import REPLAYED_FROM, Label, Origin, SealStatus, decode, decode_mark, digest, examine
from tasks.kafka.ranges import Bounds, RangeError, RangeReader, TopicMissing
from tasks.kafka.records import Record
from tasks.refused import OBJECT

SCAN_SECONDS_MAX = 600.0
MARKS_MAX = 1_000_000
UNKNOWN_LABEL = Label("unknown", "", Origin("", -1, -1), "")
"""Reason of a record that is not a letter of this system."""


class DeadLettersUnavailable(Exception):
    """Raised if the dead-letter topic could not be read or written. The message states why."""


class _RowProject(msgspec.Struct):
    """The project of a row."""

    project_id: int | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `partition` and `offset` are the letter's position in the dead-letter topic; its origin is
    in `label`. `timestamp_ms` is the letter's write time, in Unix milliseconds. `replayed`: the letter was already
    replayed, or is a replayed message that was rejected again. Replayed letters are skipped unless requested.
    `tombstone`: the value is null. `sealed`: result of verifying the letter's seal.
    """

    partition: int
    offset: int
    timestamp_ms: int
    label: Label
    replayed: bool
    sealed: SealStatus
    key: bytes | None = field(repr=False)
    value: bytes = field(repr=False)
    tombstone: bool = False

    @property
    def id(self) -> str:
        """Id for operators."""
        return f"{self.partition}-{self.offset}"

    @property
    def reason(self) -> str:
        """Stable reason name."""
        return self.label.reason

    @property
    def sink(self) -> str:
        """The sink that refused the item; empty for a message."""
        return self.label.refusal.sink if self.label.refusal else ""

    @property
    def item(self) -> str:
        """The refused item's name within its sink; empty for a message."""
        return self.label.refusal.item if self.label.refusal else ""

    @property
    def project_id(self) -> int | None:
        """The project of the message, row or object; None if unknown."""
        if self.label.refusal is None:
            return project_of(self.value)
        if own := OBJECT.fullmatch(self.item):
            return int(own["project"])
        try:
            return msgspec.json.decode(self.value, type=_RowProject).project_id
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    @property
    def identity(self) -> tuple[object, ...]:
        """Identity shared by duplicates: letters for the same message, or for the same item refused by the same
        sink.

        Metrics belong to a whole batch, and several may have the same name.
        """
        label = self.label
        whole = (label.batch_id, digest(self.key, self.value)) if label.origin.offset < 0 else ()
        return (label.origin, self.sink, self.item, whole)

    def as_dict(self) -> dict[str, Any]:
        """Returns the letter as JSON values, with the length of the bytes instead of the bytes. `headers` are
        those of the original message.
        """
        label = self.label
        return {
            "id": self.id,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp_ms": self.timestamp_ms,
            "reason": label.reason,
            "sink": self.sink,
            "kind": label.refusal.kind if label.refusal else "message",
            "item": self.item,
            "error": label.error,
            "batch_id": label.batch_id,
            "first_seen_ms": label.first_seen_ms,
            "replayed": self.replayed,
            "sealed": self.sealed.value,
            "origin": str(label.origin),
            "value_bytes": None if self.tombstone else len(self.value),
            "headers": {name: (value or b"").decode("utf-8", "replace") for name, value in label.originals},
        }


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects letters: all given fields must match; `ids` are `partition-offset` in the dead-letter topic."""

    reason: str | None = None
    sink: str | None = None
    ids: frozenset[str] = frozenset()
    include_replayed: bool = False

    def matches(self, letter: Letter) -> bool:
        """Returns True if the letter is selected."""
        return (
            (self.reason is None or letter.reason == self.reason)
            and (self.sink is None or letter.sink == self.sink)
            and (not self.ids or letter.id in self.ids)
            and (self.include_replayed or not letter.replayed)
        )


def letters(settings: Settings, selection: Selection) -> Iterator[Letter]:
    """Yields all selected letters, by partition, in write order.

    The topic is read twice, first for the marks, so that memory grows with the number of marks (at most MARKS_MAX)
    and not with the number of letters. Raises DeadLettersUnavailable.
    """
    marks = _read_marks(settings)
    for record in _scan(settings):
        letter = _letter(record, marks, settings)
        if letter is not None and selection.matches(letter):
            yield letter


def letters_containing(settings: Settings, texts: Iterable[str]) -> Iterator[Letter]:
    """Yields all letters, including replayed letters, that contain one of these strings.

    Reads the topic once; `replayed` is not set. Raises DeadLettersUnavailable.
    """
    wanted = tuple(text.encode() for text in texts)
    for record in _scan(settings):
        parts = (record.value, record.key or b"", *(value or b"" for _, value in record.headers))
        if any(text in part for text in wanted for part in parts):
            letter = _letter(record, {}, settings)
            if letter is not None:
                yield letter


def _read_marks(settings: Settings) -> dict[str, tuple[str, SealStatus]]:
    """Returns the digest of each replayed letter (empty if the mark has none) and whether its mark is sealed, by
    letter id.

    A sealed mark is never replaced.
    """
    marks: dict[str, tuple[str, SealStatus]] = {}
    for record in _scan(settings):
        mark = decode_mark(record.headers, record.key, record.value)
        if mark is not None:
            state = _seal_status(settings, record)
            if state is SealStatus.YES or marks.get(mark.letter_id, ("", state))[1] is not SealStatus.YES:
                marks[mark.letter_id] = mark.digest, state
            if len(marks) > MARKS_MAX:
                raise DeadLettersUnavailable(
                    f"topic {settings.dlq_topic} has more than {MARKS_MAX} marks of replayed letters: "
                    "shorten its retention"
                )
    return marks


def _letter(record: Record, marks: Mapping[str, tuple[str, SealStatus]], settings: Settings) -> Letter | None:
    """Returns the letter in this record; None if the record is a mark."""
    if decode_mark(record.headers, record.key, record.value) is not None:
        return None
    label, state = decode(record.headers) or UNKNOWN_LABEL, _seal_status(settings, record)
    return Letter(
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        label=label,
        replayed=_is_replayed(record, label, state, marks, settings.dlq_topic),
        sealed=state,
        key=record.key,
        value=record.value,
        tombstone=record.tombstone,
    )


def _seal_status(settings: Settings, record: Record) -> SealStatus:
    value = None if record.tombstone else record.value
    return examine(settings.seals, settings.dlq_topic, record.key, value, record.headers)


def _is_replayed(
    record: Record, label: Label, state: SealStatus, marks: Mapping[str, tuple[str, SealStatus]], dlq_topic: str
) -> bool:
    """Returns whether a mark applies to the record. An unsealed mark does not apply to a sealed letter, because
    anyone who can write to the topic can write unsealed marks.
    """

    def applicable_mark(letter_id: str) -> str | None:
        mark, by = marks.get(letter_id, (None, SealStatus.NO))
        return mark if by is SealStatus.YES or state is not SealStatus.YES else None

    mark = applicable_mark(f"{record.partition}-{record.offset}")
    if mark is not None:
        return mark in ("", digest(record.key, record.value))
    came_from = (dict(label.originals).get(REPLAYED_FROM) or b"").decode("utf-8", "replace")
    mark = applicable_mark(came_from.removeprefix(f"{dlq_topic}-"))
    return mark is not None and mark == digest(record.key, record.value)


def _scan(settings: Settings) -> Iterator[Record]:
    """Yields every record of the dead-letter topic up to its current end, by partition."""
    topic, group = settings.dlq_topic, f"{settings.kafka_group}-dlq-browser"
    try:
        with RangeReader(settings, topic, group=group, bounds=Bounds(seconds_max=SCAN_SECONDS_MAX)) as reader:
            yield from reader.read_all()
    except TopicMissing as error:
        raise DeadLettersUnavailable(f"{error}; run `replays-ingest migrate`") from error
    except RangeError as error:
        raise DeadLettersUnavailable(str(error)) from error
