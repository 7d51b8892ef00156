"""`replays-ingest erase`: permanently deletes replays, for deletion requests."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import click

from ingest.cli import ranges
from ingest.cli.common import EXIT_FAILED, as_json, by_option, echo, echo_json, fail, redis_required, settings
from ingest.cli.confirm import confirm, require_terminal, yes_option
from ingest.cli.ranges import FiniteFloatRange
from ingest.cli.values import OutputFile, ReplayId


@click.command()
@click.argument("replay_ids", nargs=-1, type=ReplayId(), metavar="[REPLAY_ID]...")
@click.option("--project", required=True, type=ranges.project, help="Project id.")
@click.option(
    "--user", default="", help="All replays of this user: id, name, e-mail, or the value shown by `replays ls`."
)
@click.option("--all", "everything", is_flag=True, help="All stored replays of the project.")
@click.option(
    "--list",
    "listed",
    type=click.File("r", encoding="utf-8", errors="replace"),
    help="Replay ids, one per line; - for standard input.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be erased and what would remain; erase nothing.")
@yes_option
@click.option("--rate", default=5.0, show_default=True, type=FiniteFloatRange(0.01), help="Replays per second.")
@click.option(
    "--wait-seconds",
    default=60.0,
    show_default=True,
    type=FiniteFloatRange(0),
    help="Maximum wait, in seconds, for readers to finish the messages that they read before the tombstone.",
)
@click.option(
    "--certificate",
    type=OutputFile(),
    help="File to which a JSON record of the removed data is written.",
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
    """Erase replays: their recordings (in both object layouts) and their rows. Billing outcomes are kept.

    First writes a tombstone to Kafka, so that readers never store these replays again. The command can be repeated
    at any time, even after a crash. Exit code 0: nothing is left; 1: something is left, or there is no such replay
    (see the last line).
    """
    from ingest.local.servers.processes import private_opener
    from ingest.operate.erase import EraseFailed, Erasure, listed_ids

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json requires --yes or --dry-run")
    if sum((bool(replay_ids), bool(user), everything, listed is not None)) != 1:
        raise click.UsageError("give either replay ids or one of --user, --all and --list")
    try:
        named = list(replay_ids) if listed is None else listed_ids(listed)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if listed is not None and not named:
        raise click.UsageError(f"{listed.name} contains no replay id")
    require_terminal(yes=yes or dry_run)
    loaded = settings()
    with redis_required():
        try:
            erasure = Erasure(loaded, project, named, user=user, everything=everything, rate=rate)
            found = erasure.search()
            unknown = [holdings for holdings in found if not (holdings.erasable or erasure.known(holdings))]
            if unknown and not (user or everything):
                _fail_as_not_stored(unknown[0])
            if dry_run:
                left = [line for holdings in found for line in erasure.uncovered_data(holdings)]
                _print(found, left, "would erase", as_json, dry_run=True)
                return
            what = describe_holdings(found[0]) if len(found) == 1 else f"{len(found)} replays of project {project}"
            confirm(lambda: f"Selected: {what}.", "Erase? This cannot be undone", yes=yes)
            done = erasure.erase(by=by, wait_seconds=wait_seconds)
        except EraseFailed as error:
            fail(str(error))
    if certificate is not None:
        with open(certificate, "w", opener=private_opener) as file:
            file.write(json.dumps({"erasures": [erased.certificate for erased in done]}, indent=1) + "\n")
    left = [line for erased in done for line in erased.left]
    _print([erased.found for erased in done], left, "erased", as_json)
    sys.exit(EXIT_FAILED if left else 0)


def describe_holdings(found: Any) -> str:
    """Describes the replay and its stored data in one line."""
    counts = found.counts()
    return (
        f"replay {found.replay_id} of project {found.project_id}: {counts['objects']} objects, "
        f"{counts['packed_bytes']} bytes within {counts['packed_objects']} packed objects, "
        f"{counts['clickhouse_rows']} rows in ClickHouse, {counts['bigquery_rows']} in BigQuery"
    )


def _fail_as_not_stored(found: Any) -> None:
    other = f"; it is stored in project {', '.join(map(str, found.elsewhere))}" if found.elsewhere else ""
    fail(f"nothing is stored of replay {found.replay_id} in project {found.project_id}{other}")


def _print(found: Sequence[Any], left: list[str], done: str, as_json: bool, *, dry_run: bool = False) -> None:
    if as_json:
        replays = [
            {"project_id": holdings.project_id, "replay_id": holdings.replay_id, "found": holdings.counts()}
            for holdings in found
        ]
        single = replays[0] if len(replays) == 1 else {}
        echo_json({**single, "replays": replays, "dry_run": dry_run, "left": left, "ok": not left})
        return
    for holdings in found:
        nothing = f"nothing is left to erase of {describe_holdings(holdings).partition(':')[0]}"
        echo(f"{done} {describe_holdings(holdings)}" if holdings.erasable else nothing)
    if not found:
        echo("nothing is stored yet; messages that arrive later are not written")
    for line in left:
        echo(f"left: {line}")


COMMANDS = (erase,)
