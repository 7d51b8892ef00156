"""Asks for confirmation before an irreversible change, or requires `--yes` if standard input is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import IO, Any

import click

from ingest.cli.common import echo

yes_option = click.option(
    "--yes", is_flag=True, help="Skip the confirmation prompt. Required if standard input is not a terminal."
)


class NotATerminal(click.ClickException):
    """Raised if confirmation is required but standard input is not a terminal. click prints one line and exits
    with 2.
    """

    exit_code = 2

    def __init__(self) -> None:
        super().__init__("not a terminal: add --yes to confirm")

    def show(self, file: IO[Any] | None = None) -> None:
        """click calls this at the end of the command."""
        echo(f"replays-ingest: {self.message}", err=True)


def require_terminal(*, yes: bool) -> None:
    """Raises NotATerminal if confirmation is required but standard input is not a terminal.

    Commands call this function before they contact a server.
    """
    if not (yes or sys.stdin.isatty()):
        raise NotATerminal


def confirm(consequences: Callable[[], str], question: str, *, yes: bool) -> None:
    """Prints the consequences and asks for confirmation. The answer "no" ends the command with exit code 1.

    `consequences` is called only if its text is printed, because counting the affected items may take a long time.
    """
    require_terminal(yes=yes)
    if yes:
        return
    echo(consequences(), err=True)
    click.confirm(question, abort=True, err=True)
