"""`replays-ingest shadow`: what this release would write, compared with what is stored."""

from __future__ import annotations

import sys

import click
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from ingest.cli.common import as_json, echo_json, fail, settings
from ingest.cli.scope import scope_options
from ingest.operate.terminal import Terminal

EXIT_DIFFERENT = 1


@click.command()
@scope_options
@click.option("--rate", type=click.FloatRange(0.1), help="Maximum messages per second; unlimited if not given.")
@click.option(
    "--limit",
    default=100,
    show_default=True,
    type=click.IntRange(0, 10_000),
    help="Differences to list per sink; all of them are counted.",
)
@as_json
def shadow(
    partition: int | None,
    start: int | None,
    stop: int | None,
    since: float | None,
    until: float | None,
    rate: float | None,
    limit: int,
    as_json: bool,
) -> None:
    """Compare what this release would write with what is stored, and write nothing: a canary before an upgrade.

    Reads what the readers' group has committed, all that the topic still holds unless a range is given. It joins
    no group and commits nothing. Recordings are compared by checksum, rows of ClickHouse by identity and content.
    Exit code 0: equal; 1: differences, or the comparison failed, which the last line says; 2: wrong usage.
    """
    from ingest.operate.reconcile import ReconcileFailed, Scope
    from ingest.operate.shadow import render, run

    try:
        scope = Scope(partition, start, stop, since, until)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    loaded = settings()
    console = Terminal(stderr=True)
    columns = (TextColumn("{task.completed} messages compared"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("shadow", total=None)
        try:
            found = run(
                loaded,
                scope,
                per_second_max=rate,
                differences_max=limit,
                progress=lambda messages: bar.update(task, completed=messages),
            )
        except ReconcileFailed as error:
            fail(str(error))
    if as_json:
        echo_json(found.as_dict())
    else:
        Terminal().print(render(found))
    sys.exit(0 if found.ok else EXIT_DIFFERENT)


COMMANDS = (shadow,)
