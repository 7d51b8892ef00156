"""Operator commands: schema, checks, state, parked batches, Flower, audit trail."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from ingest.cli.common import (
    EXIT_FAILED,
    FIRST_STEP,
    append_first_step,
    as_json,
    by_option,
    coordination_of,
    echo,
    echo_json,
    fail,
    nothing_is_configured,
    redis_required,
    settings,
    validated_settings,
)
from ingest.cli.confirm import confirm, require_terminal, yes_option
from ingest.cli.listing import CommandListGroup
from ingest.cli.ranges import FiniteFloatRange
from ingest.cli.values import BatchId, OutputFile
from ingest.operate.columns import Column, FittedTable
from ingest.operate.terminal import Terminal
from ingest.operate.text import size_text, utc_text
from tasks.connection import RedisRefused
from tasks.printed import without_secrets

PARKED = (
    Column("batch"),
    Column("stage", rank=4),
    Column("attempt", rank=5, numeric=True),
    Column("messages", rank=3, numeric=True),
    Column("retry in", rank=2, numeric=True),
    Column("error", rank=1, room=16),
)
AUDIT_COLUMNS = frozenset(("at", "by", "what", "key", "version"))

# Setup


@click.command()
@click.option("--dry-run", is_flag=True, help="Print what would be done; change nothing.")
@click.option("--topics", is_flag=True, help="Also create the input topic (for development).")
def migrate(dry_run: bool, topics: bool) -> None:
    """Create or upgrade the ClickHouse schema, BigQuery tables, bucket and topics."""
    from tasks.errors import SinkError
    from tasks.migrate import migrate as run

    try:
        for line in run(settings(), dry_run=dry_run, topics=topics):
            echo(without_secrets(line))
    except SinkError as error:
        fail(str(error))


@click.command()
@as_json
def check(as_json: bool) -> None:
    """Test every dependency of readers and workers with the clients that they use, and print what to fix.

    Joins a consumer group of its own, commits an offset, stages a batch, publishes and consumes a task, and
    writes, reads and deletes a probe in each sink, as far as permissions allow. Lists what could not be tested.
    Queues without a worker and partitions without an owner are errors.
    """
    from ingest.operate.check import REDIS_KIND, findings

    reported = []
    console = Terminal()
    for finding in findings(settings()):
        reported.append(finding)
        if not as_json:
            # Without `soft_wrap`, an address could be split over two lines when the output is a pipe.
            console.print(finding.line(), highlight=False, soft_wrap=True)
    if as_json:
        echo_json([finding.as_dict() for finding in reported])
    bad = [finding.name for finding in reported if finding.is_bad]
    if bad and nothing_is_configured():
        echo(f"replays-ingest: no servers are configured: set REPLAYS_*, or {FIRST_STEP}", err=True)
    sys.exit(RedisRefused.exit_code if REDIS_KIND in bad else EXIT_FAILED if bad else 0)


@click.command()
@click.argument("file", type=click.File("rb"))
@as_json
def inspect(file: Any, as_json: bool) -> None:
    """Show the content of one message (a Kafka value in FILE, or - for stdin) and the rows it would produce."""
    from ingest.operate.inspect import describe, render
    from ingest.reader.configuration import rules_of

    rules = rules_of(validated_settings())
    description = describe(file.read(rules.message_bytes_max + 1), rules)
    if as_json:
        echo_json(description)
    else:
        Terminal().print(render(description))
    sys.exit(EXIT_FAILED if description.get("reject") else 0)


# State


@click.command()
@as_json
def status(as_json: bool) -> None:
    """Show failing servers, and the state of readers, sinks, queues, parked batches and rejects (from Redis)."""
    from ingest.operate.top import now, page

    with redis_required():
        found = now(settings())
    if as_json:
        echo_json(msgspec.to_builtins(found))
    else:
        Terminal().print(page(found))


@click.command()
@click.option("--once", is_flag=True, help="Print once and exit (the default without a terminal).")
@click.option(
    "--seconds", default=1.0, show_default=True, type=FiniteFloatRange(0.2, 60), help="Refresh interval, seconds."
)
@click.option("--svg", type=OutputFile(), help="Write an SVG image and exit.")
def top(once: bool, seconds: float, svg: Path | None) -> None:
    """Show live state: partitions and lag, batches in flight, sinks and breakers, parked batches, dead letters.

    Also shows the cost by project: reader CPU, staged bytes and rows, averaged over about five minutes.
    """
    from ingest.operate.top import run, svg_page

    with redis_required():
        try:
            if svg is not None:
                svg.write_text(svg_page(settings()))
                return
            run(settings(), Terminal(), once=once, seconds=seconds, describe=append_first_step)
        except KeyboardInterrupt:
            sys.exit(0)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def flower(arguments: tuple[str, ...]) -> None:
    """Run Flower with a retry button, always password-protected. ARGUMENTS are passed to Flower."""
    loaded = settings()  # before Celery reads the environment
    from tasks.celery import app
    from tasks.flower.start import launch

    launch(app, loaded, arguments)


# Parked batches


@click.group(cls=CommandListGroup)
def batches() -> None:
    """Parked batches: list, show, retry or abandon them."""


@batches.command("ls")
@as_json
def batches_ls(as_json: bool) -> None:
    """List parked batches, with their error and next retry."""
    with redis_required():
        coordination = coordination_of(settings())
        parked, now = coordination.parked(), coordination.now()
    if as_json:
        echo_json(parked)
        return
    table = FittedTable(PARKED, empty="no batch is parked")
    for batch_id, entry in sorted(parked.items()):
        table.add_row(
            batch_id,
            str(entry.get("stage", "")),
            str(entry.get("attempt", "")),
            str(entry.get("messages", "")),
            f"{max(0.0, float(entry.get('retry_at', 0)) - now):.0f} s",
            without_secrets(str(entry.get("error", "")))[:120],
        )
    Terminal(columns_without_terminal=200).print(table)


@batches.command("show")
@click.argument("batch_id", type=BatchId())
@as_json
def batches_show(batch_id: str, as_json: bool) -> None:
    """Show all details of one parked batch."""
    with redis_required():
        entry = coordination_of(settings()).parked().get(batch_id)
    if entry is None:
        fail(f"batch {batch_id} is not parked; list parked batches with `replays-ingest batches ls`")
    elif as_json:
        echo_json(entry)
    else:
        for name, value in entry.items():
            echo(f"{name:<12} {without_secrets(str(value))}")


@batches.command("retry")
@click.argument("batch_id", type=BatchId())
@by_option
def batches_retry(batch_id: str, by: str) -> None:
    """Retry a batch now. The command sends the request to the batch's reader."""
    from tasks.operate import NotParked, ReaderGone, retry

    with redis_required():
        try:
            echo(retry(coordination_of(settings()), batch_id, by))
        except (NotParked, ReaderGone) as refused:
            fail(str(refused))


