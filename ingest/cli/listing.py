"""Lays out `--help`.

The commands are grouped in sections. Each command is listed with the complete first sentence of its help text, and
its own help ends with an example.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

SENTENCE_CHARACTERS_MAX = 1000  # click shortens the first sentence of a command's help to this length
SECTIONS: dict[str, tuple[str, ...]] = {
    "Run": ("migrate", "check", "flower", "web"),
    "Look": ("status", "top", "replays", "events", "fetch", "inspect", "audit"),
    "Operate": ("batches", "dlq", "tenants", "reconcile", "shadow", "backfill", "erase"),
    "Try": ("try", "local", "load", "demo"),
    "Shell": ("completion",),
}
# The first commands that a new user should run. The first two commands need no servers.
FIRST_EXAMPLES: dict[str, str] = {
    "replays-ingest demo": "ingests and verifies 5,000 segments",
    "replays-ingest local up --all": "runs everything on this machine",
    "replays-ingest --dry-run --messages 100": "reads your topic and writes nothing",
}
EXAMPLES: dict[str, str] = {
    "audit": "replays-ingest audit --limit 20",
    "backfill": "replays-ingest backfill --project 11 --since 2d --dry-run",
    "batches abandon": "replays-ingest batches abandon BATCH_ID --reason 'bucket deleted'",
    "batches ls": "replays-ingest batches ls",
    "batches retry": "replays-ingest batches retry BATCH_ID",
    "batches show": "replays-ingest batches show BATCH_ID --json",
    "check": "replays-ingest check",
    "completion": 'eval "$(replays-ingest completion bash)"',
    "demo": "replays-ingest demo --count 1500 --kill worker",
    "dlq ls": "replays-ingest dlq ls --reason not_msgpack",
    "dlq replay": "replays-ingest dlq replay --reason not_msgpack --dry-run",
    "dlq show": "replays-ingest dlq show 0-42",
    "erase": "replays-ingest erase --project 11 REPLAY_ID --dry-run",
    "events": "replays-ingest events REPLAY_ID --kind rage_click",
    "fetch": "replays-ingest fetch REPLAY_ID --output folder",
    "flower": "replays-ingest flower --url_prefix=flower",
    "inspect": "replays-ingest dlq show 0-42 --raw | replays-ingest inspect -",
    "load": "replays-ingest load --count 1000 --rate 50",
    "local down": "replays-ingest local down",
    "local logs": "replays-ingest local logs reader --follow",
    "local status": "replays-ingest local status --json",
    "local up": "replays-ingest local up --all",
    "migrate": "replays-ingest migrate --dry-run",
    "reconcile": "replays-ingest reconcile --since 2h",
    "replays find": "replays-ingest replays find --selector '#checkout' --since 7d",
    "replays ls": "replays-ingest replays ls --rage --since 6h",
    "replays show": "replays-ingest replays show REPLAY_ID",
    "shadow": "replays-ingest shadow --since 2h",
    "status": "replays-ingest status --json",
    "tenants kill": "replays-ingest tenants kill 11",
    "tenants limit": "replays-ingest tenants limit 11 --per-second 200",
    "tenants ls": "replays-ingest tenants ls",
    "tenants revive": "replays-ingest tenants revive 11",
    "top": "replays-ingest top --seconds 5",
    "try": "replays-ingest try",
    "web": "replays-ingest web --port 0",
}


class CommandListGroup(click.Group):
    """A group whose help lists each command with the complete first sentence of the command's help text."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands, grouped by section if sections are defined."""
        for title, names in self._sections(context.parent is None):
            rows = [(name, first_sentence(self.commands[name])) for name in names]
            with formatter.section(title):
                formatter.write_dl(rows)

    def _sections(self, is_root: bool) -> Iterator[tuple[str, Iterable[str]]]:
        if not is_root:
            yield "Commands", sorted(self.commands)
            return
        for title, names in SECTIONS.items():
            yield title, [name for name in names if name in self.commands]


def first_sentence(command: click.Command) -> str:
    """Returns the complete first sentence of the command's help text."""
    return command.get_short_help_str(SENTENCE_CHARACTERS_MAX)


def leaf_commands(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yields every command that is not a group, as (path, command), for example path `batches ls`."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaf_commands(below, f"{path} {name}".strip())
    else:
        yield path, command


def add_examples(main: click.Command) -> None:
    """Appends an example to the help of each command, and FIRST_EXAMPLES to the help of the program."""
    width = max(map(len, FIRST_EXAMPLES))
    lines = [f"  {command:<{width}}  {what}" for command, what in FIRST_EXAMPLES.items()]
    main.epilog = "\n".join(["\b", "Examples:", *lines])
    for path, command in leaf_commands(main):
        if path in EXAMPLES:
            command.epilog = f"Example: {EXAMPLES[path]}"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for this shell."""
    from click.shell_completion import get_completion_class

    root = click.get_current_context().find_root().command
    found = get_completion_class(shell)
    assert found is not None, shell
    program = "replays-ingest"
    click.echo(found(root, {}, program, "_REPLAYS_INGEST_COMPLETE").source(), nl=False)
