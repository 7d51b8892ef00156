"""The command line: `replays-ingest` without a command is the reader; everything else is a doorway to its module.

Exit codes: 0 done; 1 it failed, the last line says why; 2 wrong usage or wrong settings; 3 the reader had halted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

import ingest.cli.replays
from ingest.cli import erase as cli_erase
from ingest.cli import operate as cli_operate
from ingest.cli import reconcile as cli_reconcile
from ingest.cli.common import EXIT_FAILED, as_json, fail, needs_extra, settings
from ingest.settings import Settings
from tasks.settings import FILE_VARIABLE


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of settings; REPLAYS_* variables win over it.",
)
@click.option("--dry-run", is_flag=True, help="Read, parse and batch, write to memory only, commit nothing, end.")
@click.option("--messages", default=1000, show_default=True, type=click.IntRange(1), help="Of a dry run, at most.")
@as_json
@click.version_option(package_name="replays-ingest")
@click.pass_context
def main(context: click.Context, settings_file: Path | None, dry_run: bool, messages: int, as_json: bool) -> None:
    """Session replay recordings from Kafka into Cloud Storage, ClickHouse, BigQuery and DataDog, at least once.

    Without a command this is the reader: it consumes REPLAYS_KAFKA_TOPIC until SIGTERM. The flush fleet is
    started with `celery -A tasks worker`. Settings come from REPLAYS_* variables; docs/settings.md has them all.
    """
    # Without a handler, Python prints bare warnings of libraries between a command's own lines. Commands say what
    # failed themselves; the reader and the workers replace this with their log.
    logging.getLogger().addHandler(logging.NullHandler())
    if settings_file is not None:
        os.environ[FILE_VARIABLE] = str(settings_file.resolve())
    if context.invoked_subcommand is None:
        from ingest.reader import process as reader

        loaded = settings()
        if dry_run:
            sys.exit(_dry_run(loaded, messages, as_json))
        try:
            sys.exit(reader.run(loaded))
        except reader.ReaderFailed as error:
            fail(str(error))


def _dry_run(loaded: Settings, messages: int, as_json: bool) -> int:
    from ingest.operate.dry_run import DryRun
    from ingest.reader.kafka import ConsumerFailed
    from tasks.observe import logs

    logs.configure(loaded)
    run = DryRun(loaded)
    try:
        run.run(messages_max=messages, seconds_max=60.0)
    except ConsumerFailed as failure:
        fail(str(failure))
    if as_json:
        click.echo(json.dumps(run.as_dict()))
    else:
        Console().print(run.render())
    return 0


@main.command()
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option("--topics", is_flag=True, help="Also create the topic that is read (development).")
def migrate(dry_run: bool, topics: bool) -> None:
    """Create or bring up to date the ClickHouse schema, the BigQuery tables, the bucket and the topics."""
    from tasks.errors import SinkError
    from tasks.migrate import migrate as run

    try:
        for line in run(settings(), dry_run=dry_run, topics=topics):
            click.echo(line)
    except SinkError as error:
        fail(str(error))


@main.command()
@as_json
def check(as_json: bool) -> None:
    """Are the settings valid, every server reachable, topics, bucket and tables there? Says what to do if not."""
    from ingest.operate.check import run

    findings = run(settings())
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings]))
    else:
        console = Console()
        for finding in findings:
            console.print(finding.line(), highlight=False, soft_wrap=True)  # an address must survive a pipe
    sys.exit(EXIT_FAILED if any(finding.bad for finding in findings) else 0)


@main.command()
@click.argument("file", type=click.File("rb"))
@as_json
def inspect(file: Any, as_json: bool) -> None:
    """What one message (the Kafka value, in FILE or - for stdin) contains and which rows it would make."""
    from ingest.operate.inspect import describe, render
    from ingest.reader.process import rules_of

    description = describe(file.read(), rules_of(settings()))
    if as_json:
        click.echo(json.dumps(description))
    else:
        Console().print(render(description))
    sys.exit(EXIT_FAILED if description.get("reject") else 0)


@main.command()
@click.option("--count", default=5000, show_default=True, type=click.IntRange(1, 1_000_000), help="Segments.")
@click.option("--seed", default=1, show_default=True, help="The same seed makes the same messages.")
@click.option("--keep", is_flag=True, help="Leave everything up until Ctrl-C, and print every address.")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="Keep data and logs there.")
@click.option("--kill", type=click.Choice(["worker", "reader", "redis"]), help="kill -9 it in the middle.")
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
    """The whole system on this machine: starts all, ingests COUNT segments, proves that all arrived, ends."""
    needs_extra("local")
    from ingest.local.demo import run

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


@main.command("load")
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1, 100_000_000), help="Segments.")
@click.option("--seed", default=1, show_default=True, help="The same seed makes the same messages.")
@click.option("--rate", type=float, help="Messages a second at most; as fast as it goes if not given.")
@click.option("--profile", type=click.Choice(["demo", "small"]), default="demo", show_default=True)
@click.option(
    "--manifest",
    type=click.Path(dir_okay=False, path_type=Path),
    default="manifest.jsonl",
    show_default=True,
    help="Where to write what was made, for `reconcile`.",
)
@as_json
def load_command(count: int, seed: int, rate: float | None, profile: str, manifest: Path, as_json: bool) -> None:
    """Produce believable recordings to REPLAYS_KAFKA_TOPIC, with duplicates, late and malformed ones.

    Their visits lie in the past day, so delays from `received` to durable say nothing while they are read.
    """
    from rich.progress import Progress

    from ingest.local.load.produce import PROFILES, LoadError, produce, summary

    console = Console(stderr=True)
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
        click.echo(json.dumps(summary(made)))
    else:
        click.echo(f"{made.messages} messages, {made.rejects} of them malformed; the manifest is {manifest}")


@main.group("local")
def local_group() -> None:
    """The embedded stack for development: broker, Redis, GCS, ClickHouse, BigQuery, DogStatsD."""


directory_option = click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), help="Where its data and state live."
)


@local_group.command("up")
@directory_option
@click.option("--kafka", type=click.Choice(["tansu", "apache"]), default="tansu", show_default=True)
@as_json
def local_up(directory: Path | None, kafka: Any, as_json: bool) -> None:
    """Start it, leave it running, print every address and the variables to export."""
    needs_extra("local")
    from ingest.local.servers.processes import LocalError
    from ingest.local.stack import up

    try:
        state = up(directory, kafka=kafka, progress=lambda line: click.echo(line, err=True))
    except LocalError as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps({"addresses": state.addresses, "settings": state.settings}))
        return
    for name, address in state.addresses.items():
        click.echo(f"# {name:<14} {address}")
    for name, value in sorted(state.settings.items()):
        click.echo(f"export {name}={value}")


@local_group.command("down")
@directory_option
def local_down(directory: Path | None) -> None:
    """Stop it; its data stays."""
    from ingest.local.servers.processes import LocalError
    from ingest.local.stack import down

    try:
        click.echo("stopped" if down(directory) else "nothing was running")
    except LocalError as error:
        fail(str(error))


@local_group.command("status")
@directory_option
@as_json
def local_status(directory: Path | None, as_json: bool) -> None:
    """What runs, and where. Exits with 1 if nothing does."""
    from ingest.local.stack import status

    state = status(directory)
    if state is None:
        fail("no stack is running; `replays-ingest local up` starts one")
    if as_json:
        click.echo(json.dumps({"addresses": state.addresses, "settings": state.settings}))
        return
    for name, address in state.addresses.items():
        click.echo(f"{name:<14} {address}")


for command in (
    *cli_operate.COMMANDS,
    *cli_reconcile.COMMANDS,
    *cli_erase.COMMANDS,
    *ingest.cli.replays.COMMANDS,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
