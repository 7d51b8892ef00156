"""Commands for one machine: demo, load generator and embedded stack."""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.cli.common import as_json, echo, echo_json, fail, needs_extra, settings
from ingest.cli.listing import CommandListGroup
from ingest.cli.ranges import FiniteFloatRange
from ingest.cli.values import OutputDirectory, OutputFile
from ingest.operate.terminal import Terminal

if TYPE_CHECKING:  # commands import their dependencies when they run
    from ingest.local.background import StackState

FOLLOW_SECONDS = 0.3


@click.command()
@click.option(
    "--count", default=5000, show_default=True, type=click.IntRange(1, 1_000_000), help="Number of segments."
)
@click.option("--seed", default=1, show_default=True, help="The same seed produces the same messages.")
@click.option("--keep", is_flag=True, help="Keep everything running until Ctrl-C, and print the addresses.")
@click.option("--directory", type=OutputDirectory(), help="Keep data and logs in this directory.")
@click.option(
    "--kill", type=click.Choice(["worker", "reader", "redis"]), help="Kill this process with SIGKILL mid-run."
)
@click.option("--kafka", type=click.Choice(["tansu", "apache"]), default="tansu", show_default=True)
@click.option("--profile", type=click.Choice(["demo", "small"]), default="demo", show_default=True)
@click.option("--layout", type=click.Choice(["segment", "packed"]), default="segment", show_default=True)
@as_json
def demo(
    count: int,
    seed: int,
    keep: bool,
    directory: Path | None,
    kill: Any,
    kafka: Any,
    profile: str,
    layout: Any,
    as_json: bool,
) -> None:
    """Run the whole system on this machine: ingest COUNT segments, verify every sink, and exit."""
    needs_extra("local")
    from ingest.local.demo.run import run

    sys.exit(
        run(
            count,
            seed,
            keep=keep,
            directory=directory,
            kill=kill,
            kafka=kafka,
            profile=profile,
            layout=layout,
            as_json=as_json,
        )
    )


@click.command("try")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address that the shop and its endpoint listen on."
)
@click.option(
    "--port", default=8090, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option(
    "--seconds", type=FiniteFloatRange(0, min_open=True), help="Stop after this many seconds instead of on Ctrl-C."
)
@as_json
def try_command(host: str, port: int, seconds: float | None, as_json: bool) -> None:
    """Record yourself on a shop page with the real Sentry SDK, and watch the recording.

    Starts the whole system, prints a link to the shop and a DSN for your own app, and removes everything when it
    ends. The endpoint splits replays as Relay does, but does not scrub personal data and has no quotas. With
    --json, prints one line when everything is up.
    """
    needs_extra("local")
    from ingest.local.servers.processes import LocalError
    from ingest.trial.run import Options, run

    def say(line: str) -> None:
        echo(line, err=as_json)

    try:
        run(Options(host, port, seconds), say=say, as_json=echo_json if as_json else None)
    except LocalError as error:
        fail(str(error))


@click.command("load")
@click.option(
    "--count", default=1000, show_default=True, type=click.IntRange(1, 100_000_000), help="Number of segments."
)
@click.option(
    "--seed", default=1, show_default=True, help="The same seed produces the same messages, except for `received`."
)
@click.option(
    "--rate",
    type=FiniteFloatRange(0, min_open=True),
    help="Maximum number of messages per second; unlimited by default.",
)
@click.option("--profile", type=click.Choice(["demo", "small"]), default="demo", show_default=True)
@click.option(
    "--manifest",
    type=OutputFile(),
    help="New file that records what was produced, for verification. Default: manifest.jsonl, or the next free "
    "name (manifest-2.jsonl and so on) if that file exists.",
)
@as_json
def load_command(
    count: int, seed: int, rate: float | None, profile: str, manifest: Path | None, as_json: bool
) -> None:
    """Produce realistic recordings to REPLAYS_KAFKA_TOPIC, including duplicate, late and malformed ones.

    `received` is the time at which each message is produced, so end-to-end delays are real. The generated visits
    themselves are dated to the evening before the last midnight (UTC).
    """
    from rich.progress import Progress

    from ingest.local.load.produce import PROFILES, LoadError, produce, summary

    console = Terminal(stderr=True)
    manifest = _new_manifest_path(manifest)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("produced", total=count)

        def report(done: int, expected: int, _rate: float) -> None:
            bars.update(bar, completed=done, total=max(done, expected))

        try:
            produced = produce(
                settings(),
                PROFILES[profile],
                count,
                seed,
                rate=rate,
                manifest_path=manifest,
                clock=time.time,
                progress=report,
            )
        except LoadError as error:
            fail(f"{error}; manifest of what was produced: {manifest}" if manifest.exists() else str(error))
    if as_json:
        echo_json({**summary(produced), "manifest": str(manifest)})
    else:
        echo(f"{produced.messages} messages, {produced.rejects} of them malformed; manifest: {manifest}")


def _new_manifest_path(chosen: Path | None) -> Path:
    """Returns the absolute path of a file that does not exist, so that no load overwrites another load's manifest.

    The default path is in the current directory. Raises click.BadParameter if the chosen file exists.
    """
    if chosen is None:
        names = itertools.chain(["manifest.jsonl"], (f"manifest-{number}.jsonl" for number in itertools.count(2)))
        chosen = next(path for path in map(Path, names) if not path.exists())
    elif chosen.exists():
        raise click.BadParameter(f"{chosen} exists: remove it, or choose another file", param_hint="'--manifest'")
    return Path(OutputFile().convert(chosen.absolute(), None, click.get_current_context()))


@click.group("local", cls=CommandListGroup)
def local_group() -> None:
    """Embedded stack for development: Kafka, Redis, GCS, ClickHouse, BigQuery, DogStatsD."""


directory_option = click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), help="Data directory."
)


