"""The command line: `replays-ingest` without a command is the reader; everything else is a doorway to its module.

Exit codes: 0 done; 1 it failed, the last line says why; 2 wrong usage or wrong settings; 3 the reader had halted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ingest.settings import Settings, SettingsError, load
from tasks.settings import FILE_VARIABLE

EXIT_FAILED, EXIT_SETTINGS, EXIT_HALTED = 1, 2, 3

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines instead of text.")


def fail(text: str) -> None:
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


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of settings; REPLAYS_* variables win over it.",
)
@click.option("--dry-run", is_flag=True, help="Read and parse, write to memory, commit nothing; stop at the end.")
@click.version_option(package_name="replays-ingest")
@click.pass_context
def main(context: click.Context, settings_file: Path | None, dry_run: bool) -> None:
    """Session replay recordings from Kafka into Cloud Storage, ClickHouse, BigQuery and DataDog, at least once.

    Without a command this is the reader: it consumes REPLAYS_KAFKA_TOPIC until SIGTERM. The flush fleet is
    started with `celery -A tasks worker`. Settings come from REPLAYS_* variables; docs/settings.md has them all.
    """
    if settings_file is not None:
        os.environ[FILE_VARIABLE] = str(settings_file.resolve())
    if context.invoked_subcommand is None:
        from ingest import reader

        loaded = settings()
        try:
            sys.exit(reader.dry_run(loaded) if dry_run else reader.run(loaded))
        except reader.ReaderFailed as error:
            fail(str(error))


@main.command()
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option("--topics", is_flag=True, help="Also create the topic that is read (development).")
def migrate(dry_run: bool, topics: bool) -> None:
    """Create or bring up to date the ClickHouse schema, the BigQuery tables, the bucket and the topics."""
    from tasks.errors import SinkError
    from tasks.migrate import migrate as run

    try:
        for line in run(settings(), dry_run=dry_run, topics=topics):
            click.echo(line)
    except SinkError as error:
        fail(str(error))


@main.command()
@as_json
def check(as_json: bool) -> None:
    """Are the settings valid, every server reachable, topics, bucket and tables there? Says what to do if not."""
    from ingest.check import run

    findings = run(settings())
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings]))
    else:
        console = Console()
        for finding in findings:
            console.print(finding.line(), highlight=False)
    sys.exit(EXIT_FAILED if any(finding.bad for finding in findings) else 0)


@main.command()
@click.argument("file", type=click.File("rb"))
@as_json
def inspect(file: Any, as_json: bool) -> None:
    """What one message (the Kafka value, in FILE or - for stdin) contains and which rows it would make."""
    from ingest.inspect import describe, render
    from ingest.reader import rules_of

    description = describe(file.read(), rules_of(settings()))
    if as_json:
        click.echo(json.dumps(description))
    else:
        Console().print(render(description))
    sys.exit(EXIT_FAILED if description.get("reject") else 0)
