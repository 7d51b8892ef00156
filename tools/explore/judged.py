"""Classifies the planted bugs of tests/mutation that simulated worlds miss: whether each breaks safety, and why.

A bug breaks safety if it can commit an offset past an item that is not durable, lose a message, put the same
messages into two different batches (two meanings), decrease an offset, or let two owners write. The explorer runs
`Pipeline` with everything that it uses. It does not run the loop (`reader/runtime.py`), nor the modules that
decide before an assignment or outside the pipeline (`core/starting.py`, `core/stalls.py`, `core/ownership.py`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from tools.explore.planted import BUGS


class Breaks(StrEnum):
    """What a bug breaks."""

    SAFETY = "safety"
    PROGRESS = "progress"
    WORK = "work"  # repeats, delays, or costs requests
    MEMORY = "memory"
    VIEW = "what operators see"
    POLICY = "policy of rejects"


class Judged(NamedTuple):
    """One bug, what it breaks, and why."""

    bug: str
    breaks: Breaks
    why: str

    @property
    def world(self) -> str:
        """The smallest world of the explorer that shows it; empty if there is none."""
        found = next((bug for bug in BUGS if bug.name == self.bug), None)
        if found is None:
            return ""
        expiry = ", messages expire" if found.expiry else ""
        return f"{found.world} message(s), {found.faults} fault(s){expiry}"


SAFETY, PROGRESS, WORK, MEMORY, VIEW, POLICY = Breaks
JUDGED = (
    Judged(
        "forgets a revoked partition at once instead of draining it",
        SAFETY,
        "two owners write: its chords and commit still run when the next owner begins",
    ),
    Judged("drains without a deadline", PROGRESS, "the group waits until it expels the reader"),
    Judged(
        "releases a partition before its last commit is answered",
        SAFETY,
        "two owners commit: the offset may fall behind what the next owner read",
    ),
    Judged(
        "goes on cutting while it drains",
        WORK,
        "the drain takes longer; the next owner reads those messages again",
    ),
    Judged(
        "accepts completions of older epochs",
        SAFETY,
        "a batch of a topic created again is settled by the completion of its namesake",
    ),
    Judged(
        "accepts messages of older epochs", SAFETY, "skips the messages between its position and an old message"
    ),
    Judged("takes a message twice", SAFETY, "the position moves backwards; an assertion ends the reader first"),
    Judged("lets an older attempt's failure park the newer one", WORK, "the running chord is started once more"),
    Judged("parks without telling anybody", VIEW, "the batch is retried all the same"),
    Judged("never parks what is never heard of", WORK, "chords are started at every deadline"),
    Judged("counts missed deadlines over both stages", WORK, "parks a batch earlier than necessary"),
    Judged("goes on showing a batch whose stage is durable", VIEW, "a parked batch that is not parked"),
    Judged("never renews what operators see", VIEW, "a parked batch vanishes from the list"),
    Judged("waits for the answer to a record that it does not send", WORK, "waits until the record's deadline"),
    Judged(
        "does not say a commit again that a late one may have overwritten",
        SAFETY,
        "the stored offset has moved backwards and stays there",
    ),
    Judged(
        "drops batches in flight when messages expired",
        SAFETY,
        "commits past messages that only this reader still has",
    ),
    Judged("stops without flushing what is open", WORK, "the next owner reads those messages again"),
    Judged("never halts, however many rejects come", POLICY, "every reject becomes a dead letter"),
    Judged("halts for the garbage of a single project", PROGRESS, "stops for one project"),
    Judged(
        "halts without making what it took durable", PROGRESS, "a restart reads the same messages and halts again"
    ),
    Judged(
        "drops the rejects of projects that are not shed", SAFETY, "commits past a reject without its dead letter"
    ),
    Judged("retries without backing off", WORK, "more chords while a sink is down"),
    Judged("resumes at the bound instead of at half of it", WORK, "pauses and resumes too often"),
    Judged(
        "cuts a batch after the message that Redis cannot take with it",
        WORK,
        "the batch is refused and cut again into halves",
    ),
    Judged(
        "flushes the halves of a batch before their boundary is stored",
        SAFETY,
        "after a crash the next owner cuts the whole batch again: two meanings",
    ),
    Judged("takes what is fetched of a partition that is held", MEMORY, "runs further ahead of a stuck batch"),
    Judged("notices the byte bound when a batch is cut", MEMORY, "exceeds the bound by part of a batch"),
    Judged(
        "lets messages overtake one that is parsed beside the loop",
        SAFETY,
        "skips the overtaken message; an assertion ends the reader first",
    ),
    Judged(
        "lets the end of an assignment overtake what waits",
        SAFETY,
        "messages that wait are dropped as already taken",
    ),
    Judged(
        "fetches a partition whose message is parsed beside the loop", MEMORY, "the loop keeps what it cannot take"
    ),
    Judged(
        "lets the log go on elsewhere before what was fetched is taken",
        SAFETY,
        "fetched messages that have expired are dropped",
    ),
    Judged("cuts one message late", MEMORY, "a batch has one message too many"),
    Judged("counts a batch's age from its last message", WORK, "a batch is cut later"),
    Judged(
        "counts the time in which the process stood still",
        WORK,
        "gives a planned range up early, as the clock may anyway",
    ),
    Judged("waits for the rest of planned ranges that fill the byte bound", PROGRESS, "takes no message any more"),
    Judged(
        "commits the end of the log before its messages were taken", SAFETY, "commits past messages not yet taken"
    ),
    Judged(
        "cuts a part of a planned range at shutdown",
        SAFETY,
        "the former owner's batch and its part have the same messages: two meanings",
    ),
    Judged("waits for ever for a planned end", PROGRESS, "the open batch is never cut"),
    Judged(
        "reads a topic that was created again from the old offset",
        SAFETY,
        "skips the first messages of the new topic",
    ),
    Judged("counts no start", VIEW, "a message that ends every reader is not named"),
    Judged("repeats a record that is too long", PROGRESS, "the broker refuses every commit"),
    Judged("writes records that the broker refuses", PROGRESS, "the broker refuses every commit"),
    Judged("believes a committed offset that names no topic", SAFETY, "skips the first messages of the new topic"),
    Judged(
        "believes the first answer that nothing is committed",
        SAFETY,
        "under `latest`, skips what was not committed",
    ),
    Judged("never commits again what a broker may have lost", WORK, "the next owner reads messages again"),
    Judged("never fetches a partition anew", PROGRESS, "a partition stands still"),
    Judged("leaves a partition without an owner alone", PROGRESS, "a partition stands still"),
    Judged("does not poll while paused", PROGRESS, "the group expels the reader"),
)
