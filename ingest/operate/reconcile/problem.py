"""The ways in which a stored item can differ from the expected one, and lists of identities for ClickHouse
queries.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from uuid import UUID


class Problem(StrEnum):
    """Why an item is not stored as expected."""

    MISSING = "missing"
    DIFFERS = "differs"


def uuids(values: Iterable[str]) -> str:
    """Returns the values as a comma-separated list for `IN (...)` in SQL. Every value is parsed as a UUID, so that
    no other text can get into the query."""
    return ", ".join(f"'{value}'" for value in sorted({str(UUID(value)) for value in values}))


def numbers(values: Iterable[int]) -> str:
    """Returns the integers as a comma-separated list for `IN (...)` in SQL."""
    return ", ".join(str(int(value)) for value in sorted(set(values)))
