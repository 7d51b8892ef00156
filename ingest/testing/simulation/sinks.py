"""The four sinks and the dead-letter topic, reduced to stored items and their identities.

As in the real sinks, an item is stored under its identity: the name of an object, the id of a row, or ClickHouse's
deduplication token. Datadog stores every packet; only the done mark prevents a second one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ingest.testing.simulation.faults import Dice, Fault
from ingest.testing.simulation.trace import Trace
from tasks.errors import PermanentSinkError, TransientSinkError


class Item(NamedTuple):
    """One item to write, with its identity and its message. A poisoned item is refused permanently."""

    id: str
    partition: int
    offset: int
    poisoned: bool = False
    generation: int = 0

    @property
    def message(self) -> tuple[int, int, int]:
        """The (partition, offset, generation of the topic) of the message."""
        return self.partition, self.offset, self.generation


class Sinks:
    """All sinks of one simulated world. They store the durable items and count how often each item was written."""

    def __init__(self, dice: Dice, trace: Trace) -> None:
        self.stored: dict[str, set[str]] = {"gcs": set(), "clickhouse": set(), "bigquery": set(), "datadog": set()}
        self.dead_letters: set[tuple[int, int, int]] = set()
        self.writes: Counter[tuple[str, str]] = Counter()
        self.down_until: dict[str, float] = {}
        self.misconfigured_until: dict[str, float] = {}
        self._tokens: set[str] = set()
        self._dice = dice
        self._trace = trace

    def write(self, sink: str, items: Iterable[Item], token: str, now: float) -> None:
        """Writes the items, which are durable when the call returns. Raises TransientSinkError or
        PermanentSinkError."""
        if now < self.misconfigured_until.get(sink, 0.0):
            raise PermanentSinkError(f"{sink}: no such table", configuration=True)
        if now < self.down_until.get(sink, 0.0) or self._dice.occurs(Fault.SINK_TRANSIENT):
            raise TransientSinkError(f"{sink}: 503")
        if sink == "dead_letter":
            self.dead_letters.update(item.message for item in items)
        elif sink == "clickhouse" and token in self._tokens:
            self._trace.mark("token_skipped")
        else:
            self._store(sink, items)
            self._tokens.add(token)
        if self._dice.occurs(Fault.SINK_REPLY_LOST):
            raise TransientSinkError(f"{sink}: connection reset")

    def _store(self, sink: str, items: Iterable[Item]) -> None:
        stored = self.stored[sink]
        for item in items:
            if item.poisoned:
                self._trace.mark("poison_dead_lettered")
                self.dead_letters.add(item.message)
                continue
            stored.add(item.id)
            self.writes[sink, item.id] += 1
