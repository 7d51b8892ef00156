"""Runs the previous release and this release side by side under load, and upgrades in the documented order and in
the reverse order.

    python -m tools.mixed --minutes 5    (make mixed-versions)
    python -m tools.mixed --minutes 5 --planted formats

The previous release is built from git in a separate environment. Readers and workers of both releases share one
Kafka, Redis, schema and consumer group. In each phase they are replaced one after another with SIGTERM, under
load. At the end, every sink is compared with the produced messages.

`--planted formats` uses the current code as the old release, and two patched copies of it as newer releases: the
first copy only adds fields to the formats, and the second also raises the format versions. With `--planted lossy`
the new release loses rows, and the run must fail.

The exit code is 0 if every check passed, or if this clone has no previous release (1 if the variable CI is set); 1
if a check failed; and 130 if the run was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from enum import StrEnum
from pathlib import Path

from rich.console import Console

from ingest.local.compare.report import ReconcileError
from ingest.local.fleet import Fleet
from ingest.local.launch import CURRENT_INSTALLATION
from ingest.local.load.produce import LoadError
from ingest.local.servers import java_kafka
from ingest.local.servers.processes import LocalError
from ingest.local.stack import KafkaKind, Stack
from tasks.errors import SinkError
from tasks.release import RELEASE
from tools.chaos.run import PLAIN_WIDTH, ending_event, working_directory
from tools.mixed.build import BuildFailed, Release, released
from tools.mixed.fleet import MixedFleet
from tools.mixed.phases import LOSSY, PLANTED, RELEASES, ReleaseName
from tools.mixed.planted import Kind, OutdatedPatch, planted
from tools.mixed.releases import NoRelease, previous
from tools.mixed.result import Result, show
from tools.mixed.run import SETTINGS, Plan, Run

MESSAGES_PER_SECOND = 30.0


class Planted(StrEnum):
    """The kinds of newer releases that a run can make by patching the current code."""

    FORMATS = "formats"
    LOSSY = "lossy"


PHASES = {None: RELEASES, Planted.FORMATS: PLANTED, Planted.LOSSY: LOSSY}


def releases_of(kind: Planted | None, directory: Path) -> dict[ReleaseName, Release]:
    """Returns the releases of a run. Raises NoRelease, BuildFailed, OutdatedPatch."""
    here = Release(RELEASE, CURRENT_INSTALLATION)
    match kind:
        case Planted.FORMATS:
            additive, newer = planted(Kind.ADDITIVE, directory), planted(Kind.NEWER, directory)
            return {ReleaseName.OLD: here, ReleaseName.ADDITIVE: additive, ReleaseName.NEW: newer}
        case Planted.LOSSY:
            return {ReleaseName.OLD: here, ReleaseName.NEW: planted(Kind.LOSSY, directory)}
    old = released(previous())
    if old.version == RELEASE:
        raise BuildFailed(
            f"the previous release is {RELEASE}, too: change the version of this one, then run `make setup`"
        )
    return {ReleaseName.OLD: old, ReleaseName.NEW: here}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Run two releases side by side under load, and check that nothing is lost."
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="minimum total duration of the phases, minutes")
    parser.add_argument(
        "--planted",
        type=Planted,
        choices=tuple(Planted),
        help="use the current code as the old release, and patched copies of it as newer releases",
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed of the load generator")
    parser.add_argument("--rate", type=float, default=MESSAGES_PER_SECOND, help="messages per second")
    parser.add_argument("--kafka", choices=("tansu", "apache"), help="default: apache if Java is installed")
    parser.add_argument("--directory", type=Path, help="keep data and logs in this directory")
    parser.add_argument("--json", action="store_true", dest="as_json")
    given = parser.parse_args()
    console = Console(quiet=given.as_json, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    kafka: KafkaKind = given.kafka or ("tansu" if java_kafka.available() else "apache")
    with working_directory(given.directory) as place, ending_event() as ending:
        try:
            releases = releases_of(given.planted, place)
        except NoRelease as error:
            print(f"skipped: {error}", file=sys.stderr)
            return 1 if os.environ.get("CI") else 0
        except (BuildFailed, OutdatedPatch) as error:
            print(f"python -m tools.mixed: {error}", file=sys.stderr)
            return 1
        phases = PHASES[given.planted]
        refused = given.planted is Planted.FORMATS
        seconds = given.minutes * 60 / len(phases)
        plan = Plan(phases, seconds, given.rate, given.seed, kafka, expects_refusal=refused)
        result = _run(plan, releases, place, console, ending, is_temporary=given.directory is None)
        if ending.is_set():
            console.print("interrupted; everything is stopped")
            return 130
    if given.as_json:
        print(json.dumps(result.as_dict(), indent=2, default=str), flush=True)
    else:
        show(console, result)
    return 0 if result.ok else 1


def _run(
    plan: Plan,
    releases: dict[ReleaseName, Release],
    place: Path,
    console: Console,
    ending: threading.Event,
    *,
    is_temporary: bool,
) -> Result:
    """Starts the servers and runs the plan."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)
        console.file.flush()

    kafka: KafkaKind = "apache" if plan.kafka == "apache" else "tansu"
    with Stack(place / "stack", kafka=kafka, progress=say) as stack:
        if is_temporary:
            stack.children.remove_at_end(place)
        mixed = MixedFleet(Fleet(stack.start(), SETTINGS), releases)
        run = Run(mixed, plan, place, say, ending)
        try:
            return run.run()
        except (LocalError, LoadError, ReconcileError, SinkError) as error:
            run.result.error = str(error)
            return run.result


if __name__ == "__main__":
    raise SystemExit(main())
