"""Rebuilds refused items from their original messages.

Every process that can write to the dead-letter topic can forge a letter. Therefore, replaying a letter never
writes the letter's bytes: the named item is rebuilt from the original message with the current code, so that a
forged letter can neither change another project's data nor alter content. Replaying a letter requires that the
original message is still in its topic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ingest.core.model import OffsetRange, TopicPartition
from ingest.core.packing import INDEX_TABLE
from ingest.core.parse import parse
from ingest.operate.remake import batch_of, message_of
from ingest.reader.configuration import rules_of
from ingest.reader.encoding import Encoder, items_of
from ingest.reader.erasures import Erasures
from ingest.reader.tenant_gate import TenantGate, TenantRules
from ingest.settings import Settings
from tasks.kafka.letters import Label
from tasks.kafka.ranges import Bounds, Range, RangeReader
from tasks.refused import PACKED, name_of
from tasks.units import MiB
from tasks.wire import Blob, Item, Metric, Row, SinkName, TaskName, decode_items

BATCH = re.compile(r"(?P<topic>.+)-(?P<partition>[0-9]{1,9})-(?P<start>[0-9]{1,18})-(?P<stop>[0-9]{1,18})")
PACKED_SINKS = (SinkName.GCS, SinkName.CLICKHOUSE)
READ_BOUNDS = Bounds(messages_max=100_000, bytes_max=512 * MiB, seconds_max=120.0)


class OriginalMissing(Exception):
    """Raised if the message is no longer in its topic."""


class ItemNotProduced(Exception):
    """Raised if the message exists but does not produce this item."""


class Originals:
    """Reads the input topic. Caches the items of the range that was read most recently, because the letters of a
    batch are adjacent.

    The cache needs memory for the items of one batch.
    """

    def __init__(self, settings: Settings, erasures: Erasures) -> None:
        self._gate = TenantGate()
        self._settings = settings
        self._rules = rules_of(settings)
        self._reader: RangeReader | None = None
        self.follow(erasures)

    def follow(self, erasures: Erasures) -> None:
        """Sets the erasures to apply."""
        self._gate.decide(TenantRules(), erasures, 0)
        self._known: tuple[object, list[Item]] = (None, [])

    def rebuild(self, label: Label, sink: SinkName, named: Item) -> Item:
        """Returns the named item, rebuilt from its original message. Raises OriginalMissing, ItemNotProduced or
        RangeError."""
        topic = self._settings.kafka_topic
        if label.origin.topic != topic:
            raise ItemNotProduced(f"it is from topic {label.origin.topic!r}, but this deployment reads {topic}")
        wanted, packed = self._range(label, named)
        if self._known[0] != (wanted, sink, packed):
            self._known = ((wanted, sink, packed), list(self._items(wanted, sink, packed=packed)))
        for item in self._known[1]:
            same = item == named if isinstance(named, Metric) else name_of(item) == name_of(named)
            if same:
                return item
        raise ItemNotProduced(f"its original message, {topic} {wanted}, does not produce this item")

    def _range(self, label: Label, named: Item) -> tuple[Range, bool]:
        """Returns the range to read, and whether the item depends on the packed layout."""
        origin = label.origin
        packed = (isinstance(named, Blob) and PACKED.fullmatch(named.name) is not None) or (
            isinstance(named, Row) and named.table == INDEX_TABLE
        )
        if not packed and not isinstance(named, Metric):
            if origin.partition < 0 or origin.offset < 0:
                raise ItemNotProduced("it does not name its original message")
            return Range(origin.partition, origin.offset, origin.offset + 1), False
        batch = BATCH.fullmatch(label.batch_id)
        if batch is None or (batch["topic"], int(batch["partition"])) != (origin.topic, origin.partition):
            raise ItemNotProduced(f"{label.batch_id!r} is not a batch of {origin.topic}-{origin.partition}")
        start, stop = int(batch["start"]), int(batch["stop"])
        if not start < stop:
            raise ItemNotProduced(f"{label.batch_id!r} is an empty range")
        return Range(origin.partition, start, stop), packed

    def _items(self, wanted: Range, sink: SinkName, *, packed: bool) -> Iterator[Item]:
        topic = self._settings.kafka_topic
        if self._reader is None:
            group = f"{self._settings.kafka_group}-dlq-browser"
            self._reader = RangeReader(self._settings, topic, group=group, bounds=READ_BOUNDS)
        outcomes = [
            self._gate.screened(parse(message_of(record), self._rules)) for record in self._reader.read([wanted])
        ]
        if self._reader.gone.pop(wanted.partition, 0) or not outcomes:
            raise OriginalMissing(f"its original message, {topic} {wanted}, is no longer in the topic")
        source = TopicPartition(topic, wanted.partition)
        batch = batch_of(source, OffsetRange(wanted.start, wanted.stop), outcomes)
        if not packed:
            yield from items_of(batch, sink)
            return
        encoded = Encoder(PACKED_SINKS, self._settings.blobs_per_task, "", packed=True).encode(batch)
        for name, data in encoded.payloads.items():
            if TaskName.parse(name).sink is sink:
                yield from decode_items(sink, data)

    def close(self) -> None:
        """Closes the connection."""
        if self._reader is not None:
            self._reader.close()
