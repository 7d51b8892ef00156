"""What can be wrong with a stored item, and how identities get into a question to ClickHouse."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from uuid import UUID


class Problem(StrEnum):
    """What is wrong with an item that is not durable as it should be."""

    MISSING = "missing"
    DIFFERS = "differs"


def uuids(values: Iterable[str]) -> str:
    """A list for IN (...). Through UUID, so that nothing else can get into the query."""
    return ", ".join(f"'{value}'" for value in sorted({str(UUID(value)) for value in values}))


def numbers(values: Iterable[int]) -> str:
    """A list for IN (...), of integers alone."""
    return ", ".join(str(int(value)) for value in sorted(set(values)))
