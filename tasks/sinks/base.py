"""What a sink owes the flush task that calls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tasks.wire import Item

ItemT = TypeVar("ItemT", bound=Item, contravariant=True)


@dataclass(frozen=True, slots=True)
class Report:
    """What a check that succeeded found.

    `text`: one line about the server. `warnings`: writes work, and somebody should look at this before it hurts.
    `not_tested`: what could not be tried, each with the reason.
    """

    text: str
    warnings: tuple[str, ...] = ()
    not_tested: tuple[str, ...] = ()


class Sink(Protocol[ItemT]):
    """Writes items of one kind, durably.

    Construction is cheap and opens nothing; clients are made on first use, in the process that uses them
    (a client must not cross a fork). Instances may be used by several threads at once.
    """

    name: str

    def write(self, items: Sequence[ItemT], token: str, deadline_seconds: float) -> None:
        """Returns when every item is durable, within `deadline_seconds`: when the answer proves it, by the proof
        that docs/decisions/016-durable-means-proven.md names. A status of success proves nothing.

        `token` identifies exactly these items (same items, same token). Raises TransientSinkError or
        PermanentSinkError, nothing else, for whatever the server or the network does.
        """

    def examine(self, items: Sequence[ItemT], deadline_seconds: float) -> None:
        """Asks whether the bucket, tables or topic that `items` go to take what they should take, and stores
        nothing. Called before items that were refused become dead letters.

        Returns when they do. Raises PermanentSinkError with `configuration` set when the place itself is at
        fault, and TransientSinkError when that cannot be known at the moment.
        """

    def check(self) -> Report:
        """Does what a write does, with a probe that it reads back and deletes, as far as rights and the kind of
        server allow.

        Raises a SinkError whose text says what is wrong and what to do.
        """

    def close(self) -> None:
        """Releases connections. May be called twice."""
