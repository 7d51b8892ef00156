"""Errors of sinks. The class of an error determines who acts next: the retry logic or an operator."""

from __future__ import annotations

from tasks.printed import printable, without_secrets

MESSAGE_CHARACTERS_MAX = 500


def shortened(text: str, characters_max: int = MESSAGE_CHARACTERS_MAX) -> str:
    """Shortens the text to one printable line without secrets, because errors pass through Redis, logs, terminals
    and Flower.
    """
    line = " ".join(printable(without_secrets(text[: 8 * characters_max]), " ").split())
    return line if len(line) <= characters_max else line[: characters_max - 3] + "..."


class SinkError(Exception):
    """A write failed."""


class TransientSinkError(SinkError):
    """An error that is retried automatically: timeout, refused connection, 429, 5xx, or a response that does not
    prove that the write succeeded.

    `retry_after_seconds`: the wait requested by the server, or None. `failed`: positions (in the list given to
    `write`) of the items that are not durable; None if no item is known to be durable. The other items are durable
    and are not retried.
    """

    def __init__(
        self, message: str, *, retry_after_seconds: float | None = None, failed: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.failed = failed


class PermanentSinkError(SinkError):
    """An error that a retry cannot fix.

    `failed`: position and error of each refused item, or None if the server does not name them and the caller must
    bisect. All other items are durable unless `all_refused` is set; in that case, none of the other items is known
    to be durable, and all of them must be written again. `suspects`, used if `failed` is None: positions of the
    items that may be refused; all other items are durable. If `suspects` is None too, nothing is known to be
    durable. `configuration`: no item is at fault (missing bucket or table, bad credentials), so the batch must be
    parked and must not become dead letters.
    """

    def __init__(
        self,
        message: str,
        *,
        failed: tuple[tuple[int, str], ...] | None = None,
        suspects: tuple[int, ...] | None = None,
        all_refused: bool = False,
        configuration: bool = False,
    ) -> None:
        super().__init__(message)
        self.failed = failed
        self.suspects = suspects
        self.all_refused = all_refused
        self.configuration = configuration
