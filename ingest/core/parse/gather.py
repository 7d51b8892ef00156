"""Collects the rows of one recording within the limits on row count and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ingest.core.model import Row
from ingest.core.parse import rows
from ingest.core.parse.budget import Budget
from ingest.core.parse.events import MalformedEvent
from ingest.core.parse.rrweb import (
    HISTORY_SPANS,
    WEB_VITALS,
    Click,
    Count,
    Fact,
    Navigation,
    Size,
    Tap,
    Vital,
    meanings,
    paint_ms,
)
from ingest.core.parse.rules import ParseRules
from ingest.core.parse.scan import Scan

REPEATED_WARNINGS_MAX = 1000
# Measured costs in budget units: per encoded fact, and per event found malformed here.
_UNITS_PER_FACT, _UNITS_PER_MALFORMED = 4.0, 3.0
# Kinds of facts that `_noted` counts or completes.
_NOTED_KINDS = frozenset(
    (
        "hydration_error",
        "navigation.span",
        "negative-click-node-id",
        *(f"web-vital.{vital}" for vital in WEB_VITALS),
    )
)


class GatheredRows:
    """Rows, sizes and counters of one recording. Call `take` with the scan, then `close`."""

    def __init__(self, writer: rows.Writer, rules: ParseRules, budget: Budget, taken_bytes: int) -> None:
        self.clickhouse: list[Row] = []
        self.facts: list[Any] = []
        """Rows, or framed protobuf messages (`is_proto`)."""
        self.is_proto = rules.bigquery_write == "storage"
        self.sizes: list[Size] = []
        self.size_bytes = 0
        """Size of rows and metrics in Redis and in the reader's memory; complete once closed."""
        self.warnings: list[str] = []
        self.rage = 0
        self.hydration = 0
        self.is_sampled = rows.is_in_sample(writer.identity, "segment", rules.sample_segment_rate)
        self._writer = writer
        self._rules = rules
        self._budget = budget
        self._clicks = 0
        self._taps = 0
        self._negative = 0
        self._malformed = 0
        self._loaded_at: float | None = None
        self._rows_bytes_max = rules.rows_bytes_max - taken_bytes
        self._encoded: Callable[[Fact, int], Any] = writer.proto_fact if self.is_proto else writer.fact
        self._size_bytes: Callable[[Any], int] = rows.proto_bytes if self.is_proto else rows.size_bytes
        self._facts_max = rules.facts_per_segment_max - 1  # one fact is reserved for the number of events
        self._is_over_number = False
        self._is_over_bytes = False

    def take(self, scan: Scan) -> None:
        """Interprets all events. Raises msgspec.DecodeError and BudgetSpent."""
        budget, facts, facts_max = self._budget, self.facts, self._facts_max
        encoded, size_of, bytes_max = self._encoded, self._size_bytes, self._rows_bytes_max
        for index, event in scan:
            try:
                found = meanings(event, budget)
            except MalformedEvent:
                self._malformed += 1
                budget.spend(_UNITS_PER_MALFORMED)
                continue
            for meaning in found:
                if not isinstance(meaning, Fact):
                    self._take(meaning)
                    continue
                fact = self._noted(meaning) if meaning.kind in _NOTED_KINDS else meaning
                if self._is_over_bytes or (fact.sampled and not self._is_wanted(fact, index)):
                    continue
                if len(facts) >= facts_max:
                    self._is_over_number = True
                    continue
                budget.left -= _UNITS_PER_FACT
                row = encoded(fact, index)
                size_bytes = self.size_bytes + size_of(row)
                if size_bytes <= bytes_max:
                    self.size_bytes = size_bytes
                    facts.append(row)
                else:
                    self._is_over_bytes = True

    def close(self, scan: Scan) -> None:
        """Adds the number of events and the warnings, which are known only at the end."""
        writer = self._writer
        count = self._encoded(Fact("rrweb_event_count", writer.identity.at, Count(scan.count)), -1)
        self.facts.insert(0, count)
        self.size_bytes += self._size_bytes(count) + (rows.COLUMNS_BYTES if self.is_proto else 0)
        malformed = self._malformed + scan.malformed
        if self._negative or malformed or scan.too_deep:
            self.warnings += ["negative_click_node_id"] * min(self._negative, REPEATED_WARNINGS_MAX)
            self.warnings += ["event_malformed"] * min(malformed, REPEATED_WARNINGS_MAX)
            self.warnings += ["event_too_deep"] * min(scan.too_deep, REPEATED_WARNINGS_MAX)
        if self._is_over_number:
            self.warnings.append("events_over_limit")
        if self._is_over_bytes:
            self.warnings.append("rows_over_limit")

    def _take(self, meaning: Size | Click | Tap) -> None:
        if isinstance(meaning, Size):
            if len(self.sizes) < self._rules.facts_per_segment_max and self._has_room(2 * rows.METRIC_BYTES):
                self.sizes.append(meaning)
        elif isinstance(meaning, Click):
            self.rage += meaning.element.is_rage
            if self._clicks < self._rules.clicks_per_segment_max and not self._is_over_bytes:
                self._clicks += 1
                self._keep(self._writer.click(meaning))
        elif self._taps < self._rules.taps_per_segment_max and not self._is_over_bytes:
            self._taps += 1
            self._keep(self._writer.tap(meaning))

    def _noted(self, fact: Fact) -> Fact:
        """Counts facts of two kinds, and converts a first contentful paint, which SDKs send as a point in time, to
        milliseconds since its page began to load. The value is None if that page load is in another segment.
        """
        vital = fact.attributes
        if isinstance(vital, Navigation):
            if vital.op not in HISTORY_SPANS:
                self._loaded_at = fact.timestamp
        elif fact.kind == "hydration_error":
            self.hydration += 1
        elif fact.kind == "negative-click-node-id":
            self._negative += 1
        elif isinstance(vital, Vital) and vital.op == "paint" and vital.value is None:
            value = paint_ms(self._loaded_at, fact.timestamp)
            return Fact(fact.kind, fact.timestamp, Vital(vital.rating, vital.op, vital.size, value), fact.sampled)
        return fact

    def _is_wanted(self, fact: Fact, index: int) -> bool:
        if fact.sampled == "segment":
            return self.is_sampled
        return rows.is_in_sample(self._writer.identity, f"{index}", self._rules.sample_event_rate)

    def _keep(self, row: Row) -> None:
        if self._has_room(rows.size_bytes(row)):
            self.clickhouse.append(row)

    def _has_room(self, size_bytes: int) -> bool:
        """Reserves room for a row. All rows after the first one that does not fit are left out, so that the stored
        rows cover the beginning of the recording."""
        if self._is_over_bytes or self.size_bytes + size_bytes > self._rows_bytes_max:
            self._is_over_bytes = True
            return False
        self.size_bytes += size_bytes
        return True
