"""What became of the items of one write, and which error says so.

A sink writes in parts (objects, tables, requests), and each part may end differently. It notes them here, and
`raise_if_any` makes the one error of `tasks.errors` that loses nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from tasks.errors import PermanentSinkError, SinkError, TransientSinkError, shortened


class Kind(Enum):
    """Who acts on an error: the machine, or a person who looks at the item or at the configuration."""

    TRANSIENT = auto()
    DATA = auto()
    CONFIGURATION = auto()


@dataclass(frozen=True, slots=True)
class Trouble:
    """A client library's exception, or a server's answer, sorted. `retry_after_seconds`: what the server asked."""

    kind: Kind
    message: str
    retry_after_seconds: float | None = None

    def error(self) -> SinkError:
        """As an error about everything that was asked for."""
        text = shortened(self.message)
        if self.kind is Kind.TRANSIENT:
            return TransientSinkError(text, retry_after_seconds=self.retry_after_seconds)
        return PermanentSinkError(text, configuration=self.kind is Kind.CONFIGURATION)


def remaining_seconds(ends_at: float) -> float:
    """What is left until `ends_at` (a value of time.monotonic), never negative."""
    return max(0.0, ends_at - time.monotonic())


class Outcome:
    """Collects by position. What is not noted is durable. Not thread-safe: one thread collects."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._transient: dict[int, str] = {}
        self._refused: dict[int, str] = {}
        self._unnamed: dict[int, str] = {}
        self._configuration: list[str] = []
        self._retry_after_seconds: float | None = None
        self._nothing_written = False

    def note(self, trouble: Trouble, positions: Iterable[int], *, named: bool = True) -> None:
        """`trouble` befell exactly these items. `named=False`: some of them are to blame, nobody knows which."""
        if trouble.kind is Kind.CONFIGURATION:
            self._configuration.append(trouble.message)
        elif trouble.kind is Kind.TRANSIENT:
            self._transient.update((position, trouble.message) for position in positions)
            if trouble.retry_after_seconds is not None:
                self._retry_after_seconds = max(self._retry_after_seconds or 0.0, trouble.retry_after_seconds)
        elif named:
            self._refused.update((position, shortened(trouble.message)) for position in positions)
        else:
            self._unnamed.update((position, trouble.message) for position in positions)

    def note_nothing_written(self) -> None:
        """The refused items are known, and because of them the server took none of their neighbours."""
        self._nothing_written = True

    def raise_if_any(self) -> None:
        """Returns when every item is durable.

        A wrong configuration goes first, since it needs a person in any case and the whole batch is tried
        again after it. Then what the machine can mend: refused items are listed with it, they are refused
        again, and named, once the rest is durable. Then the refused.
        """
        if self._configuration:
            raise PermanentSinkError(self._text(self._configuration[0]), configuration=True)
        if self._transient:
            failed = tuple(sorted({*self._transient, *self._refused, *self._unnamed}))
            text = f"{next(iter(self._transient.values()))} ({len(failed)} items)"
            raise TransientSinkError(
                self._text(text), retry_after_seconds=self._retry_after_seconds, failed=failed
            )
        if self._unnamed:
            raise PermanentSinkError(self._text(next(iter(self._unnamed.values()))))
        if self._refused:
            named = tuple(sorted(self._refused.items()))
            raise PermanentSinkError(
                self._text(f"{len(named)} refused, first: {named[0][1]}"),
                failed=named,
                all_refused=self._nothing_written,
            )

    def _text(self, message: str) -> str:
        return shortened(f"{self._sink}: {message}")
