"""States, for each planted bug in tests/mutation that simulated worlds miss, whether the bug breaks safety.

A bug breaks safety if it can commit an offset past an item that is not durable, lose a message, put the same
messages into two different batches, decrease an offset, or let two owners write. The explorer runs `Pipeline` and
all modules that `Pipeline` uses. The explorer runs neither the loop (`reader/runtime.py`) nor the modules that
make decisions before a partition is assigned or outside the pipeline (`core/starting.py`, `core/stalls.py`,
`core/ownership.py`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from tools.explore.planted import BUGS


class BrokenProperty(StrEnum):
    """The kind of property that a planted bug breaks."""

    SAFETY = "safety"
    PROGRESS = "progress"
    WORK = "work"  # work is repeated or delayed, or there are more requests
    MEMORY = "memory"
    VIEW = "information for operators"
    POLICY = "reject policy"


class JudgedBug(NamedTuple):
    """A planted bug, the kind of property that it breaks, and the reason."""

    bug: str
    breaks: BrokenProperty
    why: str

    @property
    def world(self) -> str:
        """The smallest world in which the explorer finds the bug; empty if there is none."""
        found = next((bug for bug in BUGS if bug.name == self.bug), None)
        if found is None:
            return ""
        expiry = ", messages expire" if found.expiry else ""
        return f"{found.world} message(s), {found.faults} fault(s){expiry}"


SAFETY, PROGRESS, WORK, MEMORY, VIEW, POLICY = BrokenProperty
JUDGED_BUGS = (
    JudgedBug(
        "drops a revoked partition without draining it",
        SAFETY,
        "two owners write: the old owner's chords and commit are still in flight when the next owner begins",
    ),
    JudgedBug(
        "drains without a deadline",
        PROGRESS,
        "the rebalance does not complete until the group has removed the reader",
    ),
    JudgedBug(
        "releases a partition before the response to its last commit",
        SAFETY,
        "two owners commit: the offset may become lower than the one that the next owner read",
    ),
    JudgedBug(
        "cuts batches during a drain",
        WORK,
        "the drain takes longer; the next owner reads those messages again",
    ),
    JudgedBug(
        "accepts completions of older epochs",
        SAFETY,
        "a batch of a recreated topic is settled by the completion of a batch with the same id",
    ),
    JudgedBug(
        "accepts messages of older epochs", SAFETY, "skips the messages between its position and an old message"
    ),
    JudgedBug(
        "takes a message twice",
        SAFETY,
        "the position would move backwards, but an assertion stops the reader before that",
    ),
    JudgedBug("parks a batch on the failure of an older attempt", WORK, "the running chord is started once more"),
    JudgedBug("parks a batch without showing it", VIEW, "operators do not see the batch, which is retried anyway"),
    JudgedBug("never parks a batch without completions", WORK, "a chord is started at every deadline"),
    JudgedBug("counts missed deadlines across both stages", WORK, "parks a batch earlier than necessary"),
    JudgedBug(
        "shows a batch as parked after its stage is durable", VIEW, "a batch is shown as parked although it is not"
    ),
    JudgedBug("never renews the lease of a parked batch", VIEW, "a parked batch disappears from the list"),
    JudgedBug(
        "waits for the response to a record that it never sent",
        WORK,
        "the batch waits until the deadline of the record",
    ),
    JudgedBug(
        "does not resend a commit that a late commit may have overwritten",
        SAFETY,
        "the stored offset has decreased and stays lower",
    ),
    JudgedBug(
        "drops the batches in flight when messages expire",
        SAFETY,
        "commits an offset past messages that only this reader still has",
    ),
    JudgedBug("stops without flushing the open batch", WORK, "the next owner reads those messages again"),
    JudgedBug("never halts, whatever the number of rejects", POLICY, "every reject becomes a dead letter"),
    JudgedBug(
        "halts because of the rejects of a single project",
        PROGRESS,
        "one project stops the reader for all projects",
    ),
    JudgedBug(
        "halts without making consumed messages durable",
        PROGRESS,
        "a restart reads the same messages and halts again",
    ),
    JudgedBug(
        "drops the rejects of projects that are not shed", SAFETY, "commits past a reject without its dead letter"
    ),
    JudgedBug("retries without a backoff", WORK, "more chords are started while a sink is down"),
    JudgedBug("resumes at the limit instead of at half of it", WORK, "pauses and resumes too often"),
    JudgedBug(
        "cuts a batch after the message that makes it too large to stage",
        WORK,
        "the batch is refused and split",
    ),
    JudgedBug(
        "flushes the halves of a batch before their boundary is stored",
        SAFETY,
        "after a crash, the next owner cuts the whole batch again, so its messages are in two different batches",
    ),
    JudgedBug(
        "accepts fetched messages of a partition that is on hold",
        MEMORY,
        "the partition runs further ahead of a stuck batch",
    ),
    JudgedBug(
        "checks the byte limit only when a batch is cut", MEMORY, "the limit may be exceeded by up to one batch"
    ),
    JudgedBug(
        "lets messages overtake a message that is parsed outside the loop",
        SAFETY,
        "the overtaken message would be skipped, but an assertion stops the reader before that",
    ),
    JudgedBug(
        "lets the end of an assignment overtake waiting messages",
        SAFETY,
        "waiting messages are dropped as already processed",
    ),
    JudgedBug(
        "fetches a partition whose message is parsed outside the loop",
        MEMORY,
        "the loop holds messages that the core cannot accept yet",
    ),
    JudgedBug(
        "handles a gap in the log before it handles the messages fetched earlier",
        SAFETY,
        "fetched messages that have expired in the log are dropped",
    ),
    JudgedBug("cuts one message late", MEMORY, "a batch has one message too many"),
    JudgedBug("counts a batch's age from its last message", WORK, "a batch is cut later"),
    JudgedBug(
        "counts the time of a suspended process as waiting time",
        WORK,
        "a planned range is abandoned earlier than necessary",
    ),
    JudgedBug(
        "waits for the rest of the planned ranges that fill the byte limit",
        PROGRESS,
        "no further messages are taken",
    ),
    JudgedBug(
        "commits the end of the log although earlier messages have not been processed yet",
        SAFETY,
        "commits an offset past messages that have not been processed yet",
    ),
    JudgedBug(
        "cuts a part of a planned range at shutdown",
        SAFETY,
        "the same messages are in the former owner's batch and in a partial batch",
    ),
    JudgedBug("waits indefinitely for a planned end", PROGRESS, "the open batch is never cut"),
    JudgedBug(
        "reads a recreated topic from the old offset",
        SAFETY,
        "skips the first messages of the new topic",
    ),
    JudgedBug("does not count starts", VIEW, "a message that crashes every reader is not reported"),
    JudgedBug("repeats a record that is too long", PROGRESS, "the broker refuses every commit"),
    JudgedBug("writes records that are too long for the broker", PROGRESS, "the broker refuses every commit"),
    JudgedBug(
        "accepts a committed offset without a topic id", SAFETY, "skips the first messages of the new topic"
    ),
    JudgedBug(
        "accepts the first response that reports no committed offset",
        SAFETY,
        "under `latest`, skips uncommitted messages",
    ),
    JudgedBug("never repeats a commit that the broker may have lost", WORK, "the next owner reads messages again"),
    JudgedBug("never restarts fetching from a stalled partition", PROGRESS, "a partition makes no progress"),
    JudgedBug("ignores a partition without an owner", PROGRESS, "a partition makes no progress"),
    JudgedBug(
        "pauses the partition whose planned range is being completed, when messages of the range expire",
        PROGRESS,
        "no further messages are taken",
    ),
    JudgedBug("does not poll while the reader is paused", PROGRESS, "the group removes the reader"),
)
