"""Computes the expected items of messages, with the reader's parser.

The following need not be in the sinks: dead letters (rejects, abandoned batches, refused items), erased replays,
disabled projects, and expired recordings. Messages that a rate limit dropped are not recorded, so they are
reported as missing from every sink.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ingest.core.model import Batch, Drop, DropReason, Message, OffsetRange, Outcome, Segment
from ingest.core.parse import parse
from ingest.core.parse.rows import plausible_time
from ingest.operate.dlq import Selection, letters
from ingest.operate.reconcile.account import Account, ReconcileFailed
from ingest.operate.reconcile.topic import Span
from ingest.operate.remake import batch_of
from ingest.reader.configuration import rules_of
from ingest.reader.encoding import items_of
from ingest.reader.erasures import erasures_of
from ingest.reader.parsing.inline import shed
from ingest.reader.tenant_gate import TenantGate, TenantRules
from ingest.reader.tenant_rules import rules_of_decisions
from ingest.settings import Settings
from tasks.kafka.decisions import load
from tasks.refused import name_of
from tasks.wire import Blob, DeadLetter, Item, Row, SinkName

DEAD_LETTERS_MAX = 1_000_000
DAY_SECONDS = 86_400


class DeadLetterOrigins:
    """The origins of dead letters in these spans: positions of messages, and refused items by sink, name and
    project.

    Rows of two projects may have the same table and row id, so `owners` lists the projects of each refused item.
    None stands for an unknown project and matches every project.

    Raises DeadLettersUnavailable if the letters cannot be read, and ReconcileFailed if there are more than
    DEAD_LETTERS_MAX letters.
    """

    def __init__(self, settings: Settings, spans: Iterable[Span]) -> None:
        self.messages: set[tuple[int, int]] = set()
        self.owners: dict[tuple[str, str], set[int | None]] = {}
        limits = {span.partition: (span.start, span.stop) for span in spans}
        for letter in letters(settings, Selection(include_replayed=True)):
            origin = letter.label.origin
            start, stop = limits.get(origin.partition, (0, 0))
            if origin.topic != settings.kafka_topic or (not start <= origin.offset < stop and not letter.sink):
                continue
            if letter.sink:
                self.owners.setdefault((letter.sink, letter.item), set()).add(letter.project_id)
            else:
                self.messages.add((origin.partition, origin.offset))
            if len(self.messages) + len(self.owners) > DEAD_LETTERS_MAX:
                raise ReconcileFailed(f"more than {DEAD_LETTERS_MAX} dead letters: choose a smaller range")

    def refused(self, sink: str, item: Item, project_id: int | None) -> bool:
        """Returns True if this sink refused this item of this project."""
        owners = self.owners.get((sink, name_of(item)), set())
        return None in owners or project_id in owners


@dataclass(frozen=True, slots=True)
class Chunk:
    """Messages of one partition as a batch, with the segment of each offset: `project/replay/segment`."""

    batch: Batch
    segments: dict[int, str]

    def project_of(self, item: Item) -> int | None:
        """Returns the project of the item's segment; None for a dead letter."""
        project, _, _ = self.segments.get(offset_of(item), "").partition("/")
        return int(project) if project else None


class ExpectedItems:
    """Computes the expected items. Counts, by reason, the messages and items that need not be in the sinks."""

    def __init__(self, settings: Settings, account: Account) -> None:
        self._account = account
        self._rules = rules_of(settings)
        self._gate = TenantGate()
        self.given_up = DeadLetterOrigins(settings, account.spans)
        in_force = {key: entry.value for key, entry in load(settings).entries.items() if entry.value is not None}
        rules = TenantRules(rules_of_decisions(in_force).killed)  # messages dropped by a limit are not recorded
        self._gate.decide(rules, erasures_of(in_force, time.time()), 0)

    def of(self, messages: Sequence[Message]) -> Chunk:
        """Returns the expected items of these messages, which must be from one partition and in order."""
        outcomes = [(message.offset, self._outcome(message)) for message in messages]
        segments = {offset: outcome for offset, outcome in outcomes if isinstance(outcome, Segment)}
        offsets = OffsetRange(messages[0].offset, messages[-1].offset + 1)
        batch = batch_of(messages[0].source, offsets, (outcome for _, outcome in outcomes))
        self._account.messages += len(messages)
        self._account.segments += len(batch.segments)
        self._account.rejects += len(batch.rejects)
        return Chunk(
            batch, {offset: f"{s.project_id}/{s.replay_id}/{s.segment_id}" for offset, s in segments.items()}
        )

    def items(self, chunk: Chunk, sink: str) -> Iterator[Item]:
        """Yields the expected items of one sink."""
        for item in items_of(chunk.batch, SinkName(sink)):
            if self.given_up.refused(sink, item, chunk.project_of(item)):
                self._account.given_up += 1
            else:
                yield item

    def _outcome(self, message: Message) -> Outcome | None:
        """Returns the expected outcome of a message; None if no item is expected."""
        account = self._account
        drop = shed(message, self._gate, time.monotonic)
        outcome = drop or self._gate.screened(parse(message, self._rules))
        if isinstance(outcome, Drop):
            if outcome.reason is DropReason.ERASED:
                account.erased += 1
            else:
                account.shed += 1
            return None
        if isinstance(outcome, Segment):
            if (message.source.partition, message.offset) in self.given_up.messages:
                account.given_up += 1
                return None
            at = plausible_time(outcome.received, message.timestamp_ms)
            if at + outcome.retention_days * DAY_SECONDS < time.time():
                account.expired += 1
                return None
        return outcome


def offset_of(item: Item) -> int:
    """Returns the offset of the item's message."""
    assert isinstance(item, Blob | Row | DeadLetter), item
    return item.offset
