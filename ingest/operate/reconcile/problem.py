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
    """Returns a list for IN (...). Every value is parsed as a UUID, so that no other text can get into the
    query."""
    return ", ".join(f"'{value}'" for value in sorted({str(UUID(value)) for value in values}))


def numbers(values: Iterable[int]) -> str:
    """Returns a list of integers for IN (...)."""
    return ", ".join(str(int(value)) for value in sorted(set(values)))
