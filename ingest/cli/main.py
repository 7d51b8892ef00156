"""The entry point of `replays-ingest`: runs the reader, or the module of the given command.

Exit codes: 0 success; 1 failure, explained by the last line; 2 incorrect usage or invalid settings; 3 the reader
halted.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from ingest.cli import backfill, dlq, erase, find, local, operate, reconcile, run, shadow, tenants
from ingest.cli.common import EXIT_FAILED, as_json, echo, settings, validated_settings, with_settings
from ingest.cli.listing import CommandListGroup, add_examples, completion, leaf_commands
from tasks.observe.logs import to_standard_error
from tasks.settings import FILE_VARIABLE

GROUPS = (operate, dlq, tenants, reconcile, shadow, backfill, erase, find, local)


# A full disk, or a file or directory that is missing or not permitted. Other errors of the system are defects.
FILE_ERRORS = frozenset(
    (
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EISDIR,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    )
)


class Program(CommandListGroup):
    """The root command, which reports a file that cannot be read or written in one line, with exit code 1."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Runs the command and exits."""
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            if error.errno not in FILE_ERRORS:
                raise
            name = error.filename if error.filename is not None else "standard output"
            echo(f"replays-ingest: {name}: {error.strerror}", err=True)
            # Python would otherwise write what is left in the buffer when it exits, and report the error again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(EXIT_FAILED)


@click.group(cls=Program, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    help="TOML settings file; REPLAYS_* variables override it.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Read, parse and batch messages in memory, without writing or committing, then exit.",
)
@click.option(
    "--messages",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of messages to read in a dry run.",
)
@as_json
@click.version_option(package_name="replays-ingest")
@click.pass_context
def main(context: click.Context, settings_file: Path | None, dry_run: bool, messages: int, as_json: bool) -> None:
    """Ingest session replay recordings from Kafka into Cloud Storage, ClickHouse, BigQuery and Datadog.

    Delivery is at least once. Without a command, runs the reader: consumes REPLAYS_KAFKA_TOPIC until SIGTERM.
    Start workers with `celery -A tasks worker`. Settings are REPLAYS_* variables, listed in docs/settings.md.
    """
    # Without a handler, Python would print library warnings between a command's own lines. The reader and the
    # workers replace this with their log configuration.
    logging.getLogger().addHandler(logging.NullHandler())
    to_standard_error()
    if settings_file is not None:
        os.environ[FILE_VARIABLE] = str(settings_file.resolve())
    if context.invoked_subcommand is None:
        # The reader takes no addresses from a running local stack, because `local up --all` runs its own reader.
        sys.exit(run.dry_run(settings(), messages, as_json) if dry_run else run.reader(validated_settings()))


def _add(group: click.Group, command: click.Command) -> None:
    """Adds the command and makes it and its subcommands validate settings before they run, except for `--help`."""
    group.add_command(command)
    for _, leaf in leaf_commands(command):
        assert leaf.callback is not None, leaf.name
        leaf.callback = with_settings(leaf.callback)


for module in GROUPS:
    for command in module.COMMANDS:
        _add(main, command)
main.add_command(completion)  # reads no settings, so an invalid setting cannot break shell startup
add_examples(main)
