"""Types of ids, names and output paths on the command line.

A wrong value is a usage error (one line, exit code 2), found before the command contacts a server or
changes anything.
"""

from __future__ import annotations

import getpass
import os
import re
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import click

OPERATOR_CHARACTERS_MAX = 200
SHOWN_CHARACTERS_MAX = 80


class ReplayId(click.ParamType[str]):
    """A replay id, converted to 32 lower-case hex digits without dashes."""

    name = "replay_id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails with a usage error."""
        from ingest.operate.erase.holdings import plain_id

        try:
            return plain_id(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _FormattedId(click.ParamType[str]):
    """An id that is accepted unchanged if it has the form of `pattern`; otherwise the error names the form and the
    command that lists such ids.
    """

    pattern: ClassVar[re.Pattern[str]]
    form: ClassVar[str]
    list_command: ClassVar[str]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails with a usage error."""
        if not self.pattern.fullmatch(str(value)):
            advice = f"list ids with `replays-ingest {self.list_command}`"
            self.fail(f"{_shortened(value)} is not the id of a {self.form}; {advice}", param, ctx)
        return str(value)


class LetterId(_FormattedId):
    """The id of a dead letter: PARTITION-OFFSET in the dead-letter topic."""

    name = "partition-offset"
    pattern = re.compile(r"[0-9]{1,10}-[0-9]{1,19}")
    form = "dead letter (PARTITION-OFFSET)"
    list_command = "dlq ls"


class BatchId(_FormattedId):
    """The id of a batch: TOPIC-PARTITION-START-STOP."""

    name = "batch_id"
    pattern = re.compile(r"[A-Za-z0-9._-]{1,249}(-[0-9]{1,19}){3}")
    form = "batch (TOPIC-PARTITION-START-STOP)"
    list_command = "batches ls"


class OperatorName(click.ParamType[str]):
    """The name of an operator for the audit trail: printable, not blank, at most OPERATOR_CHARACTERS_MAX."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails with a usage error."""
        name = str(value).strip()
        if not name or not name.isprintable() or len(name) > OPERATOR_CHARACTERS_MAX:
            self.fail(f"give 1 to {OPERATOR_CHARACTERS_MAX} printable characters", param, ctx)
        return name


class OutputFile(click.Path):
    """A file that the command can create or replace. Its directory must exist."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Fails with a usage error if the file cannot be written. Leaves no file behind."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            if path.exists():
                path.open("ab").close()
            else:
                with tempfile.TemporaryFile(dir=path.parent):
                    pass
        except OSError as error:
            self.fail(f"{str(path)!r} cannot be written: {error.strerror}", param, ctx)
        return path


class OutputDirectory(click.Path):
    """A directory that the command writes to, and creates when it runs."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Fails with a usage error if files cannot be created in the directory or, if it does not exist, in its
        closest existing parent. Leaves nothing behind.
        """
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        existing = path.absolute()
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        try:
            with tempfile.TemporaryDirectory(dir=existing):
                pass
        except OSError as error:
            self.fail(f"{str(path)!r} cannot be written: {error.strerror}", param, ctx)
        return path


def login() -> str:
    """Returns the login of the current user, or `uid N` if the user has no name, as is common in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 raises OSError
        return f"uid {os.getuid()}"


def _shortened(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "…")
