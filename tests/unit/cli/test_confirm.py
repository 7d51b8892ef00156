"""Commands that destroy or resend data need confirmation: without a terminal, they require `--yes`."""

from __future__ import annotations

import click
import pytest

from ingest.cli.listing import leaf_commands
from ingest.cli.main import main
from tests.kit.commands import command

REPLAY_ID = "0" * 32
# Maps every command that asks for confirmation to arguments that select something.
ASKING = {
    "backfill": ("--since", "1d"),
    "batches abandon": ("t-0-1-2", "--reason", "why not"),
    "dlq replay": ("--all",),
    "erase": ("--project", "11", REPLAY_ID),
    "tenants kill": ("11",),
}
# These commands only read, start something, or make a change that another command can revert. `dlq replay --id`
# does not ask either, because it names each letter.
NOT_ASKING = {
    *("audit", "batches ls", "batches retry", "batches show", "check", "completion", "demo", "dlq ls", "dlq show"),
    *("events", "fetch", "flower", "inspect", "load", "local down", "local logs", "local status", "local up"),
    *("migrate", "reconcile", "replays find", "replays ls", "replays show", "shadow", "status"),
    *("tenants limit", "tenants ls", "tenants revive", "top", "try", "web"),
}
NO_SERVERS = {
    "REPLAYS_KAFKA_BROKERS": "127.0.0.1:1",
    "REPLAYS_REDIS_URL": "redis://127.0.0.1:1/0",
    "REPLAYS_CLICKHOUSE_URL": "http://127.0.0.1:1",
    "REPLAYS_GCS_ENDPOINT": "http://127.0.0.1:1",
}


def test_every_command_asks_or_is_known_to_need_no_question():
    """Every command either asks for confirmation or is listed as needing none, so a new command must be added to a
    table.

    Every command that asks for confirmation has the option `--yes`.
    """
    found = dict(leaf_commands(main))

    assert set(found) == ASKING.keys() | NOT_ASKING
    assert {path for path, leaf in found.items() if has_yes(leaf)} == set(ASKING)


def has_yes(leaf: click.Command) -> bool:
    return any("--yes" in parameter.opts for parameter in leaf.params)


@pytest.mark.parametrize("path", ASKING)
def test_without_a_terminal_it_refuses_before_it_contacts_a_server(path: str):
    """Without a terminal, nobody can answer the question, so the command is refused before it contacts a server.

    The command prints one line and exits with 2.
    """
    result = command(NO_SERVERS, *path.split(), *ASKING[path])

    assert (result.code, result.out, result.err) == (
        2,
        "",
        "replays-ingest: not a terminal: add --yes to confirm\n",
    )
