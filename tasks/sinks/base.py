"""What a sink owes the flush task that calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from tasks.wire import Item

ItemT = TypeVar("ItemT", bound=Item, contravariant=True)


class Sink(Protocol[ItemT]):
    """Writes items of one kind, durably.

    Construction is cheap and opens nothing; clients are made on first use, in the process that uses them
    (a client must not cross a fork). Instances may be used by several threads at once.
    """

    name: str

    def write(self, items: Sequence[ItemT], token: str, deadline_seconds: float) -> None:
        """Returns when every item is durable, within `deadline_seconds`.

        `token` identifies exactly these items (same items, same token). Raises TransientSinkError or
        PermanentSinkError, nothing else, for whatever the server or the network does.
        """

    def check(self) -> str:
        """Reaches the server and its bucket, table or topic, and returns one line about it.

        Raises a SinkError whose text says what is wrong and what to do.
        """

    def close(self) -> None:
        """Releases connections. May be called twice."""
