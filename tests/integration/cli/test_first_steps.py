"""What commands print before servers are configured, or while they are unreachable."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.faults import WHAT_TO_DO, Cause, Server
from tests.kit.commands import without_a_terminal

CLOSED = "127.0.0.1:1"


@pytest.mark.parametrize("options", [[], ["--json"]], ids=" ".join)
def test_a_dry_run_does_not_report_an_unreachable_broker_as_an_empty_topic(tmp_path: Path, options: list[str]):
    """It fails with the line of other commands, and prints no result and no lines of the client library."""
    nowhere = {"REPLAYS_KAFKA_BROKERS": CLOSED, "REPLAYS_LOCAL_DIRECTORY": str(tmp_path)}

    result = without_a_terminal(nowhere, "--dry-run", "--messages", "10", *options)

    assert (result.code, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert line.startswith(f"replays-ingest: kafka: {CLOSED} does not respond: ")
    assert line.endswith(WHAT_TO_DO[Server.KAFKA, Cause.AWAY])
