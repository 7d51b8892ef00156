"""Explores a copy of the code with a bug from the list of mutants, in a separate process."""

from __future__ import annotations

from pathlib import Path

from tests.mutation.__main__ import plant
from tests.mutation.mutants import Mutant
from tools.explore import planted


def explore_copy(
    mutant: Mutant | None, into: Path, world: str, faults: int, *, expiry: bool = False
) -> planted.ExplorationResult:
    """Plants the bug, if any, and explores the copy."""
    planted.copy(into)
    if mutant is not None:
        plant(mutant, into)
    return planted.explored(into, world, faults, expiry=expiry)
