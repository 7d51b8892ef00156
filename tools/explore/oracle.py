"""Checks a reader's commands against the contents of brokers and sinks. The oracle shares no code with the core.

Each function returns the violation as text, or an empty string if there is none. Sets of items, such as `durable`,
are bit masks with two bits per message: one for its blob and one for its rows.
"""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """One message of a log: its offset, and its items that must be durable."""

    offset: int
    blob: int
    rows: int


class Log(NamedTuple):
    """The log of one partition: its messages, and its end, which is one past the last offset. The last offset may
    have no message.
    """

    messages: tuple[Message, ...]
    end: int

    @property
    def after_last(self) -> int:
        """One past the last message."""
        return self.messages[-1].offset + 1

    def needed(self, start: int, stop: int) -> int:
        """Returns all items of the messages in [start, stop)."""
        bits = 0
        for message in self.messages:
            if start <= message.offset < stop:
                bits |= message.blob | message.rows
        return bits

    def blobs(self, start: int, stop: int) -> int:
        """Returns the blobs of the messages in [start, stop)."""
        bits = 0
        for message in self.messages:
            if start <= message.offset < stop:
                bits |= message.blob
        return bits


def ends_in(offset: int, record: str) -> list[int]:
    """Returns the batch ends that a commit's metadata contains. After `c=`, each end is encoded in base 36 as its
    difference from the previous end, and the first end as its difference from the committed offset.
    """
    ends: list[int] = []
    for part in record.split(";"):
        if part.startswith("c="):
            for digits in part[2:].split(","):
                ends.append((ends[-1] if ends else offset) + int(digits, 36))
    return ends


class Commits(NamedTuple):
    """The committed state of one partition at the broker. `offset` is -1 before the first commit."""

    offset: int
    record: str

    @property
    def ends(self) -> list[int]:
        return ends_in(max(0, self.offset), self.record)


def commit(log: Log, stored: Commits, durable: int, new: Commits, halves: frozenset[int], *, owner: bool) -> str:
    """Checks a commit that a reader sends.

    `owner`: the reader owns the partition in the group. `halves`: ends of batches that were split; only these may
    lie within a recorded range.
    """
    offset = new.offset
    if offset > log.end:
        return f"it commits {offset}, but the log ends at {log.end}"
    for message in log.messages:
        if message.offset < offset and (message.blob | message.rows) & ~durable:
            return f"it commits {offset}, but the message at {message.offset} is not durable"
    if not owner:
        return ""  # the broker refuses it
    if offset < stored.offset:
        return f"it commits {offset}, but {stored.offset} was committed before"
    forgotten = [end for end in stored.ends if end > offset and end not in new.ends]
    if forgotten:
        return f"its commit lacks the recorded ends {forgotten}"
    inside = [end for end in new.ends if end < max(stored.ends, default=0) and end not in {*stored.ends, *halves}]
    return f"it cuts at {inside} within the recorded ends {stored.ends}" if inside else ""


class Batch(NamedTuple):
    """A batch for which a reader starts a chord.

    `first`: this is the first attempt. `fresh`: the batch has been cut since the last tick, and its end has
    not been stored. `halved`: the batch is a part of another batch.
    """

    start: int
    stop: int
    rows: bool
    first: bool
    fresh: bool
    halved: bool


def dispatch(log: Log, stored: Commits, durable: int, batch: Batch, *, owner: bool) -> str:
    """Checks a chord that a reader starts."""
    if batch.rows and log.blobs(batch.start, batch.stop) & ~durable:
        return f"it starts the rows of [{batch.start}, {batch.stop}) before the blobs are durable"
    if not (owner and batch.first):
        return ""
    ends = stored.ends
    if batch.fresh and batch.stop not in ends:
        return f"it starts [{batch.start}, {batch.stop}) before that end is stored"
    inside = [end for end in ends if batch.start < end < batch.stop]
    between = batch.stop not in ends and any(end > batch.stop for end in ends)
    if inside or (between and not batch.halved):
        return f"it starts [{batch.start}, {batch.stop}), but the recorded ends are {ends}"
    return ""


def discard(log: Log, durable: int, start: int, stop: int) -> str:
    """Checks that a batch is durable if a reader considers it settled."""
    missing = log.needed(start, stop) & ~durable
    return f"it settles [{start}, {stop}), which is not durable" if missing else ""


def release(*, chords: int, commits: int, by_clock: bool) -> str:
    """Checks the release of a partition while the given number of chords and commits is in flight."""
    if by_clock or not (chords or commits):
        return ""
    return f"it releases the partition before the deadline, with {chords} chords and {commits} commits in flight"
