"""`replays-ingest dlq`: list, show and replay dead letters."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ingest.cli.common import as_json, by_option, coordination_of, echo, echo_json, fail, redis_required, settings
from ingest.cli.confirm import confirm, yes_option
from ingest.cli.listing import CommandListGroup
from ingest.cli.ranges import FiniteFloatRange
from ingest.cli.values import LetterId
from ingest.operate.columns import Column, FittedTable
from ingest.operate.terminal import Terminal
from ingest.operate.text import times_as_text, utc_text
from tasks.printed import printable
from tasks.wire import SinkName

if TYPE_CHECKING:  # commands import their dependencies when they run
    from ingest.operate.dlq import Selection
    from ingest.settings import Settings

VALUE_CHARACTERS_MAX = 2000


@click.group(cls=CommandListGroup)
def dlq() -> None:
    """Dead letters: messages that could not be parsed, and items that a sink refused."""


def letter_selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that select dead letters."""
    for option in (
        click.option("--reason", help="Select letters with this reason."),
        click.option(
            "--sink",
            type=click.Choice([sink.value for sink in SinkName]),
            help="Select items refused by this sink.",
        ),
        click.option(
            "--id",
            "ids",
            multiple=True,
            type=LetterId(),
            help="Select this letter; repeatable.",
        ),
        click.option("--replayed", is_flag=True, help="Include letters that were already replayed."),
    ):
        command = option(command)
    return command


@dlq.command("ls")
@letter_selection_options
@click.option(
    "--limit",
    default=50,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of dead letters to list.",
)
@as_json
def dlq_ls(
    reason: str | None, sink: str | None, ids: tuple[str, ...], replayed: bool, limit: int, as_json: bool
) -> None:
    """List dead letters, oldest first per partition, with counts by reason."""
    from ingest.operate.dlq import DeadLettersUnavailable, Selection, current_erasures, letters, shown
    from ingest.reader.configuration import rules_of

    loaded = settings()
    counts: Counter[tuple[str, str]] = Counter()
    chosen = reason or sink or ids
    table = FittedTable(_columns(loaded), empty="no dead letter matches" if chosen else "no dead letter")
    rows: list[dict[str, Any]] = []
    try:
        erasures, rules = current_erasures(loaded), rules_of(loaded)
        for letter in letters(loaded, Selection(reason, sink, frozenset(ids), replayed)):
            counts[letter.reason, letter.sink] += 1
            if len(rows) < limit:
                rows.append(shown(letter, erasures, rules))
                table.add_row(
                    letter.id,
                    utc_text(letter.timestamp_ms / 1000),
                    letter.reason,
                    letter.sink,
                    str(letter.label.origin),
                    "yes" if letter.replayed else "",
                    rows[-1]["error"][:80],
                )
    except DeadLettersUnavailable as error:
        fail(str(error))
    if as_json:
        summary = [{"reason": r, "sink": s, "count": n} for (r, s), n in counts.most_common()]
        echo_json({"letters": rows, "counts": summary})
        return
    console = Terminal(columns_without_terminal=200)
    console.print(table)
    for (name, sink_name), count in counts.most_common():
        echo(f"{count:>8}  {printable(name)}{f' by {printable(sink_name)}' if sink_name else ''}")


def _columns(loaded: Settings) -> tuple[Column, ...]:
    """Returns the columns of `dlq ls`. On a narrow terminal, offsets are shown without the topic if it is the
    input topic."""

    def omit_source_topic(place: str) -> str:
        return place.removeprefix(f"{loaded.kafka_topic}-")

    return (
        Column("id"),
        Column("time (UTC)", rank=2),
        Column("reason", room=28),
        Column("sink", rank=4),
        Column("from", rank=1, short=omit_source_topic),
        Column("replayed", rank=5),
        Column("error", rank=3, room=16),
    )


