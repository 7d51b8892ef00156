"""What an operator types: the state of the system, parked batches, dead letters, tenant rules, Flower."""

from __future__ import annotations

import getpass
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from ingest.cli.common import as_json, fail, settings
from ingest.settings import Settings
from tasks.staging import Staging, connect

by_option = click.option(
    "--by", default=getpass.getuser, show_default="your login", help="Who did it, for the audit."
)


@contextmanager
def redis_answers() -> Iterator[None]:
    """Turns a Redis that does not answer into one line."""
    try:
        yield
    except RedisError as error:
        fail(f"redis: {error}; is REPLAYS_REDIS_URL right?")


def staging_of(loaded: Settings) -> Staging:
    """The staged batches, and what operators see of them."""
    return Staging(connect(loaded), loaded)


# The state of it all


@click.command()
@as_json
def status(as_json: bool) -> None:
    """The state of readers, sinks, queues, parked batches and rejects, as the fleet's Redis has it."""
    from ingest.operate.status import collect
    from ingest.operate.top import page

    with redis_answers():
        found = collect(settings())
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        Console().print(page(found))


@click.command()
@click.option("--once", is_flag=True, help="Print the page once and end.")
@click.option(
    "--seconds", default=1.0, show_default=True, type=click.FloatRange(0.2, 60), help="Between two looks."
)
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Write the page once as a picture, and end."
)
def top(once: bool, seconds: float, svg: Path | None) -> None:
    """A live page: partitions and lag, batches in flight, sinks and breakers, parked batches, dead letters."""
    from ingest.operate.top import picture, run

    with redis_answers():
        try:
            if svg is not None:
                svg.write_text(picture(settings()))
                return
            run(settings(), Console(), once=once, seconds=seconds)
        except KeyboardInterrupt:
            sys.exit(0)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def flower(arguments: tuple[str, ...]) -> None:
    """Flower with a retry button, never without a password. Further ARGUMENTS are Flower's own."""
    from tasks.flower import FlowerRefused, launch

    try:
        launch(settings(), arguments)
    except FlowerRefused as refused:
        fail(str(refused))


# Parked batches


@click.group()
def batches() -> None:
    """Batches that gave up and wait: list them, look at one, retry it, or give it up."""


@batches.command("ls")
@as_json
def batches_ls(as_json: bool) -> None:
    """Every parked batch, with its error and when it is tried again."""
    with redis_answers():
        parked = staging_of(settings()).parked()
    if as_json:
        click.echo(json.dumps(parked))
        return
    table = Table("batch", "stage", "attempt", "messages", "retry in", "error")
    for batch_id, about in sorted(parked.items()):
        table.add_row(
            batch_id,
            str(about.get("stage", "")),
            str(about.get("attempt", "")),
            str(about.get("messages", "")),
            f"{max(0.0, float(about.get('retry_at', 0)) - time.time()):.0f} s",
            str(about.get("error", ""))[:120],
        )
    Console().print(table if parked else "nothing is parked")


@batches.command("show")
@click.argument("batch_id")
@as_json
def batches_show(batch_id: str, as_json: bool) -> None:
    """All that is known of one parked batch."""
    with redis_answers():
        about = staging_of(settings()).parked().get(batch_id)
    if about is None:
        fail(f"no batch {batch_id} is parked; `replays-ingest batches ls` shows what is")
    elif as_json:
        click.echo(json.dumps(about))
    else:
        for name, value in about.items():
            click.echo(f"{name:<12} {value}")


@batches.command("retry")
@click.argument("batch_id")
@by_option
def batches_retry(batch_id: str, by: str) -> None:
    """Ask the batch's reader to try it now. Its offset is committed when it settles."""
    from tasks.operate import NotParked, ReaderGone, retry

    with redis_answers():
        try:
            click.echo(retry(staging_of(settings()), batch_id, by))
        except (NotParked, ReaderGone) as refused:
            fail(str(refused))


