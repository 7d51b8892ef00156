"""`replays-ingest shadow`: compares what this release would write with what is stored."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from ingest.cli.common import as_json, echo_json, fail, settings
from ingest.cli.ranges import FiniteFloatRange
from ingest.cli.scope import DurationType, scope_options
from ingest.operate.terminal import Terminal

EXIT_DIFFERENT = 1
ROUND_SECONDS = 15.0


@click.command()
@scope_options
@click.option(
    "--follow",
    type=DurationType(),
    help="Compare messages as the group commits them, for this long: 90s, 30m, 2h.",
)
@click.option(
    "--rate", type=FiniteFloatRange(0.1), help="Maximum number of messages per second; unlimited if not given."
)
@click.option(
    "--limit",
    default=100,
    show_default=True,
    type=click.IntRange(0, 10_000),
    help="Maximum number of differences to list per sink; all are counted.",
)
@as_json
def shadow(
    partition: int | None,
    start: int | None,
    stop: int | None,
    since: float | None,
    until: float | None,
    follow: float | None,
    rate: float | None,
    limit: int,
    as_json: bool,
) -> None:
    """Compare what this release would write with what is stored, without writing, as a canary before an upgrade.

    Reads messages that the readers' group has committed: the whole topic, a range of it, or whatever the group
    commits from now on (--follow). Joins no group and commits nothing. Compares recordings by checksum, and
    ClickHouse rows by identity and content.

    Exit code 0: equal; 1: differences, nothing to compare, or the comparison failed (see the last line); 2: wrong
    usage.
    """
    from ingest.operate.reconcile import ReconcileFailed, Scope
    from ingest.operate.shadow import render, run

    try:
        scope = Scope(partition, start, stop, since, until)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if follow is not None and (stop is not None or until is not None):
        raise click.UsageError("--follow ends after its own duration: leave out --stop and --until")
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
                another_round=None if follow is None else round_timer(follow),
                progress=lambda messages: bar.update(task, completed=messages),
            )
        except ReconcileFailed as error:
            fail(str(error))
    if as_json:
        echo_json(found.as_dict())
    else:
        Terminal().print(render(found))
    if not found.messages:
        fail("no committed message is in this range, so nothing was compared: choose another range")
    sys.exit(0 if found.ok else EXIT_DIFFERENT)


def round_timer(seconds: float) -> Callable[[], bool]:
    """Waits between two rounds of a comparison with --follow, but not beyond its time limit."""
    ends_at = time.monotonic() + seconds
    is_over = False

    def another_round() -> bool:
        nonlocal is_over
        if is_over:
            return False
        remaining_seconds = ends_at - time.monotonic()
        is_over = remaining_seconds <= ROUND_SECONDS
        time.sleep(max(0.0, min(ROUND_SECONDS, remaining_seconds)))
        return True

    return another_round


COMMANDS = (shadow,)
