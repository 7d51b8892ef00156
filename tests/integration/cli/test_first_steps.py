"""Tests what commands print before servers are configured, or while they are unreachable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ingest.local.servers.processes import is_listening
from ingest.settings import Settings
from tasks.faults import WHAT_TO_DO, Cause, Server
from tests.kit.commands import without_terminal

CLOSED = "127.0.0.1:1"


@pytest.mark.parametrize("options", [[], ["--json"]], ids=" ".join)
def test_a_dry_run_does_not_report_an_unreachable_broker_as_an_empty_topic(tmp_path: Path, options: list[str]):
    """If the broker is unreachable, `--dry-run` prints the same error line as other commands, no result, and no
    client log lines.
    """
    nowhere = {"REPLAYS_KAFKA_BROKERS": CLOSED, "REPLAYS_LOCAL_DIRECTORY": str(tmp_path)}

    result = without_terminal(nowhere, "--dry-run", "--messages", "10", *options)

    assert (result.code, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert line.startswith(f"replays-ingest: kafka: {CLOSED} does not respond: ")
    assert line.endswith(WHAT_TO_DO[Server.KAFKA, Cause.UNREACHABLE])


@pytest.fixture
def unconfigured(tmp_path: Path) -> dict[str, str]:
    """The environment variables for a command without settings and without a running stack."""
    defaults = Settings.model_construct()
    addresses = (defaults.kafka_brokers, defaults.redis_url.get_secret_value(), defaults.clickhouse_url)
    for address in addresses:
        found = re.search(r"127\.0\.0\.1:(\d+)", address)
        assert found is not None, address
        if is_listening(int(found[1])):
            pytest.skip(f"a server listens at the default address {address}")
    return {"REPLAYS_LOCAL_DIRECTORY": str(tmp_path)}


@pytest.mark.parametrize(
    "arguments",
    ["top", "status", "dlq ls", "audit", "replays ls", "reconcile", "load --count 1", "check", "--dry-run"],
)
def test_without_settings_and_without_a_stack_the_first_step_is_suggested(
    unconfigured: dict[str, str], arguments: str
):
    """If a command cannot reach a server, its error line ends with the advice to start a local stack."""
    result = without_terminal(unconfigured, *arguments.split())

    (line,) = result.err.splitlines()
    assert result.code != 0
    assert line.endswith(", or run `replays-ingest local up --all`")


def test_with_settings_the_first_step_is_not_suggested(unconfigured: dict[str, str]):
    """If any server is configured, a command does not use a local stack, so the advice does not suggest one."""
    result = without_terminal({**unconfigured, "REPLAYS_KAFKA_BROKERS": CLOSED}, "status")

    assert (result.code, "local up" in result.err) == (1, False)
