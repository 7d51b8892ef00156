"""Asks for confirmation before an irreversible change, if there is a terminal and no `--yes`."""

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
    """On a terminal, prints the consequences and asks for confirmation. The answer "no" ends the command with exit
    code 1.

    `consequences` is called only if its text is printed, because counting what would change may take long.
    """
    if yes or not sys.stdin.isatty():
        return
    echo(consequences(), err=True)
    click.confirm(question, abort=True, err=True)
