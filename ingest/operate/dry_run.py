"""Dry run of the reader, with real messages and the real pipeline, but with in-memory sinks.

A dry run uses its own consumer group and never commits, so it does not affect readers. A dry run requires only
Kafka.
"""

from __future__ import annotations

import os
import queue
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Reject, Segment
from ingest.core.pipeline import Pipeline
from ingest.reader.configuration import consumer_config, limits_of, rules_of
from ingest.reader.encoding import Encoder
from ingest.reader.kafka import KafkaSource
from ingest.reader.parsing.inline import InlineParser
from ingest.reader.runtime import Runtime
from ingest.reader.tenant_gate import TenantGate
from ingest.settings import Settings
from tasks.kafka.topics import Topics
from tasks.sinks.memory import MemorySink
from tasks.wire import TaskName, decode_items

SILENT_SECONDS = 5.0


class DryRun:
    """One dry run. Its attributes hold the items that would have been written.

    `sinks`: memory sinks by name. `reasons`, `warnings`: message counts. `tasks`: (sink, items, bytes) of every
    flush task.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sinks: dict[str, MemorySink] = {name: MemorySink(name) for name in settings.sinks}
        self.reasons: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.tasks: list[tuple[str, int, int]] = []
        self.messages = 0
        self.heard_at = time.monotonic()
        self._inbox: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
        self._encoder = Encoder(
            settings.sinks, settings.blobs_per_task, "dry-run", packed=settings.gcs_layout == "packed"
        )

    def run(self, messages_max: int, seconds_max: float) -> None:
        """Runs until it has read `messages_max` messages, `seconds_max` have passed, or no message has arrived for
        a while.

        Raises ingest.reader.kafka.ConsumerFailed, and ClusterUnreachable if no broker responds at the start.
        """
        settings = self.settings
        Topics(settings).verify_reachable()  # otherwise the result would be the same as for an empty topic
        config = {**consumer_config(settings), "group.id": f"{settings.kafka_group}-dry-run-{os.getpid()}"}
        config.pop("group.instance.id", None)
        source = _UncommittedSource(config, settings.kafka_topic, self._inbox, "earliest")
        parser = InlineParser(rules_of(settings), TenantGate(), time.monotonic)
        pipeline = Pipeline(limits_of(settings))
        runtime = Runtime(pipeline, source, self, parser, self._inbox, time.monotonic, self._observe)
        source.subscribe(runtime.feed, runtime.drain)
        ends_at = time.monotonic() + seconds_max
        stop_requested = False
        while runtime.stopped is None:
            runtime.step()
            now = time.monotonic()
            silent = self.messages > 0 and now - self.heard_at > SILENT_SECONDS
            if not stop_requested and (self.messages >= messages_max or now > ends_at or silent):
                stop_requested = True
                self._inbox.put(on.ShutdownRequested())
        source.close()

    # Replaces the workers

    def submit(self, command: do.Dispatch | do.Park | do.Renew | do.Discard | do.Recut) -> None:
        """Encodes a stage as if to send it to workers, decodes it, and writes the items to the memory sinks."""
        if not isinstance(command, do.Dispatch):
            return
        batch, stage = command.batch, command.stage
        for name, data in self._encoder.encode(batch).payloads.items():
            if not name.startswith(f"{stage}/"):
                continue
            sink = TaskName.parse(name).sink
            items = decode_items(sink, data)
            self.tasks.append((sink, len(items), len(data)))
            self.sinks[sink].write(items, name, self.settings.sink_timeout_seconds)
        self._inbox.put(on.FlushSucceeded(batch.id, batch.epoch, stage))

    def stop(self, deadline_seconds: float) -> None:
        """Does nothing."""

    def _observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        if not isinstance(event, on.MessageParsed):
            return
        self.messages += 1
        self.heard_at = time.monotonic()
        if isinstance(event.outcome, Reject):
            self.reasons[event.outcome.reason] += 1
        elif isinstance(event.outcome, Segment):
            self.warnings.update(event.outcome.warnings)

    # Results

    def as_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        return {
            "messages": self.messages,
            "rejects": dict(self.reasons),
            "warnings": dict(self.warnings),
            "sinks": {
                name: {
                    "tasks": sum(sink == name for sink, _, _ in self.tasks),
                    "items": sum(items for sink, items, _ in self.tasks if sink == name),
                    "bytes": sum(size for sink, _, size in self.tasks if sink == name),
                }
                for name in self.sinks
            },
        }

    def render(self) -> RenderableType:
        """Returns the result formatted for a terminal."""
        table = Table("sink", "flush tasks", "items", "bytes", title=f"{self.messages} messages, nothing written")
        for name, sink in self.as_dict()["sinks"].items():
            table.add_row(name, f"{sink['tasks']:,}", f"{sink['items']:,}", f"{sink['bytes']:,}")
        notes = Table("problem", "messages")
        for name, count in (*self.reasons.most_common(), *self.warnings.most_common()):
            notes.add_row(name, f"{count:,}")
        return Group(table, notes) if notes.row_count else table


class _UncommittedSource(KafkaSource):
    """Reports every commit as stored without storing it."""

    def commit(self, command: do.Commit) -> None:
        self._inbox.put(on.Committed(command.source, command.epoch, command.offset, command.record))
