"""Classifies failed writes.

The parts of one write (objects, tables, requests) can have different results; `raise_if_any` combines the failures
into one of the errors that `tasks.errors` defines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from tasks.errors import PermanentSinkError, SinkError, TransientSinkError, shortened

log = logging.getLogger(__name__)

# Limits the wait requested by a server, so that no response delays a batch for days.
RETRY_AFTER_SECONDS_MAX = 3600.0


class Action(Enum):
    """How the items of a failed write are handled."""

    RETRY = "the task retries the write, with backoff"
    PARK = "the batch is parked until an operator acts; no item becomes a dead letter"
    SPLIT = "the group of items is halved and written in parts; an item that fails alone becomes a dead letter"
    DEAD_LETTER = "this item becomes a dead letter, if the table is healthy"


class Blame(Enum):
    """What is at fault."""

    ROW = "row"
    BATCH = "batch"
    SIZE = "size"
    REQUEST = "request"
    CREDENTIALS = "credentials"
    TABLE = "table"
    SERVER = "server"
    NETWORK = "network"

    @property
    def action(self) -> Action:
        return BLAME_ACTIONS[self]

    @property
    def blames_items(self) -> bool:
        """Whether items refused for this cause may become dead letters."""
        return self.action in (Action.SPLIT, Action.DEAD_LETTER)


BLAME_ACTIONS = {
    Blame.ROW: Action.DEAD_LETTER,
    Blame.BATCH: Action.SPLIT,
    Blame.SIZE: Action.SPLIT,
    Blame.REQUEST: Action.PARK,
    Blame.CREDENTIALS: Action.PARK,
    Blame.TABLE: Action.PARK,
    Blame.SERVER: Action.RETRY,
    Blame.NETWORK: Action.RETRY,
}
# Labels shown to operators, explained in docs/sinks.md.
BLAME_MEANINGS = {
    Blame.ROW: "The server named this item as the cause, or refused it when it was sent alone.",
    Blame.BATCH: "The server refused a request because of an item, without naming it.",
    Blame.SIZE: "The request is larger than the server, or a proxy in front of it, accepts.",
    Blame.REQUEST: "The address, the proxy, the certificate or a setting is wrong: no request would be accepted.",
    Blame.CREDENTIALS: "The account's login, permissions, billing or license is at fault.",
    Blame.TABLE: "The bucket, table or topic is missing, altered, protected, or of another kind.",
    Blame.SERVER: "The server is overloaded, restarting or being moved, or has an internal error.",
    Blame.NETWORK: "There was no response, a broken response, or a response without proof of the write.",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A classified exception from a client library, or a classified response from a server.

    `retry_after_seconds`: the wait requested by the server. `unproven`: the response had a success status, but did
    not prove the write.
    """

    blame: Blame
    message: str
    retry_after_seconds: float | None = None
    unproven: bool = False

    def about(self, what: str) -> Failure:
        """Returns a copy whose message begins with `what`, the name of a table or object."""
        return replace(self, message=f"{what}: {self.message}")

    def blamed(self, blame: Blame) -> Failure:
        """Returns a copy with `blame` as the cause."""
        return replace(self, blame=blame)

    def error(self) -> SinkError:
        """Returns the exception to raise if this failure applies to all items of the write."""
        text = shortened(self.message)
        if self.blame.action is Action.RETRY:
            return TransientSinkError(text, retry_after_seconds=self.retry_after_seconds)
        return PermanentSinkError(text, configuration=not self.blame.blames_items)


def seconds_until(ends_at: float) -> float:
    """Returns the time left until `ends_at` (a value of time.monotonic), never negative."""
    return max(0.0, ends_at - time.monotonic())


class Outcome:
    """Collects the failures of one write, by item position. Items for which nothing was recorded count as durable.
    Used by one thread."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._transient: dict[int, str] = {}
        self._refused: dict[int, str] = {}
        self._unnamed: dict[int, str] = {}
        self._held: list[str] = []
        self._unproven: list[str] = []
        self._retry_after_seconds: float | None = None
        self._excluded: set[int] = set()

    def note(self, failure: Failure, positions: Iterable[int]) -> None:
        """Records that `failure` applies to exactly these items. If `failure.blame` is BATCH or SIZE, at least one
        of the items is at fault.
        """
        if failure.unproven:
            self._unproven.append(failure.message)
        match failure.blame.action:
            case Action.PARK:
                self._held.append(failure.message)
            case Action.RETRY:
                self._transient.update((position, failure.message) for position in positions)
                if failure.retry_after_seconds is not None:
                    requested_seconds = max(self._retry_after_seconds or 0.0, failure.retry_after_seconds)
                    self._retry_after_seconds = min(requested_seconds, RETRY_AFTER_SECONDS_MAX)
            case Action.DEAD_LETTER:
                self._refused.update((position, shortened(failure.message)) for position in positions)
            case Action.SPLIT:
                self._unnamed.update((position, failure.message) for position in positions)

    def note_excluded(self, positions: Iterable[int]) -> None:
        """Records items that are neither at fault nor written: the server refused the whole request because of
        other items in it.
        """
        self._excluded.update(positions)

    def raise_if_any(self) -> None:
        """Raises an error unless every item is durable.

        An error that needs an operator takes precedence: the whole batch is retried after the fix. Next comes an
        error that is retried automatically; it also lists the refused items, which the server will name again once
        the other items are durable. An error that lists only refused items is raised only if there is no
        other error.
        """
        if self._unproven:
            count, first = len(self._unproven), shortened(self._unproven[0])
            log.warning("%s: %s responses without proof of a write, first: %s", self._sink, count, first)
        if self._held:
            raise PermanentSinkError(self._text(self._held[0]), configuration=True)
        if self._transient:
            failed = tuple(sorted({*self._transient, *self._refused, *self._unnamed, *self._excluded}))
            text = f"{next(iter(self._transient.values()))} ({len(failed)} items)"
            raise TransientSinkError(
                self._text(text), retry_after_seconds=self._retry_after_seconds, failed=failed
            )
        if self._unnamed:
            suspects = tuple(sorted({*self._unnamed, *self._refused, *self._excluded}))
            raise PermanentSinkError(self._text(next(iter(self._unnamed.values()))), suspects=suspects)
        if self._refused:
            named = tuple(sorted(self._refused.items()))
            raise PermanentSinkError(
                self._text(f"{len(named)} refused, first: {named[0][1]}"),
                failed=named,
                all_refused=bool(self._excluded),
            )

    def _text(self, message: str) -> str:
        return shortened(f"{self._sink}: {message}")
