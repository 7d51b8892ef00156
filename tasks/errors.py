"""Errors that say who acts next. Sinks raise nothing else."""

from __future__ import annotations

from tasks.printed import printable, without_secrets

MESSAGE_CHARACTERS_MAX = 500


def shortened(text: str, characters_max: int = MESSAGE_CHARACTERS_MAX) -> str:
    """One printable line without secrets: errors travel through Redis, logs, terminals and Flower."""
    line = " ".join(printable(without_secrets(text[: 8 * characters_max]), " ").split())
    return line if len(line) <= characters_max else line[: characters_max - 3] + "..."


class SinkError(Exception):
    """A sink did not take what it was given."""


class TransientSinkError(SinkError):
    """The machine tries again: time-outs, refused connections, 429, 5xx, answers that prove nothing.

    `retry_after_seconds`: what the server asked for, None when it said nothing.
    `failed`: positions (in the list given to `write`) that are not durable; None means none of it is known
    to be. What is not listed is durable and is not tried again.
    """

    def __init__(
        self, message: str, *, retry_after_seconds: float | None = None, failed: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.failed = failed


class PermanentSinkError(SinkError):
    """A person looks: trying the same again cannot help.

    `failed`: (position, error) of the items that were refused, where the server says so; then all others
    are durable unless `all_refused`, which says: the named ones are bad, nothing was written, write the
    rest again. None: the server refused without saying which, so the caller bisects.
    `among`: with `failed` None, the positions that the refused items are among; all others are durable. None:
    nothing is known to be durable.
    `configuration=True`: no item is to blame (missing bucket or table, bad credentials): never dead-letter
    for it, park the batch.
    """

    def __init__(
        self,
        message: str,
        *,
        failed: tuple[tuple[int, str], ...] | None = None,
        among: tuple[int, ...] | None = None,
        all_refused: bool = False,
        configuration: bool = False,
    ) -> None:
        super().__init__(message)
        self.failed = failed
        self.among = among
        self.all_refused = all_refused
        self.configuration = configuration