@batches.command("abandon")
@click.argument("batch_id", type=BatchId())
@click.option("--reason", required=True, help="Reason, recorded in the audit trail and in each dead letter.")
@yes_option
@by_option
def batches_abandon(batch_id: str, reason: str, yes: bool, by: str) -> None:
    """Abandon a batch: its messages become dead letters and its reader continues without it."""
    from tasks.errors import SinkError
    from tasks.kafka.ranges import RangeError
    from tasks.operate import NotParked, ReaderGone, abandon
    from tasks.sinks import build

    require_terminal(yes=yes)
    loaded = settings()
    with redis_required():
        entry = coordination_of(loaded).parked().get(batch_id)
    if entry is not None:
        confirm(lambda: _abandoned_text(batch_id, entry), f"Abandon {batch_id}?", yes=yes)
    sink = build("dead_letter", loaded)
    with redis_required():
        try:
            echo(abandon(loaded, coordination_of(loaded), sink, batch_id, reason, by))
        except (NotParked, ReaderGone, SinkError, RangeError, ValueError) as refused:
            fail(str(refused))
        finally:
            sink.close()


def _abandoned_text(batch_id: str, entry: Mapping[str, Any]) -> str:
    """Describes the batch and what happens to it."""
    return (
        f"{batch_id}: {entry.get('messages', '?')} messages, {size_text(float(entry.get('size_bytes', 0)))}, "
        f"partition {entry.get('partition', '?')}, error: {without_secrets(str(entry.get('error', '')))[:200]}. "
        "They will not be written to any further sink: they become dead letters and their offsets are committed."
    )


# Audit trail


@click.command()
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="Maximum number of entries."
)
@as_json
def audit(limit: int, as_json: bool) -> None:
    """List operator actions (kills, limits, retries, replays, erasures) with the operator, latest first."""
    with redis_required():
        actions = coordination_of(settings()).audited(limit)
    if as_json:
        echo_json(actions)
        return
    if not actions:
        echo("no action is recorded")
    for action in actions:
        rest = ", ".join(
            f"{name} {value}" for name, value in action.items() if name not in AUDIT_COLUMNS and value
        )
        echo(f"{utc_text(float(action['at']))}  {action.get('by', ''):<12} {action.get('what', '')}  {rest}")


COMMANDS = (migrate, check, inspect, status, top, flower, batches, audit)