@batches.command("abandon")
@click.argument("batch_id")
@click.option("--reason", required=True, help="Why; it goes into the audit and into each dead letter.")
@by_option
def batches_abandon(batch_id: str, reason: str, by: str) -> None:
    """Give a batch up: its messages become dead letters, and its reader goes on without it."""
    from confluent_kafka import KafkaException

    from tasks.errors import SinkError
    from tasks.operate import NotParked, ReaderGone, abandon
    from tasks.sinks import build

    loaded = settings()
    sink = build("dead_letter", loaded)
    with redis_answers():
        try:
            click.echo(abandon(loaded, staging_of(loaded), sink, batch_id, reason, by))
        except (NotParked, ReaderGone, SinkError, ValueError, KafkaException) as refused:
            fail(str(refused))
        finally:
            sink.close()


# Dead letters


@click.group()
def dlq() -> None:
    """Dead letters: messages that never parsed, and items that a sink refused."""


def selecting(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose letters."""
    for option in (
        click.option("--reason", help="Only with this reason."),
        click.option("--sink", help="Only what this sink refused."),
        click.option("--id", "ids", multiple=True, help="Only this letter (partition-offset); may be repeated."),
        click.option("--replayed", is_flag=True, help="Also those that were replayed already."),
    ):
        command = option(command)
    return command


@dlq.command("ls")
@selecting
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="How many to list.")
@as_json
def dlq_ls(
    reason: str | None, sink: str | None, ids: tuple[str, ...], replayed: bool, limit: int, as_json: bool
) -> None:
    """The dead letters, oldest first a partition, and how many there are of each reason."""
    from collections import Counter

    from ingest.operate.dlq import DeadLettersUnavailable, Selection, letters

    counts: Counter[tuple[str, str]] = Counter()
    table = Table("id", "reason", "sink", "from", "replayed", "error")
    rows: list[dict[str, Any]] = []
    try:
        for letter in letters(settings(), Selection(reason, sink, frozenset(ids), replayed)):
            counts[letter.reason, letter.sink] += 1
            if len(rows) < limit:
                rows.append(letter.as_dict())
                topic, partition, offset = letter.origin
                place = f"{topic}-{partition}-{offset}"
                table.add_row(
                    letter.id,
                    letter.reason,
                    letter.sink,
                    place,
                    "yes" if letter.replayed else "",
                    letter.error[:80],
                )
    except DeadLettersUnavailable as error:
        fail(str(error))
    if as_json:
        summary = [{"reason": r, "sink": s, "count": n} for (r, s), n in counts.most_common()]
        click.echo(json.dumps({"letters": rows, "counts": summary}))
        return
    console = Console()
    console.print(table)
    for (name, sink_name), count in counts.most_common():
        console.print(f"{count:>8}  {name}{f' by {sink_name}' if sink_name else ''}", highlight=False)


@dlq.command("show")
@click.argument("letter_id")
@click.option("--raw", is_flag=True, help="Only the original bytes, to a pipe or file.")
@as_json
def dlq_show(letter_id: str, raw: bool, as_json: bool) -> None:
    """One dead letter: where it came from, why it is here, and what is in it."""
    from ingest.operate.dlq import DeadLettersUnavailable, Letter, Selection, letters
    from ingest.operate.inspect import describe, render
    from ingest.reader.process import rules_of

    loaded = settings()
    try:
        found = next(letters(loaded, Selection(ids=frozenset((letter_id,)), include_replayed=True)), None)
    except DeadLettersUnavailable as error:
        fail(str(error))
    if found is None:
        fail(f"there is no dead letter {letter_id}; `replays-ingest dlq ls` lists them")
    letter: Letter = found
    if raw:
        sys.stdout.buffer.write(letter.value)
        return
    content = None if letter.sink else describe(letter.value, rules_of(loaded))
    if as_json:
        click.echo(json.dumps({**letter.as_dict(), "content": content}))
        return
    for name, value in letter.as_dict().items():
        click.echo(f"{name:<12} {value}")
    if content is None:
        click.echo(letter.value[:2000].decode("utf-8", "replace"))
    else:
        Console().print(render(content))


@dlq.command("replay")
@selecting
@click.option("--all", "everything", is_flag=True, help="Without any other choice: really all of them.")
@click.option("--rate", default=100.0, show_default=True, type=click.FloatRange(0.1, 100_000), help="A second.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent where.")
@by_option
@as_json
def dlq_replay(
    reason: str | None,
    sink: str | None,
    ids: tuple[str, ...],
    replayed: bool,
    everything: bool,
    rate: float,
    dry_run: bool,
    by: str,
    as_json: bool,
) -> None:
    """Send dead letters where they belong: rejects to their topic, refused items to the sink that refused them."""
    from ingest.operate.dlq import DeadLettersUnavailable, Letter, Selection, replay

    if not (reason or sink or ids or everything):
        raise click.UsageError("say which: --reason, --sink, --id, or --all")
    loaded = settings()

    def told(letter: Letter, outcome: str) -> None:
        if not as_json:
            click.echo(f"{letter.id}  {letter.reason}  {outcome}")

    selection = Selection(reason, sink, frozenset(ids), replayed)
    with redis_answers():
        staging = staging_of(loaded)
        try:
            summary = replay(loaded, selection, per_second_max=rate, dry_run=dry_run, done=told)
        except DeadLettersUnavailable as error:
            fail(str(error))
        if not dry_run:
            deed = {
                "what": "dlq_replay",
                "by": by,
                "reason": reason or "",
                "sink": sink or "",
                "ids": ",".join(ids),
            }
            counts = {"produced": summary.produced, "written": summary.written, "failed": len(summary.failed)}
            staging.audit({**deed, **counts})
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(summary), "dry_run": dry_run}))
    else:
        verb = "would be" if dry_run else "were"
        click.echo(
            f"{summary.produced} {verb} produced again, {summary.written} written to their sink, "
            f"{summary.repeats} were repeats, {len(summary.failed)} failed"
        )
    sys.exit(1 if summary.failed else 0)


# Tenant rules


@click.group()
def tenants() -> None:
    """Rules that shed one project's messages, so that its flood does not become everyone's lag."""


def _store(loaded: Settings) -> Any:
    from ingest.reader.tenant_rules import TenantStore

    return TenantStore(connect(loaded), loaded.key_prefix)


@tenants.command("ls")
@as_json
def tenants_ls(as_json: bool) -> None:
    """Projects that are switched off or limited."""
    with redis_answers():
        rules = _store(settings()).rules()
    limits = {str(p): {"per_second": r.per_second, "burst": r.burst} for p, r in rules.limits.items()}
    if as_json:
        click.echo(json.dumps({"killed": sorted(rules.killed), "limits": limits}))
        return
    for project in sorted(rules.killed):
        click.echo(f"project {project}: off")
    for project_id, limit in limits.items():
        click.echo(
            f"project {project_id}: {limit['per_second']:g} messages a second, bursts of {limit['burst']:g}"
        )
    if not (rules.killed or limits):
        click.echo("no rules")


@tenants.command("kill")
@click.argument("project", type=click.IntRange(0))
@by_option
def tenants_kill(project: int, by: str) -> None:
    """Drop every message of PROJECT from now on. They are counted, and gone."""
    _rule(lambda store: store.kill(project), "tenant_kill", project, by)


@tenants.command("revive")
@click.argument("project", type=click.IntRange(0))
@by_option
def tenants_revive(project: int, by: str) -> None:
    """Take PROJECT's messages again."""
    _rule(lambda store: store.revive(project), "tenant_revive", project, by)


@tenants.command("limit")
@click.argument("project", type=click.IntRange(0))
@click.option("--per-second", type=click.FloatRange(0.01), help="Messages a second, over all readers.")
@click.option("--burst", type=click.FloatRange(1), help="Messages at once; ten seconds' worth if not given.")
@click.option("--remove", is_flag=True, help="No limit any more.")
@by_option
def tenants_limit(project: int, per_second: float | None, burst: float | None, remove: bool, by: str) -> None:
    """Give PROJECT a token bucket; what is above it is dropped and counted."""
    from ingest.core.tenants import Limit

    if remove == (per_second is not None):
        raise click.UsageError("give --per-second, or --remove")
    limit = None if per_second is None else Limit(per_second, burst or max(1.0, 10 * per_second))
    _rule(lambda store: store.limit(project, limit), "tenant_limit", project, by, limit=str(limit))


def _rule(act: Callable[[Any], None], what: str, project: int, by: str, **more: str) -> None:
    loaded = settings()
    with redis_answers():
        act(_store(loaded))
        staging_of(loaded).audit({"what": what, "project": project, "by": by, **more})
    click.echo("done; readers follow within a second or two")


COMMANDS = (status, top, flower, batches, dlq, tenants)
