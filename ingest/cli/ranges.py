"""Ranges of numeric options. NaN and infinity are refused, because neither JSON nor later calculations can handle
them. Offsets and partitions have Kafka's own bounds.

`click.FloatRange` accepts NaN (every comparison with it is false) and, without a maximum, infinity.
"""

from __future__ import annotations

import math
from typing import Any

import click

PARTITION_MAX = 2**31 - 1
OFFSET_MAX = 2**63 - 1
PROJECT_ID_MAX = 2**64 - 1  # UInt64 in ClickHouse
MESSAGES_PER_SECOND_MAX = 1_000_000
BURST_MAX = 1_000_000_000


class FiniteFloatRange(click.FloatRange):
    """A finite number within a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Fails with exit code 2 for NaN and infinity."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number", param, ctx)
        return found


partition = click.IntRange(0, PARTITION_MAX)
offset = click.IntRange(0, OFFSET_MAX)
project = click.IntRange(0, PROJECT_ID_MAX)
