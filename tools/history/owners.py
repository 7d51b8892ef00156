"""Computes how long partitions had no owner, from the logs of the readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class OwnedPeriod:
    """A reader owned a partition from `since` to `until`, in Unix seconds. `life`: one run of one process."""

    life: str
    partition: int
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A cause of a rebalance: a fault of a reader or the broker, the start of a reader, or an added partition.
    Both times are Unix seconds."""

    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Gap:
    """A period between two owners in which a partition had no owner. Both times are Unix seconds."""

    partition: int
    since: float
    until: float

    @property
    def seconds(self) -> float:
        """The length of the gap."""
        return self.until - self.since

    def undisturbed_seconds(self, disturbances: Iterable[Disturbance]) -> float:
        """Returns how long the gap lasted after the end of the last disturbance. Disturbances that began after the
        gap are ignored.
        """
        ends = [min(cause.until, self.until) for cause in disturbances if cause.since <= self.until]
        return self.until - max([self.since, *ends])


def gaps(owned: Sequence[OwnedPeriod]) -> list[Gap]:
    """Returns all gaps of all partitions, longest first. Times before the first owner and after the last do not
    count.
    """
    found: list[Gap] = []
    by_partition = attrgetter("partition")
    for partition, owners in groupby(sorted(owned, key=by_partition), by_partition):
        spans = sorted(owners, key=attrgetter("since"))
        until = spans[0].until
        for span in spans[1:]:
            if span.since > until:
                found.append(Gap(partition, until, span.since))
            until = max(until, span.until)
    return sorted(found, key=attrgetter("seconds"), reverse=True)
