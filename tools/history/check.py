"""The history of commits, reads and assignments, and the rules that every history must satisfy.

`judge` uses only timestamped operations from logs and the broker, and shares no code with the reader. All times
are in seconds, from the same wall clock. Each operation has a request time and a response time, and took effect at
some time between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import inf
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class Commit:
    """An offset commit by a reader. `refused`: the broker reported that it did not store the commit.

    If `answered_at` is None, which is also the case after an ambiguous error, the commit may have been stored at
    any time from `sent_at` on, or never. `life` identifies one reader process.
    """

    life: str
    partition: int
    offset: int
    record: str
    sent_at: float
    answered_at: float | None = None
    refused: bool = False

    @property
    def stored(self) -> bool:
        """Returns True if the broker acknowledged the commit."""
        return self.answered_at is not None and not self.refused

    @property
    def ends_at(self) -> float:
        """The latest time at which the commit may have taken effect."""
        return inf if self.answered_at is None else self.answered_at


@dataclass(frozen=True, slots=True)
class Read:
    """A read of the committed offset. `offset` is None if the broker reported that there is none."""

    by: str
    partition: int
    offset: int | None
    record: str
    sent_at: float
    answered_at: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """An assignment of a partition to a reader."""

    life: str
    partition: int
    at: float


@dataclass(frozen=True, slots=True)
class Exemption:
    """An event after which offsets may be lower or missing: an operator's reset, an injected fault, or a recreated
    topic.

    `until`: the end time of an event that has a duration. For example, a reader may commit an offset beyond the
    end of the log one more time before it starts from the beginning.
    """

    at: float
    reason: str
    until: float | None = None


@dataclass(slots=True)
class History:
    """All observations of a run. `has_records`: the broker keeps the metadata of commits."""

    commits: list[Commit] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    assignments: list[Assignment] = field(default_factory=list)
    exemptions: list[Exemption] = field(default_factory=list)
    has_records: bool = True

    def counts(self) -> str:
        """Counts of observations."""
        stored = sum(commit.stored for commit in self.commits)
        return (
            f"{len(self.commits):,} commits ({stored:,} acknowledged), {len(self.reads):,} reads, "
            f"{len(self.assignments):,} assignments"
        )


def judge(history: History) -> list[str]:
    """Returns one sentence per violation. If there is no violation, the committed offset of each partition behaved
    like a register.
    """
    by_partition: Callable[[Commit | Read | Assignment], int] = attrgetter("partition")
    partitions = {one.partition for one in history.commits}
    partitions |= {one.partition for one in history.reads} | {one.partition for one in history.assignments}
    commits = {
        n: list(of_partition)
        for n, of_partition in groupby(sorted(history.commits, key=by_partition), by_partition)
    }
    reads = {
        n: list(of_partition) for n, of_partition in groupby(sorted(history.reads, key=by_partition), by_partition)
    }
    found: list[str] = []
    for partition in sorted(partitions):
        line = _Partition(history, commits.get(partition, []), reads.get(partition, []))
        assigned = [one for one in history.assignments if one.partition == partition]
        sentences = [*line.unwritten(), *line.stale(), *line.backwards(), *line.two_owners(assigned)]
        found += [f"partition {partition}: {sentence}" for sentence in sentences]
    return found


class _Partition:
    """The rules for one partition."""

    def __init__(self, history: History, commits: Sequence[Commit], reads: Sequence[Read]) -> None:
        self._exemptions = history.exemptions
        self._has_records = history.has_records
        self._stored = sorted((one for one in commits if one.stored), key=attrgetter("sent_at"))
        self._possible = [one for one in commits if not one.refused]
        self._reads = sorted(reads, key=attrgetter("sent_at"))
        self._writers: dict[tuple[int, str], list[Commit]] = {}
        for commit in self._possible:
            self._writers.setdefault(self._value(commit.offset, commit.record), []).append(commit)

    def _value(self, offset: int, record: str) -> tuple[int, str]:
        return offset, record if self._has_records else ""

    def _is_exempt(self, since: float, until: float) -> bool:
        return any(one.at <= until and since <= (one.until or one.at) for one in self._exemptions)

    def _candidates(self, read: Read) -> list[Commit]:
        """Returns the commits that the read may have returned."""
        if read.offset is None:
            return []
        writers = self._writers.get(self._value(read.offset, read.record), [])
        return [commit for commit in writers if commit.sent_at <= read.answered_at]

    def unwritten(self) -> list[str]:
        """Checks that each read returned an offset and a record that had been committed."""
        return [
            f"{read.by} read offset {read.offset} with record {read.record!r}, which was never committed"
            for read in self._reads
            if read.offset is not None
            and not self._candidates(read)
            and not self._is_exempt(0.0, read.answered_at)
        ]

    def stale(self) -> list[str]:
        """Checks that no read returned a commit that had been replaced before the read, and that no read returned
        "none" after a commit.
        """
        found = []
        for read in self._reads:
            candidates = self._candidates(read)
            if read.offset is not None and not candidates:
                continue  # reported by `unwritten`
            since = max((commit.ends_at for commit in candidates), default=-inf)
            value = None if read.offset is None else self._value(read.offset, read.record)
            for later in self._stored:
                replaced = later.sent_at > since and later.ends_at < read.sent_at
                if replaced and self._value(later.offset, later.record) != value:
                    if not self._is_exempt(later.sent_at, read.answered_at):
                        found.append(
                            f"{read.by} read {read.offset}, but {later.life} had committed {later.offset}"
                        )
                    break
        return found

    def backwards(self) -> list[str]:
        """Checks that neither stored offsets nor read offsets decrease."""
        stored = [(one.offset, one.sent_at, one.ends_at, f"{one.life} committed") for one in self._stored]
        read = [
            (one.offset, one.sent_at, one.answered_at, f"{one.by} read")
            for one in self._reads
            if one.offset is not None
        ]
        return [*self._decreases(stored), *self._decreases(read)]

    def _decreases(self, steps: Sequence[tuple[int, float, float, str]]) -> list[str]:
        """Finds decreases. `steps`: tuples (offset, from, until, author), ordered by `from`."""
        found = []
        over = sorted(steps, key=lambda step: step[2])
        highest: tuple[int, float, float, str] | None = None
        at = 0
        for step in steps:
            while at < len(over) and over[at][2] < step[1]:
                if highest is None or over[at][0] > highest[0]:
                    highest = over[at]
                at += 1
            if highest is not None and step[0] < highest[0] and not self._is_exempt(highest[1], step[2]):
                found.append(f"{step[3]} {step[0]} after {highest[3]} {highest[0]}")
        return found

    def two_owners(self, assigned: Sequence[Assignment]) -> list[str]:
        """Checks that no commit of an earlier owner was stored after a commit of a later owner, and that readers
        committed only partitions that were assigned to them.
        """
        found = []
        newest: tuple[float, Commit] | None = None  # for each stored commit: (start of assignment, commit)
        for commit in self._stored:
            owned = [one.at for one in assigned if one.life == commit.life and one.at <= commit.sent_at]
            if not owned:
                found.append(f"{commit.life} committed {commit.offset} without being assigned the partition")
                continue
            since = max(owned)
            if newest is not None and since < newest[0] and newest[1].ends_at < commit.sent_at:
                found.append(f"{commit.life} committed {commit.offset} although {newest[1].life} owned it by then")
            if newest is None or since > newest[0]:
                newest = since, commit
        return found