@local_group.command("up")
@click.option("--directory", type=OutputDirectory(), help="Data directory.")
@click.option("--kafka", type=click.Choice(["tansu", "apache"]), default="tansu", show_default=True)
@click.option("--all", "programs", is_flag=True, help="Also run a worker, the reader, Flower and the web pages.")
@as_json
def local_up(directory: Path | None, kafka: Any, programs: bool, as_json: bool) -> None:
    """Start the stack in the background; print addresses and variables to export.

    With --all, or if all servers are embedded, also creates the tables, the bucket and the topics, like `migrate
    --topics`. Uses a running stack if there is one, even if it was started from another folder; --all adds missing
    processes. If no server is configured, commands use the running stack even without the variables, and say so.
    """
    needs_extra("local")
    from ingest.local.background import start_stack
    from ingest.local.servers.processes import LocalError

    try:
        state = start_stack(directory, kafka=kafka, programs=programs, progress=lambda line: echo(line, err=True))
    except LocalError as error:
        fail(str(error))
    if as_json:
        echo_json(_as_dict(state))
        return
    # Output that does not go to a terminal is meant for a shell's `eval`: it has only commands and comments.
    if programs and sys.stdout.isatty():
        _list(state, "")
        echo("")
        for line in _next_steps(directory):
            echo(line)
        return
    _list(state, "# ")
    for line in state.exports().splitlines():
        echo(line)


def _next_steps(directory: Path | None) -> list[str]:
    """Returns the commands to run next in another terminal."""
    activated = sys.prefix != sys.base_prefix
    where = "" if directory is None else f" --directory {shlex.quote(str(directory.absolute()))}"
    return [
        "In another terminal:",
        *([f"  . {shlex.quote(str(Path(sys.prefix) / 'bin' / 'activate'))}"] if activated else []),
        *([f'  eval "$(replays-ingest local up{where})"    # the addresses above as variables'] if where else []),
        "  replays-ingest load --rate 50        # recordings to look at",
        "  replays-ingest top                   # live state",
        f"  replays-ingest local logs{where}            # all processes; `local logs reader` for one",
        f"  replays-ingest local down{where}            # stops everything; keeps data but not messages in Tansu",
    ]


def _as_dict(state: StackState) -> dict[str, Any]:
    return {
        "directory": state.directory,
        "addresses": state.addresses,
        "pages": state.pages,
        "settings": state.settings,
    }


def _list(state: StackState, prefix: str) -> None:
    """Prints every address, and the login for the pages that require one."""
    from ingest.local.programs import LOGIN_VARIABLE

    echo(f"{prefix}{'directory':<14} {state.directory}")
    for name, address in {**state.addresses, **state.pages}.items():
        echo(f"{prefix}{name:<14} {address}")
    if state.pages:
        user, _, password = state.settings[LOGIN_VARIABLE].partition(":")
        echo(f"{prefix}{'login':<14} user {user}, password {password} (web, operator, flower)")


@local_group.command("down")
@directory_option
def local_down(directory: Path | None) -> None:
    """Stop the stack. The sinks' data is kept; messages in Tansu, the default broker, are not.

    The next `local up` with Tansu empties Redis, because the state in Redis refers to messages that no longer
    exist.
    """
    from ingest.local.background import stop_stack
    from ingest.local.servers.processes import LocalError

    try:
        place = stop_stack(directory)
    except LocalError as error:
        fail(str(error))
    echo("nothing was running" if place is None else f"stopped; the data is in {place} (Tansu keeps no messages)")


@local_group.command("status")
@directory_option
@as_json
def local_status(directory: Path | None, as_json: bool) -> None:
    """Show the running processes and their addresses. The exit code is 1 if none is running."""
    from ingest.local.background import status
    from ingest.local.servers.processes import LocalError

    try:
        state = status(directory)
    except LocalError as error:
        fail(str(error))
    if state is None:
        fail("no stack is running; start one with `replays-ingest local up`")
    if as_json:
        echo_json(_as_dict(state))
        return
    _list(state, "")


@local_group.command("logs")
@click.argument("name", required=False, metavar="[NAME]")
@directory_option
@click.option(
    "--lines",
    default=20,
    show_default=True,
    type=click.IntRange(0, 100_000),
    help="Number of lines to print from the end of each log.",
)
@click.option("--follow", "-f", is_flag=True, help="Print new lines as they are written, until Ctrl-C.")
def local_logs(name: str | None, directory: Path | None, lines: int, follow: bool) -> None:
    """Print the logs of all processes, or of the process NAME (reader, worker, flower, web, kafka, ...)."""
    from ingest.local.background import log_files
    from ingest.local.logs import Tail
    from ingest.local.servers.processes import LocalError

    try:
        logs = log_files(directory)
    except LocalError as error:
        fail(str(error))
    if not logs:
        fail("there are no logs; start a stack with `replays-ingest local up`")
    if name is not None:
        if name not in logs:
            raise click.BadParameter(
                f"there is no log of {name!r}; choose from {', '.join(logs)}", param_hint="'NAME'"
            )
        logs = {name: logs[name]}
    tails = [Tail(path, f"{each:<10} | " if len(logs) > 1 else "") for each, path in logs.items()]
    for tail in tails:
        for line in tail.last(lines):
            echo(line)
    try:
        while follow:
            found = [line for tail in tails for line in tail.new()]
            for line in found:
                echo(line)
            if not found:
                time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        sys.exit(0)


COMMANDS = (demo, try_command, load_command, local_group)
