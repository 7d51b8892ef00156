"""`replays-ingest backfill`: rebuilds facts and click rows of stored recordings from the bucket."""

from __future__ import annotations

import sys
from typing import IO

import click
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from ingest.cli import ranges
from ingest.cli.common import EXIT_FAILED, as_json, by_option, echo_json, fail, settings
from ingest.cli.confirm import confirm, require_terminal, yes_option
from ingest.cli.ranges import FiniteFloatRange
from ingest.cli.scope import since_option, until_option
from ingest.operate.terminal import Terminal
from tasks.wire import SinkName


@click.command()
@click.option("--project", type=ranges.project, help="Only this project.")
@since_option
@until_option
@click.option(
    "--list",
    "listed",
    type=click.File("r", encoding="utf-8", errors="replace"),
    help="Replay ids, one per line; - for standard input.",
)
@click.option("--dry-run", is_flag=True, help="Compare and report what would be written; write nothing.")
@yes_option
@click.option("--rate", default=50.0, show_default=True, type=FiniteFloatRange(0.1), help="Recordings per second.")
@click.option(
    "--limit",
    default=100,
    show_default=True,
    type=click.IntRange(0, 10_000),
    help="Maximum number of differing rows to list per sink; all are counted.",
)
@by_option
@as_json
def backfill(
    project: int | None,
    since: float | None,
    until: float | None,
    listed: IO[str] | None,
    dry_run: bool,
    yes: bool,
    rate: float,
    limit: int,
    by: str,
    as_json: bool,
) -> None:
    """Rebuild facts and click rows of stored recordings, after a parser fix or the loss of a table.

    Recordings are read from the bucket, parsed by this release and compared with ClickHouse and BigQuery; rows
    that are missing or differ are written with the identities that ingestion gave them. The command can be
    repeated: a second run writes nothing. The time window applies to arrival times. Values that the recording does
    not contain are copied from its rows in ClickHouse; recordings without rows are counted and listed.

    Exit code 0: all recordings were rebuilt; 1: some could not be rebuilt, or the run failed (see the last line).
    """
    from ingest.operate.backfill import Backfill, BackfillFailed, Selection, render
    from ingest.operate.erase import listed_ids

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json requires --yes or --dry-run")
    try:
        named = None if listed is None else tuple(listed_ids(listed))
        selection = Selection(project, since, until, named)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    require_terminal(yes=yes or dry_run)
    loaded = settings()
    for needed in (SinkName.GCS, SinkName.CLICKHOUSE):
        if needed not in loaded.sinks:
            raise click.UsageError(f"a backfill reads {needed}: add it to REPLAYS_SINKS")
    console = Terminal(stderr=True)
    columns = (TextColumn("{task.completed} of {task.total} recordings"), TimeElapsedColumn())
    try:
        request = Backfill(loaded, selection)
        count = request.count()
        confirm(
            lambda: f"{count} recordings are selected; --dry-run shows what would be written",
            f"Rebuild the rows of {count} recordings?",
            yes=yes or dry_run,
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("backfill", total=count)
            found = request.run(
                dry_run=dry_run,
                per_second_max=rate,
                by=by,
                differences_max=limit,
                progress=lambda segments: bar.update(task, completed=segments),
            )
    except BackfillFailed as error:
        fail(str(error))
    if as_json:
        echo_json(found.as_dict())
    else:
        Terminal().print(render(found))
    sys.exit(0 if found.ok else EXIT_FAILED)


COMMANDS = (backfill,)
