"""Interface of sinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from tasks.wire import Item, Row

ItemT = TypeVar("ItemT", bound=Item, contravariant=True)


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a successful check.

    `text`: one line about the server. `warnings`: problems that need attention although writes work. `not_tested`:
    what could not be tested, with reasons.
    """

    text: str
    warnings: tuple[str, ...] = ()
    not_tested: tuple[str, ...] = ()


class Sink(Protocol[ItemT]):
    """Writes items of one kind durably.

    Construction opens no connections; clients are created on first use in each process, because they must not
    cross a fork. Thread-safe.
    """

    name: str

    def write(self, items: Sequence[ItemT], token: str, deadline_seconds: float) -> None:
        """Returns once every item is proven to be durable, within `deadline_seconds`. A success status alone is no
        proof (docs/decisions/016-durable-means-proven.md).

        `token` identifies exactly these items (same items, same token). Raises only TransientSinkError or
        PermanentSinkError.
        """

    def examine(self, items: Sequence[ItemT], deadline_seconds: float) -> None:
        """Checks that the bucket, tables or topic of `items` accept valid items, without storing any. Called
        before refused items become dead letters.

        Returns normally if they accept valid items. Raises PermanentSinkError with `configuration` set if the
        destination is at fault, and TransientSinkError if the state of the destination is currently unknown.
        """

    def check(self) -> Report:
        """Writes, reads and deletes a probe, as far as permissions and the kind of server allow.

        Raises a SinkError whose message states the problem and what to do.
        """

    def close(self) -> None:
        """Releases connections. May be called twice."""


class TaskRecord(Protocol):
    """Data that the runs of a flush task share, for sinks that must know what an earlier run sent."""

    def load(self) -> bytes:
        """Returns the content; empty if there is none."""

    def store(self, content: bytes) -> bool:
        """Replaces the content. If another run has changed the content since `load`, returns False and stores
        nothing.
        """


@runtime_checkable
class RecordingSink(Protocol):
    """A sink that records what it sends, so that a repeated task sends it to the same place."""

    def write_recorded(
        self, items: Sequence[Row], positions: Sequence[int], record: TaskRecord, deadline_seconds: float
    ) -> None:
        """Same as `Sink.write`. `positions`: positions of the items in the task's payload, which never change."""
