"""What reading one recording may cost beyond inflating and scanning it: a budget of work, in units.

A unit is one microsecond on a fast core, and up to four on a slow one whose caches others use. Whatever is not a
single pass of the JSON decoder over the bytes spends from one budget before it is done, by the most that it can
cost: bytes that are looked at again, values that are built, events that Python looks at, exceptions. When the
budget is spent, the rest of the segment is stored unread. So the cost of a message is bounded by construction
and not by a list of what hostile messages have looked like so far.
"""

from __future__ import annotations

from ingest.core.parse.rules import ParseRules

# Of every message, however small it is. Real segments spend less than a thousand units.
UNITS_BASE = 4_000.0
# The bound on facts is a setting: who raises it wants them read.
UNITS_PER_FACT = 4.0
# Earned by what was scanned: 1 to 5 nanoseconds per byte, where inflating and scanning take 1 to 3.
BYTES_PER_UNIT = 800


class Spent(Exception):
    """The budget is spent: what was read so far counts, the rest is not read."""


class Budget:
    """Units that are left."""

    __slots__ = ("_earned_until", "left")

    def __init__(self, units: float) -> None:
        self.left = units
        self._earned_until = 0

    def spend(self, units: float) -> None:
        """Takes units for work that is about to be done. Raises Spent when there are not enough."""
        self.left -= units
        if self.left < 0.0:
            raise Spent

    def earn(self, until: int) -> None:
        """The recording was scanned up to this byte: its size pays for some of what reading it takes."""
        if until > self._earned_until:
            self.left += (until - self._earned_until) / BYTES_PER_UNIT
            self._earned_until = until


def units_of(rules: ParseRules) -> float:
    """The budget that every recording has before it earns more."""
    return UNITS_BASE + UNITS_PER_FACT * rules.facts_per_segment_max
