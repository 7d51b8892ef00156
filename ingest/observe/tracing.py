"""Traces batches through the reader to each sink, continuing the trace context of their messages.

The parent of a batch's span is taken from the first message that has a W3C `traceparent` header. The trace
contexts of later messages become span links, so that each batch belongs to one trace. Disabled by default.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, Message, TopicPartition
from tasks.observe import telemetry

CONTEXTS_MAX = 4096  # traceparents kept per partition until their batch is cut
LINKS_MAX = 32
HEADER = telemetry.HEADER


class Tracing:
    """The loop's thread calls `polled` and `observe`, and the dispatcher's thread calls `begin`. A lock protects
    the state.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contexts: dict[TopicPartition, deque[tuple[int, str]]] = {}
        self._spans: dict[tuple[str, int], Any] = {}

    def polled(self, messages: Sequence[Message]) -> None:
        """Records the trace context of these messages."""
        if telemetry.tracer() is None:
            return
        for message in messages:
            for name, value in message.headers:
                if name.lower() == HEADER and value:
                    with self._lock:
                        kept = self._contexts.setdefault(message.source, deque(maxlen=CONTEXTS_MAX))
                        kept.append((message.offset, value.decode("ascii", "replace")))

    def begin(self, batch: Batch) -> str:
        """Starts the span of a batch at the first call. Returns the traceparent for the batch's tasks, or "" if
        tracing is disabled."""
        tracer = telemetry.tracer()
        if tracer is None:
            return ""
        with self._lock:
            span = self._spans.get((batch.id, batch.epoch))
            if span is None:
                span = self._spans[batch.id, batch.epoch] = self._start(tracer, batch)
        return telemetry.traceparent_of(span)

    def observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        """Ends spans of settled batches and of released or lost partitions."""
        if telemetry.tracer() is None or isinstance(event, on.MessageParsed):
            return
        for command in commands:
            if isinstance(command, do.Discard):
                self._end(command.batch.id, "abandoned" if isinstance(event, on.BatchAbandoned) else "settled")
            elif isinstance(command, do.Recut):
                self._end(command.batch.id, "recut")
            elif isinstance(command, do.Park):
                with self._lock:
                    span = self._spans.get((command.batch.id, command.batch.epoch))
                if span is not None:
                    span.add_event(
                        "parked", {"replays.stage": str(command.stage), "replays.attempt": command.attempt}
                    )
            elif isinstance(command, do.Release):
                self._end_spans(command.sources)
        if isinstance(event, on.PartitionsLost):
            self._end_spans(event.sources)

    def _start(self, tracer: Any, batch: Batch) -> Any:
        from opentelemetry.trace import Link, SpanKind, get_current_span

        contexts = [telemetry.context_of(text) for text in self._take(batch)]
        return tracer.start_span(
            "batch",
            context=contexts[0] if contexts else None,
            kind=SpanKind.CONSUMER,
            links=[Link(get_current_span(context).get_span_context()) for context in contexts[1:]],
            attributes={
                "replays.batch": batch.id,
                "messaging.system": "kafka",
                "messaging.destination.name": batch.source.topic,
                "messaging.destination.partition.id": str(batch.source.partition),
                "messaging.batch.message_count": len(batch.segments) + len(batch.rejects),
                "replays.size_bytes": batch.size_bytes,
            },
        )

    def _take(self, batch: Batch) -> list[str]:
        """Removes and returns the contexts of the batch's messages. Contexts of earlier messages are discarded."""
        kept = self._contexts.get(batch.source)
        taken: list[str] = []
        while kept and kept[0][0] < batch.offsets.stop:
            offset, text = kept.popleft()
            if offset >= batch.offsets.start and len(taken) <= LINKS_MAX:
                taken.append(text)
        return taken

    def _end(self, batch_id: str, outcome: str) -> None:
        with self._lock:
            for key in [key for key in self._spans if key[0] == batch_id]:
                span = self._spans.pop(key)
                span.set_attribute("replays.outcome", outcome)
                span.end()

    def _end_spans(self, sources: Sequence[TopicPartition]) -> None:
        with self._lock:
            for source in sources:
                self._contexts.pop(source, None)
            ended = [key for key in self._spans if key[0].startswith(tuple(f"{source}-" for source in sources))]
        for batch_id, _ in ended:
            self._end(batch_id, "released")
