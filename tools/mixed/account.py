"""Extracts parked and refused batches, and messages that were read again, from the logs of readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from tools.history.check import Commit
from tools.history.collect import seconds_of

Lines = Iterable[Mapping[str, Any]]
# A part of the error message with which a worker refuses a batch from a newer release.
REFUSED = "upgrade the workers before the readers"


@dataclass(frozen=True, slots=True)
class ParkedBatch:
    """A parked batch: when and why it was first parked, and when its last message was committed."""

    batch: str
    at: float
    error: str
    committed_at: float | None

    @property
    def refused(self) -> bool:
        """True if workers refused the batch because of its version."""
        return REFUSED in self.error

    @property
    def seconds(self) -> float | None:
        """Returns the time from parking to commit, or None if the batch was never committed."""
        return None if self.committed_at is None else max(0.0, self.committed_at - self.at)


@dataclass(frozen=True, slots=True)
class RepeatedMessages:
    """Messages that were cut into a batch a second time."""

    at: float
    messages: int


def parked(lines: Lines, commits: Sequence[Commit]) -> list[ParkedBatch]:
    """Returns each parked batch once. `lines`: log lines of all readers."""
    first: dict[str, tuple[float, str]] = {}
    for line in lines:
        if line.get("event") != "batch_parked":
            continue
        at = seconds_of(line["timestamp"])
        known = first.get(line["batch"])
        if known is None or at < known[0]:
            first[line["batch"]] = at, line["error"]
    return [ParkedBatch(batch, at, error, _committed_at(batch, commits)) for batch, (at, error) in first.items()]


def _committed_at(batch: str, commits: Sequence[Commit]) -> float | None:
    """Returns the time at which a reader first committed the end of the batch."""
    _, partition, _, stop = batch.rsplit("-", 3)
    covering = [
        commit
        for commit in commits
        if commit.stored and commit.partition == int(partition) and commit.offset >= int(stop)
    ]
    return min((commit.ends_at for commit in covering), default=None)


def read_again(lines: Lines) -> list[RepeatedMessages]:
    """Returns the messages that the next owner of a partition cut again. `lines`: log lines of all readers."""
    cuts = [line for line in lines if line.get("event") == "protocol_step" and line.get("step") == "cut"]
    cuts.sort(key=lambda line: seconds_of(line["timestamp"]))
    known: dict[int, set[int]] = {}
    found = []
    for line in cuts:
        seen = known.setdefault(int(line["partition"]), set())
        offsets = range(line["start"], line["stop"])
        if repeated := len(seen.intersection(offsets)):
            found.append(RepeatedMessages(seconds_of(line["timestamp"]), repeated))
        seen.update(offsets)
    return found


def within(records: Iterable[Any], since: float, until: float) -> list[Any]:
    """Returns the records whose time `at` is in [since, until), in chronological order."""
    return [record for record in sorted(records, key=attrgetter("at")) if since <= record.at < until]
