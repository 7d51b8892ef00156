"""`replays-ingest reconcile`: reports items missing from sinks and optionally repairs them."""

from __future__ import annotations

import sys
from typing import NoReturn

import click
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from ingest.cli.common import as_json, by_option, echo_json, fail, redis_required, settings
from ingest.cli.ranges import FiniteFloatRange
from ingest.cli.scope import scope_options
from ingest.operate.terminal import Terminal
from tasks.wire import SinkName

EXIT_MISSING = 1


@click.command()
@scope_options
@click.option(
    "--expired",
    is_flag=True,
    help="Audit retention instead: list objects kept too long and rows without an object.",
)
@click.option(
    "--grace-days",
    default=2.0,
    show_default=True,
    type=FiniteFloatRange(0),
    help="With --expired: grace period in days after the end of an object's retention.",
)
@click.option("--repair", is_flag=True, help="Write the missing items to their sinks.")
@click.option(
    "--rate", default=200.0, show_default=True, type=FiniteFloatRange(0.1), help="Repair rate, items per second."
)
@by_option
@as_json
def reconcile(
    partition: int | None,
    start: int | None,
    stop: int | None,
    since: float | None,
    until: float | None,
    expired: bool,
    grace_days: float,
    repair: bool,
    rate: float,
    by: str,
    as_json: bool,
) -> None:
    """Read a range of the topic again and report segments missing from each sink.

    Covers committed messages only. Dead letters, messages of disabled projects and expired recordings are not
    reported as missing. Without a range, reads the whole topic. Exit code 0: nothing is missing, or everything was
    repaired; 1: something is missing, or the comparison failed (see the last line).

    With --expired, reads no messages. Compares the bucket with ClickHouse and lists objects (in both layouts) that
    are older than the retention period given in their names, and segments whose object is missing. Exit code 0:
    nothing is listed; 1: something is listed.
    """
    if expired:
        if repair or any(given is not None for given in (partition, start, stop, since, until)):
            raise click.UsageError("--expired lists the whole bucket: leave out ranges, times and --repair")
        _audit_retention(grace_days, as_json)
    from ingest.operate.reconcile import ReconcileFailed, Scope, render, run

    try:
        scope = Scope(partition, start, stop, since, until)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    loaded = settings()
    console = Terminal(stderr=True)
    columns = (TextColumn("{task.completed} messages read again"), TimeElapsedColumn())
    with redis_required(), Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reconcile", total=None)
        try:
            account = run(
                loaded,
                scope,
                repair=repair,
                per_second_max=rate,
                by=by,
                progress=lambda messages: bar.update(task, completed=messages),
            )
        except ReconcileFailed as error:
            fail(str(error))
    if as_json:
        echo_json(account.as_dict())
    else:
        Terminal().print(render(account))
    sys.exit(0 if account.ok else EXIT_MISSING)


def _audit_retention(grace_days: float, as_json: bool) -> NoReturn:
    from ingest.operate.retention import AuditFailed, audit, render

    loaded = settings()
    if SinkName.GCS not in loaded.sinks:
        raise click.UsageError("an audit of retention reads gcs: add it to REPLAYS_SINKS")
    console = Terminal(stderr=True)
    columns = (TextColumn("{task.completed} objects listed"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("retention", total=None)
        try:
            found = audit(
                loaded, grace_days=grace_days, progress=lambda objects: bar.update(task, completed=objects)
            )
        except AuditFailed as error:
            fail(str(error))
    if as_json:
        echo_json(found.as_dict())
    else:
        Terminal().print(render(found))
    sys.exit(0 if found.ok else EXIT_MISSING)


COMMANDS = (reconcile,)
