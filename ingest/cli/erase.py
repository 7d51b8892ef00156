"""`replays-ingest erase`: replays, for good, as a deletion request wants it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import click

from ingest.cli.common import EXIT_FAILED, as_json, by_option, echo, echo_json, fail, redis_answers, settings


@click.command()
@click.argument("replay_ids", nargs=-1, metavar="[REPLAY_ID]...")
@click.option("--project", required=True, type=click.IntRange(0), help="Project id.")
@click.option("--user", default="", help="Every replay of this user: id, name, e-mail, or what replays ls shows.")
@click.option("--all", "everything", is_flag=True, help="Everything of the project that has arrived.")
@click.option("--list", "listed", type=click.File("r"), help="Replay ids, one per line; - for standard input.")
@click.option("--dry-run", is_flag=True, help="Only say what there is of it, and what would be left.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--rate", default=5.0, show_default=True, type=click.FloatRange(0.01), help="Replays per second.")
@click.option(
    "--wait-seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Longest wait for readers to settle what they took before.",
)
@click.option(
    "--certificate",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for a JSON document of what was removed.",
)
@by_option
@as_json
def erase(
    replay_ids: tuple[str, ...],
    project: int,
    user: str,
    everything: bool,
    listed: IO[str] | None,
    dry_run: bool,
    yes: bool,
    rate: float,
    wait_seconds: float,
    certificate: Path | None,
    by: str,
    as_json: bool,
) -> None:
    """Erase replays: recordings, in objects of their own or packed, and rows. Not what was billed.

    First a tombstone is kept in Kafka: readers write nothing of it again, however its messages come back. May be
    repeated at any time, also after a crash. Exit code 0: nothing is left; 1: something is, or there never was
    such a replay, which the last line says.
    """
    from ingest.local.servers.processes import private_opener
    from ingest.operate.erase import EraseFailed, Erasure, plain_id

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json cannot ask: give --yes or --dry-run")
    if sum((bool(replay_ids), bool(user), everything, listed is not None)) != 1:
        raise click.UsageError("give replay ids, or one of --user, --all and --list")
    try:
        named = [plain_id(text) for text in (replay_ids if listed is None else listed.read().split())]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    loaded = settings()
    with redis_answers():
        try:
            erasure = Erasure(loaded, project, named, user=user, everything=everything, rate=rate)
            found = erasure.look()
            unknown = [one for one in found if not (one.erasable or erasure.known(one))]
            if unknown and not (user or everything):
                _fail_unknown(unknown[0])
            if dry_run:
                left = [line for one in found for line in erasure.left_of(one)]
                _tell(found, left, "would erase", as_json, dry_run=True)
                return
            if not yes:
                what = described(found[0]) if len(found) == 1 else f"{len(found)} replays of project {project}"
                click.confirm(f"Erase {what}? Nobody can bring it back", abort=True, err=True)
            done = erasure.erase(by=by, wait_seconds=wait_seconds)
        except EraseFailed as error:
            fail(str(error))
    if certificate is not None:
        with open(certificate, "w", opener=private_opener) as file:
            file.write(json.dumps({"erasures": [one.certificate for one in done]}, indent=1) + "\n")
    left = [line for one in done for line in one.left]
    _tell([one.found for one in done], left, "erased", as_json)
    sys.exit(EXIT_FAILED if left else 0)


def described(found: Any) -> str:
    """One line: which replay, and how much of it is where."""
    counts = found.counts()
    return (
        f"replay {found.replay_id} of project {found.project_id}: {counts['objects']} objects, "
        f"{counts['packed_bytes']} bytes within {counts['packed_objects']} packed objects, "
        f"{counts['clickhouse_rows']} rows in ClickHouse, {counts['bigquery_rows']} in BigQuery"
    )


def _fail_unknown(found: Any) -> None:
    other = f"; project {', '.join(map(str, found.elsewhere))} has one" if found.elsewhere else ""
    fail(f"there is nothing of a replay {found.replay_id} in project {found.project_id}{other}")


def _tell(found: Sequence[Any], left: list[str], done: str, as_json: bool, *, dry_run: bool = False) -> None:
    if as_json:
        replays = [
            {"project_id": one.project_id, "replay_id": one.replay_id, "found": one.counts()} for one in found
        ]
        alone = replays[0] if len(replays) == 1 else {}
        echo_json({**alone, "replays": replays, "dry_run": dry_run, "left": left, "ok": not left})
        return
    for one in found:
        nothing = f"nothing is left to erase of {described(one).partition(':')[0]}"
        echo(f"{done} {described(one)}" if one.erasable else nothing)
    if not found:
        echo("there is nothing of it yet; what arrives late is not written")
    for line in left:
        echo(f"left: {line}")


COMMANDS = (erase,)
