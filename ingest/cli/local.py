"""Commands for one machine: demo, load generator and embedded stack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ingest.cli.common import as_json, echo, echo_json, fail, needs_extra, settings
from ingest.operate.terminal import Terminal


@click.command()
@click.option("--count", default=5000, show_default=True, type=click.IntRange(1, 1_000_000), help="Segments.")
@click.option("--seed", default=1, show_default=True, help="The same seed makes the same messages.")
@click.option("--keep", is_flag=True, help="Keep everything running until Ctrl-C, and print the addresses.")
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), help="Keep data and logs in this directory."
)
@click.option(
    "--kill", type=click.Choice(["worker", "reader", "redis"]), help="Kill this process (SIGKILL) mid-run."
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
    """Run the whole system on this machine: ingest COUNT segments, verify every sink, exit."""
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


@click.command("load")
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1, 100_000_000), help="Segments.")
@click.option("--seed", default=1, show_default=True, help="The same seed makes the same messages.")
@click.option("--rate", type=float, help="Maximum messages per second; unlimited by default.")
@click.option("--profile", type=click.Choice(["demo", "small"]), default="demo", show_default=True)
@click.option(
    "--manifest",
    type=click.Path(dir_okay=False, path_type=Path),
    default="manifest.jsonl",
    show_default=True,
    help="File that records what was produced, for verification.",
)
@as_json
def load_command(count: int, seed: int, rate: float | None, profile: str, manifest: Path, as_json: bool) -> None:
    """Produce realistic recordings to REPLAYS_KAFKA_TOPIC, including duplicate, late and malformed ones.

    Their `received` times lie in the past day, so end-to-end delays are meaningless while they are ingested.
    """
    from rich.progress import Progress

    from ingest.local.load.produce import PROFILES, LoadError, produce, summary

    console = Terminal(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("produced", total=count)

        def told(done: int, expected: int, _rate: float) -> None:
            bars.update(bar, completed=done, total=max(done, expected))

        try:
            made = produce(
                settings(), PROFILES[profile], count, seed, rate=rate, manifest_path=manifest, progress=told
            )
        except LoadError as error:
            fail(str(error))
    if as_json:
        echo_json(summary(made))
    else:
        echo(f"{made.messages} messages, {made.rejects} of them malformed; manifest: {manifest}")


@click.group("local")
def local_group() -> None:
    """Embedded stack for development: Kafka, Redis, GCS, ClickHouse, BigQuery, DogStatsD."""


directory_option = click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), help="Data directory."
)


@local_group.command("up")
@directory_option
@click.option("--kafka", type=click.Choice(["tansu", "apache"]), default="tansu", show_default=True)
@as_json
def local_up(directory: Path | None, kafka: Any, as_json: bool) -> None:
    """Start the stack in the background; print addresses and variables to export."""
    needs_extra("local")
    from ingest.local.background import up
    from ingest.local.servers.processes import LocalError

    try:
        state = up(directory, kafka=kafka, progress=lambda line: echo(line, err=True))
    except LocalError as error:
        fail(str(error))
    if as_json:
        echo_json({"addresses": state.addresses, "settings": state.settings})
        return
    for name, address in state.addresses.items():
        echo(f"# {name:<14} {address}")
    for line in state.exports().splitlines():
        echo(line)


@local_group.command("down")
@directory_option
def local_down(directory: Path | None) -> None:
    """Stop the stack; data is kept."""
    from ingest.local.background import down
    from ingest.local.servers.processes import LocalError

    try:
        echo("stopped" if down(directory) else "nothing was running")
    except LocalError as error:
        fail(str(error))


@local_group.command("status")
@directory_option
@as_json
def local_status(directory: Path | None, as_json: bool) -> None:
    """Show what is running, and its addresses. Exit code 1 if nothing is."""
    from ingest.local.background import status

    state = status(directory)
    if state is None:
        fail("no stack is running; start one with `replays-ingest local up`")
    if as_json:
        echo_json({"addresses": state.addresses, "settings": state.settings})
        return
    for name, address in state.addresses.items():
        echo(f"{name:<14} {address}")


COMMANDS = (demo, load_command, local_group)