@dlq.command("show")
@click.argument("letter_id", type=LetterId())
@click.option("--raw", is_flag=True, help="Write only the original bytes, to a pipe or file.")
@as_json
def dlq_show(letter_id: str, raw: bool, as_json: bool) -> None:
    """Show one dead letter: origin, reason and content."""
    from ingest.operate.dlq import (
        ERASED,
        DeadLettersUnavailable,
        Letter,
        Selection,
        current_erasures,
        letters,
        shown,
    )
    from ingest.operate.inspect import describe, render
    from ingest.reader.configuration import rules_of

    loaded = settings()
    try:
        erasures = current_erasures(loaded)
        found = next(letters(loaded, Selection(ids=frozenset((letter_id,)), include_replayed=True)), None)
    except DeadLettersUnavailable as error:
        fail(str(error))
    if found is None:
        fail(f"no dead letter {letter_id}; list them with `replays-ingest dlq ls`")
    letter: Letter = found
    details = shown(letter, erasures, rules_of(loaded))
    if details["erased"]:
        fail(f"dead letter {letter_id} cannot be shown: {ERASED}")
    if raw:
        if sys.stdout.isatty():
            fail(
                "--raw does not write to a terminal, because the bytes may contain control sequences: redirect "
                "it to a file or pipe"
            )
        sys.stdout.buffer.write(letter.value)
        return
    content = None if letter.sink else describe(letter.value, rules_of(loaded))
    if as_json:
        echo_json({**details, "content": content})
        return
    for name, value in times_as_text(details).items():
        text = str(value)
        more = (
            f" ... and {len(text) - VALUE_CHARACTERS_MAX} characters" if len(text) > VALUE_CHARACTERS_MAX else ""
        )
        echo(f"{name:<13} {printable(text[:VALUE_CHARACTERS_MAX])}{more}")
    if content is None:
        echo(printable(letter.value[:VALUE_CHARACTERS_MAX].decode("utf-8", "replace")))
        if len(letter.value) > VALUE_CHARACTERS_MAX:
            echo(f"... and {len(letter.value) - VALUE_CHARACTERS_MAX} bytes; --raw prints all")
    else:
        Terminal().print(render(content))


@dlq.command("replay")
@letter_selection_options
@click.option(
    "--all", "everything", is_flag=True, help="Replay all letters. Required if no other filter is given."
)
@click.option(
    "--rate",
    default=100.0,
    show_default=True,
    type=FiniteFloatRange(0.1, 100_000),
    help="Maximum number of dead letters to replay per second.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and where; send nothing.")
@click.option(
    "--unverified",
    is_flag=True,
    help="Include letters without a valid seal, and items whose original message is no longer in the topic.",
)
@yes_option
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
    unverified: bool,
    yes: bool,
    by: str,
    as_json: bool,
) -> None:
    """Replay dead letters: rejects to their topic, refused items to the sink that refused them.

    Refused items are rebuilt from their original message, so that a forged letter cannot change other data.
    """
    from ingest.operate.dlq import DeadLettersUnavailable, Letter, Selection, replay

    if not (reason or sink or ids or everything):
        raise click.UsageError("select letters with --reason, --sink, --id or --all")
    loaded = settings()

    def report(letter: Letter, outcome: str) -> None:
        if not as_json:
            echo(f"{letter.id}  {printable(letter.reason)}  {printable(outcome)}")

    selection = Selection(reason, sink, frozenset(ids), replayed)
    if not (dry_run or ids):
        confirm(lambda: _describe_destinations(loaded, selection), "Replay them?", yes=yes)
    with redis_required():
        coordination = coordination_of(loaded)
        try:
            summary = replay(
                loaded, selection, per_second_max=rate, dry_run=dry_run, unverified=unverified, done=report
            )
        except DeadLettersUnavailable as error:
            fail(str(error))
        if not dry_run:
            action = {
                "what": "dlq_replay",
                "by": by,
                "reason": reason or "",
                "sink": sink or "",
                "ids": ",".join(ids),
            }
            counts = {"produced": summary.produced, "written": summary.written, "failed": len(summary.failed)}
            coordination.audit({**action, **counts})
    if as_json:
        echo_json({**msgspec.to_builtins(summary), "dry_run": dry_run})
    else:
        verb = "would be" if dry_run else "were"
        echo(
            f"{summary.produced} {verb} produced again, {summary.written} written to their sink, "
            f"{summary.repeats} were repeats, {len(summary.failed)} failed"
        )
    sys.exit(1 if summary.failed else 0)


def _describe_destinations(loaded: Settings, selection: Selection) -> str:
    """Describes the number and the destinations of the selected letters."""
    from ingest.operate.dlq import DeadLettersUnavailable, letters

    counts: Counter[tuple[str, str]] = Counter()
    try:
        for letter in letters(loaded, selection):
            counts[letter.reason, letter.sink] += 1
    except DeadLettersUnavailable as error:
        fail(str(error))
    parts = [
        f"{count:,} {reason} to {f'the sink {sink}' if sink else 'their topic'}"
        for (reason, sink), count in counts.most_common()
    ]
    return f"{sum(counts.values()):,} dead letters are selected: {'; '.join(parts) or 'none'}."


COMMANDS = (dlq,)
