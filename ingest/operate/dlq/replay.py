"""Replays dead letters and marks them.

A message is produced to its original topic. An item is written only to the sink that refused it, because the other
sinks already have it. The mark is written after the broker or sink has acknowledged the write, so that a second
replay skips the letter. Equal letters, which exist if a batch was flushed twice, are replayed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ingest.operate.dlq.erased import ERASED, current_erasures, is_erased, may_be_erased
from ingest.operate.dlq.letters import UNKNOWN_LABEL, DeadLettersUnavailable, Letter, Selection, letters
from ingest.operate.dlq.originals import ItemNotProduced, OriginalMissing, Originals
from ingest.reader.configuration import rules_of
from ingest.settings import Settings
from tasks.errors import SinkError
from tasks.kafka.letters import REPLAYED_FROM, Mark, SealStatus, digest, sealed
from tasks.kafka.producing import AcknowledgedProducer, NotProduced
from tasks.kafka.ranges import RangeError
from tasks.refused import revive
from tasks.sinks import build
from tasks.sinks.base import Sink
from tasks.wire import Item


@dataclass(slots=True)
class ReplaySummary:
    """Result of a replay. `failed` has (letter id, error) for each letter that failed."""

    produced: int = 0
    written: int = 0
    repeats: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


ERASURES_RELOAD_SECONDS = 5.0
"""Interval at which erasures are reloaded during a long run."""


class NotReplayed(Exception):
    """Raised if a letter is not replayed. The message states why, and how to replay the letter anyway."""


def replay(
    settings: Settings,
    selection: Selection,
    *,
    per_second_max: float,
    dry_run: bool = False,
    unverified: bool = False,
    done: Callable[[Letter, str], None] = lambda letter, outcome: None,
) -> ReplaySummary:
    """Replays every selected letter, at most `per_second_max` per second, and marks it; `done` receives each
    outcome.

    `unverified`: letters without a valid seal are replayed too. An item whose original message no longer exists is
    written as stored in its letter; if the letter has no valid seal, this also requires `unverified`. Raises
    DeadLettersUnavailable if letters cannot be read; errors for individual letters are reported in the result.
    """
    summary = ReplaySummary()
    sent: set[tuple[object, ...]] = set()
    sender = _Sender(settings, unverified=unverified)
    next_at = time.monotonic()
    try:
        for letter in letters(settings, selection):
            repeat = letter.identity in sent
            if not dry_run and not repeat:
                time.sleep(max(0.0, next_at - time.monotonic()))
                next_at = max(next_at, time.monotonic()) + 1.0 / per_second_max
            outcome = _replay_one(sender, letter, summary, repeat=repeat, dry_run=dry_run)
            if outcome is not None:
                sent.add(letter.identity)
            done(letter, outcome or f"failed: {summary.failed[-1][1]}")
    finally:
        sender.close()
    return summary


def _replay_one(
    sender: _Sender, letter: Letter, summary: ReplaySummary, *, repeat: bool, dry_run: bool
) -> str | None:
    """Returns the outcome, or None if the replay failed; the summary records the failure."""
    try:
        item = None if repeat else sender.item_to_write(letter)
        if not dry_run:
            if not repeat:
                sender.send(letter, item)
            sender.mark(letter)
    except (SinkError, NotProduced, RangeError, NotReplayed, DeadLettersUnavailable) as failure:
        summary.failed.append((letter.id, str(failure)))
        return None
    if repeat:
        summary.repeats += 1
        return "repeat"
    if item is None:
        summary.produced += 1
        return f"produced to {letter.label.origin.topic}"
    summary.written += 1
    return f"written to {letter.sink}"


class _Sender:
    """Produces messages and marks, and writes items to sinks. Each call returns once the data is durable."""

    def __init__(self, settings: Settings, *, unverified: bool) -> None:
        self._settings = settings
        self._unverified = unverified
        self._erasures, self._loaded_at = current_erasures(settings), time.monotonic()
        self._rules = rules_of(settings)
        self._producer = AcknowledgedProducer(settings)
        self._originals = Originals(settings, self._erasures)
        self._sinks: dict[str, Sink[Item]] = {}

    def item_to_write(self, letter: Letter) -> Item | None:
        """Returns the item to write, or None if the letter holds a message, which is produced instead. Raises
        NotReplayed, or RangeError.
        """
        if letter.label is UNKNOWN_LABEL:
            raise NotReplayed("it is not a letter of this system")
        self._refresh_erasures()
        if is_erased(letter, self._erasures, self._rules):
            raise NotReplayed(ERASED)
        if letter.sealed is SealStatus.NO and not self._unverified:
            raise NotReplayed("it has no valid seal; add --unverified to replay it anyway")
        if letter.label.refusal is None:
            topic, input_topic = letter.label.origin.topic, self._settings.kafka_topic
            if topic != input_topic:
                raise NotReplayed(f"it is from topic {topic!r}, but this deployment reads {input_topic}")
            return None
        if letter.sink not in self._settings.sinks:
            raise NotReplayed(f"the sink {letter.sink!r} is not enabled")
        try:
            sink, named = revive(letter.label, letter.value)
            return self._originals.rebuild(letter.label, sink, named)
        except (ValueError, ItemNotProduced) as error:
            raise NotReplayed(str(error)) from error
        except OriginalMissing as error:
            if self._unverified or letter.sealed is SealStatus.YES:
                if may_be_erased(letter, self._erasures):
                    raise NotReplayed(ERASED) from error
                return named
            raise NotReplayed(
                f"{error}: the item cannot be verified; add --unverified to write it as stored in the letter"
            ) from error

    def _refresh_erasures(self) -> None:
        """Raises DeadLettersUnavailable."""
        if time.monotonic() - self._loaded_at < ERASURES_RELOAD_SECONDS:
            return
        self._erasures, self._loaded_at = current_erasures(self._settings), time.monotonic()
        self._originals.follow(self._erasures)

    def send(self, letter: Letter, item: Item | None) -> None:
        """Writes the item to its sink, or the message to its topic."""
        token = f"{self._settings.dlq_topic}-{letter.id}"
        if item is None:
            own_headers = tuple(pair for pair in letter.label.originals if pair[0] != REPLAYED_FROM)
            headers = (*own_headers, (REPLAYED_FROM, token.encode()))
            value = None if letter.tombstone else letter.value
            self._producer.produce(letter.label.origin.topic, letter.key, value, headers)
            return
        if letter.sink not in self._sinks:
            self._sinks[letter.sink] = build(letter.sink, self._settings)
        self._sinks[letter.sink].write([item], token, self._settings.sink_timeout_seconds)

    def mark(self, letter: Letter) -> None:
        """Writes a sealed record to the dead-letter topic, which marks this letter as replayed."""
        mark = Mark(letter.id, digest(letter.key, letter.value))
        topic = self._settings.dlq_topic
        headers = sealed(self._settings.seals, topic, None, b"", mark.encode())
        self._producer.produce(topic, None, b"", headers)

    def close(self) -> None:
        self._originals.close()
        for sink in self._sinks.values():
            sink.close()
