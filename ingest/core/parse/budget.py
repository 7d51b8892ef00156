"""The work budget of one recording, in units. It does not cover decompressing and scanning the recording.

A unit is about one microsecond of work on a fast core, and up to four on a slow, shared core. All work beyond the
single pass of the JSON decoder is charged to the budget in advance, at its maximum cost: bytes read again, values
decoded, events handled in Python, exceptions. When the budget is exhausted, the rest of the segment is stored
unparsed. The cost of a message is therefore bounded by construction.
"""

from __future__ import annotations

from ingest.core.parse.rules import ParseRules

# Base budget of every message. Real segments use fewer than a thousand units.
UNITS_BASE = 4_000.0
# The fact limit is a setting; raising it raises the budget.
UNITS_PER_FACT = 4.0
# Number of scanned bytes that add one unit to the budget. Each byte thus adds 1 to 5 nanoseconds of work;
# decompressing and scanning the byte takes 1 to 3 nanoseconds.
BYTES_PER_UNIT = 800


class BudgetSpent(Exception):
    """Raised when the budget is exhausted; the caller keeps what was read so far."""


class Budget:
    """The work units that remain for a message."""

    __slots__ = ("_earned_until", "left")

    def __init__(self, units: float) -> None:
        self.left = units
        self._earned_until = 0

    def spend(self, units: float) -> None:
        """Charges units for work about to be done. Raises BudgetSpent if too few units remain."""
        self.left -= units
        if self.left < 0.0:
            raise BudgetSpent

    def earn(self, until: int) -> None:
        """Adds the units earned by the bytes scanned since the last call, up to this position."""
        if until > self._earned_until:
            self.left += (until - self._earned_until) / BYTES_PER_UNIT
            self._earned_until = until


def units_of(rules: ParseRules) -> float:
    """Returns the initial budget of a recording."""
    return UNITS_BASE + UNITS_PER_FACT * rules.facts_per_segment_max
