"""The phases of a run: an upgrade in the documented order, a downgrade, and an upgrade in the reverse order.

In each phase, processes are replaced one after another under load. docs/upgrades.md defines the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReleaseName(StrEnum):
    """A release that takes part in a run. `ADDITIVE` exists only in runs with planted releases (`planted.py`)."""

    OLD = "old"
    ADDITIVE = "additive"
    NEW = "new"


OLD, ADDITIVE, NEW = ReleaseName.OLD, ReleaseName.ADDITIVE, ReleaseName.NEW


@dataclass(frozen=True, slots=True)
class Phase:
    """The release of each reader and worker.

    `migrate`: the release whose migrations run first. `newer`: readers may run a newer release than the workers;
    only in such phases may batches be refused. `readers_first`: readers are replaced before workers, as in a
    downgrade.
    """

    name: str
    readers: tuple[ReleaseName, ...]
    workers: tuple[ReleaseName, ...]
    migrate: ReleaseName | None = None
    newer: bool = False
    readers_first: bool = False

    @property
    def is_mixed(self) -> bool:
        """True if processes of different releases run in the phase."""
        return len({*self.readers, *self.workers}) > 1


UPGRADE = (
    Phase("old alone", (OLD, OLD), (OLD, OLD), migrate=OLD),
    Phase("migrate", (OLD, OLD), (OLD, OLD), migrate=NEW),
    Phase("workers: new beside old", (OLD, OLD), (NEW, OLD)),
    Phase("readers: new beside old", (NEW, OLD), (NEW, NEW)),
    Phase("all new", (NEW, NEW), (NEW, NEW)),
)
DOWNGRADE = (
    Phase("downgrade readers", (OLD, OLD), (NEW, NEW)),
    Phase("downgrade workers", (OLD, OLD), (OLD, OLD)),
)
ADDITIONS = (Phase("wrong order: readers first, additions only", (ADDITIVE, ADDITIVE), (OLD, OLD)),)
WRONG_ORDER = (
    Phase("wrong order: readers first", (NEW, NEW), (OLD, OLD), newer=True),
    Phase("workers follow", (NEW, NEW), (NEW, NEW)),
)

RELEASES = (*UPGRADE, *DOWNGRADE, *WRONG_ORDER)
PLANTED = (*UPGRADE, *DOWNGRADE, *ADDITIONS, *WRONG_ORDER)
LOSSY = (
    Phase("old alone", (OLD, OLD), (OLD,), migrate=OLD),
    Phase("readers: new beside old", (NEW, OLD), (OLD,)),
)
"""Phases for a new release that has a bug."""
SHORT = (
    Phase("old alone", (OLD, OLD), (OLD,), migrate=NEW),
    Phase("wrong order: readers first", (ADDITIVE, NEW), (OLD,), newer=True),
    Phase("workers follow", (ADDITIVE, NEW), (NEW,)),
    Phase("downgrade", (OLD, OLD), (OLD,), readers_first=True),
)
"""Phases for planted releases, with fewer steps, for `make test`."""
