"""What all commands share: settings or exit code 2, one line and exit code 1, `--json`."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from ingest.settings import Settings, SettingsError, load

EXIT_FAILED, EXIT_SETTINGS = 1, 2

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines instead of text.")


def fail(text: str) -> NoReturn:
    """Says on one line of standard error why nothing was done, and exits with 1."""
    click.echo(f"replays-ingest: {text}", err=True)
    sys.exit(EXIT_FAILED)


def settings() -> Settings:
    """The settings, or exit code 2 with what is wrong and what is allowed."""
    try:
        return load()
    except SettingsError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_SETTINGS)
