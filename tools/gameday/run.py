"""Runs a game day: injects one fault at a time, checks that its alert fires, and fixes the fault with the runbook.

    python -m tools.gameday.run [--json FILE] [--only NAME]        (make gameday)

The embedded stack, two readers, two workers and Flower run under a steady load. A real Prometheus scrapes them and
evaluates the rules of deploy/prometheus/alerts.yml, with durations divided by SPEEDUP_FACTOR. Each fault of
`tools/gameday/faults.py` is injected, and its alert must fire. After the steps of the runbook, the alert must
resolve, all produced messages must be committed, and the metrics must show that the component has recovered. At
the end, every expression of the dashboard is queried over the whole run, and `replays-ingest reconcile`
compares the topic with the sinks. Every wait has a time limit, and the whole run has one, too.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ingest.local.launch import temporary_files_in_memory
from ingest.local.load.produce import LoadError
from ingest.local.servers import java_kafka
from ingest.local.servers.processes import LocalError, ending_on_signals
from ingest.local.stack import KafkaKind
from tools.gameday.faults import FAULTS
from tools.gameday.game import RECOVERY_SECONDS_MAX, Fault, Game
from tools.gameday.prometheus import available, query_panels
from tools.gameday.result import MESSAGES_PER_SECOND, Result, as_dict, show

QUIET_SECONDS_MAX = 45.0
MINUTES_MAX = 45.0
HARD_END_RATIO = 1.2
PLAIN_WIDTH = 190


def play(
    faults: Sequence[Fault],
    *,
    console: Console,
    rate: float = MESSAGES_PER_SECOND,
    kafka: KafkaKind,
    directory: Path | None = None,
    minutes_max: float = MINUTES_MAX,
    quiet_seconds_max: float = QUIET_SECONDS_MAX,
) -> Result:
    """Runs a game day with the given faults. Errors, including a timeout, are stored in the result.

    After `minutes_max`, no further fault starts; after HARD_END_RATIO times `minutes_max`, the current fault is
    aborted.
    """
    result = Result(rate=rate, kafka=kafka)
    began = time.monotonic()
    with temporary_files_in_memory(wanted=directory is None), ending_on_signals() as ending:
        game = Game(console, ending, directory, quiet_seconds_max)
        clock = threading.Timer(minutes_max * 60 * HARD_END_RATIO, ending.set)
        clock.daemon = True
        clock.start()
        try:
            game.start(kafka, rate)
            game.until(lambda: game.load.messages > rate * 5, RECOVERY_SECONDS_MAX, "load")
            game.fleet.wait_until_committed(dict(game.load.ends), RECOVERY_SECONDS_MAX)
            game.wait_until_quiet()
            game.say("the system is healthy")
            for fault in faults:
                if time.monotonic() - began > minutes_max * 60:
                    result.error = f"the time limit was reached before: {fault.name}"
                    break
                result.played.append(game.play(fault))
                if ending.is_set():
                    raise LocalError("interrupted, or the time limit was reached")
            _check_sinks_and_history(game, result)
        except (LocalError, LoadError, OSError, ValueError) as error:
            result.error = str(error)
        finally:
            clock.cancel()
            game.close()
    result.seconds = time.monotonic() - began
    return result


def _check_sinks_and_history(game: Game, result: Result) -> None:
    """Queries the dashboard's expressions over the whole run, then compares the topic with the sinks and checks
    the history of commits.
    """
    result.panels = query_panels(game.prometheus, game.began_unix, time.time())
    game.load.close()
    result.messages = game.load.messages
    game.fleet.wait_until_committed(dict(game.load.ends), RECOVERY_SECONDS_MAX)
    result.reconciled, is_complete = game.reconcile()
    if not is_complete:
        result.error = "items are missing in a sink"
    result.violations = game.judge()
    result.history = game.history.counts()
    if result.violations:
        result.error = result.error or f"the history of commits: {result.violations[0]}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Inject faults one by one; check each alert, the runbook's steps, and the recovery."
    )
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="run only the fault with this name or alert"
    )
    parser.add_argument("--kafka", choices=("tansu", "apache"), help="default: apache if Java is installed")
    parser.add_argument("--rate", type=float, default=MESSAGES_PER_SECOND, help="messages per second")
    parser.add_argument("--minutes", type=float, default=MINUTES_MAX, help="time limit of the whole run, minutes")
    parser.add_argument(
        "--quiet-seconds",
        type=float,
        default=QUIET_SECONDS_MAX,
        help="maximum wait, in seconds, for alerts that may fire merely because the machine is busy",
    )
    parser.add_argument("--directory", type=Path, help="keep data and logs in this directory")
    options = parser.parse_args()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    if reason := available():
        console.print(f"no game day: {reason}")
        return 1
    names = [name.lower() for name in options.only]
    faults = [fault for fault in FAULTS if not names or {fault.name.lower(), fault.alert.lower()} & set(names)]
    if not faults:
        parser.error("unknown fault; known faults: " + ", ".join(f"{each.name} ({each.alert})" for each in FAULTS))
    kafka: KafkaKind = options.kafka or ("tansu" if java_kafka.available() else "apache")
    result = play(
        faults,
        console=console,
        rate=options.rate,
        kafka=kafka,
        directory=options.directory,
        minutes_max=options.minutes,
        quiet_seconds_max=options.quiet_seconds,
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(as_dict(result), indent=2))
    show(console, result)
    return 0 if result.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
