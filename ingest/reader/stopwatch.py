"""Measures parsing time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from ingest.core import events as on
from ingest.core.model import Message
from ingest.observe.metrics import Metrics
from ingest.reader.ports import Parser, UnusualMessage
from tasks.observe.loops import Guard


class TimedParser:
    """Measures the time spent in the wrapped parser, excluding the time spent by the consumer of its results."""

    def __init__(
        self,
        parser: Parser,
        metrics: Metrics,
        guard: Guard | None = None,
    ) -> None:
        self._parser = parser
        self._metrics = metrics
        self._guard = guard or Guard()

    def parse(self, messages: Iterable[Message]) -> Iterator[on.MessageParsed | UnusualMessage]:
        """Yields the results of the wrapped parser."""
        clock, busy_seconds = time.perf_counter, 0.0
        try:
            started_at = clock()
            for event in self._parser.parse(messages):
                busy_seconds += clock() - started_at
                yield event
                started_at = clock()
        finally:
            self._guard.call("metrics", self._metrics.add_parse_seconds, busy_seconds)
