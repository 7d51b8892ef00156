"""`replays-ingest erase`: one replay, for good, as a deletion request wants it."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from ingest.cli.common import EXIT_FAILED, as_json, by_option, echo, echo_json, fail, redis_answers, settings
from ingest.operate.text import utc_text


@click.command()
@click.argument("replay_id")
@click.option("--project", required=True, type=click.IntRange(0), help="Project id.")
@click.option("--dry-run", is_flag=True, help="Only say what there is of it, and what would be left.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--now", is_flag=True, help="Also while it may be delivered again; then run it again afterwards.")
@click.option(
    "--redelivery-hours",
    type=click.FloatRange(0),
    help="How long after its arrival a message may come again. Default: 24 (Kafka's retention) and "
    "REPLAYS_STAGED_TTL_SECONDS.",
)
@by_option
@as_json
def erase(
    replay_id: str,
    project: int,
    dry_run: bool,
    yes: bool,
    now: bool,
    redelivery_hours: float | None,
    by: str,
    as_json: bool,
) -> None:
    """Erase one replay: its recordings, in objects of their own or packed, and its rows. Not what was billed.

    Refuses while Kafka or Redis may still deliver it again. May be repeated at any time, also after a crash. Exit
    code 0: nothing is left of it; 1: something is, or there never was such a replay, which the last line says.
    """
    from ingest.operate.erase import EraseFailed, Eraser, plain_id, remains
    from ingest.operate.erase import redelivery_hours as usual_hours

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json cannot ask: give --yes or --dry-run")
    try:
        replay_id = plain_id(replay_id)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    loaded = settings()
    hours = usual_hours(loaded) if redelivery_hours is None else redelivery_hours
    with redis_answers():
        eraser = Eraser(loaded, project, replay_id)
        try:
            found = eraser.look()
            again_until = None if found.newest_at is None else found.newest_at + hours * 3600
            if again_until is not None and again_until <= time.time():
                again_until = None
            if not found.erasable:
                _nothing_to_erase(eraser, found, as_json)
            what = described(found)
            if dry_run:
                left = remains(found)
                if again_until is not None:
                    left.append(f"kafka or redis may deliver it again until {utc_text(again_until)} UTC")
                _tell(found, left, f"would erase {what}", as_json, dry_run=True)
                return
            if again_until is not None and not now:
                fail(
                    f"its newest segment may be delivered again until {utc_text(again_until)} UTC: "
                    "run this then, or now with --now and then again"
                )
            if not yes:
                click.confirm(f"Erase {what}? Nobody can bring it back", abort=True, err=True)
            left = eraser.erase(found, by=by, again_until=again_until)
        except EraseFailed as error:
            fail(str(error))
    _tell(found, left, f"erased {what}", as_json)
    sys.exit(EXIT_FAILED if left else 0)


def described(found: Any) -> str:
    """One line: which replay, and how much of it is where."""
    counts = found.counts()
    return (
        f"replay {found.replay_id} of project {found.project_id}: {counts['objects']} objects, "
        f"{counts['packed_bytes']} bytes within {counts['packed_objects']} packed objects, "
        f"{counts['clickhouse_rows']} rows in ClickHouse, {counts['bigquery_rows']} in BigQuery"
    )


def _nothing_to_erase(eraser: Any, found: Any, as_json: bool) -> None:
    """Ends the command: it was erased before, or it never was."""
    from ingest.operate.erase import remains

    before, again_until = eraser.done_before()
    if not (before or found.billed or found.letters):
        other = f"; project {', '.join(map(str, found.elsewhere))} has one" if found.elsewhere else ""
        fail(f"there is nothing of a replay {found.replay_id} in project {found.project_id}{other}")
    left = remains(found)
    if again_until is not None:
        left.append(f"kafka or redis may deliver it again until {utc_text(again_until)} UTC: run this again then")
    _tell(found, left, f"nothing is left to erase of {described(found).partition(':')[0]}", as_json)
    sys.exit(EXIT_FAILED if left else 0)


def _tell(found: Any, left: list[str], done: str, as_json: bool, *, dry_run: bool = False) -> None:
    if as_json:
        about = {
            "project_id": found.project_id,
            "replay_id": found.replay_id,
            "dry_run": dry_run,
            "found": found.counts(),
            "left": left,
            "ok": not left,
        }
        echo_json(about)
        return
    echo(done)
    for line in left:
        echo(f"left: {line}")


COMMANDS = (erase,)
