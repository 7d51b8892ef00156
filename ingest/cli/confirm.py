"""Confirmation before a command makes an irreversible change: on a terminal, unless `--yes` is given."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from ingest.cli.common import echo

yes_option = click.option(
    "--yes",
    is_flag=True,
    help="Skip the confirmation prompt. Without a terminal there is no prompt, and the command proceeds.",
)


def confirm(consequences: Callable[[], str], question: str, *, yes: bool) -> None:
    """Prints the consequences and asks, on a terminal. Answering no ends the command with exit code 1.

    `consequences` is only called when they are printed, because it may count what would change.
    """
    if yes or not sys.stdin.isatty():
        return
    echo(consequences(), err=True)
    click.confirm(question, abort=True, err=True)
