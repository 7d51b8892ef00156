"""The standard output of a command contains only its result, and log lines go to standard error."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
import structlog

from ingest.cli.common import as_json, echo_json
from ingest.cli.main import main
from tests.kit.commands import command

NAME = "logging-command"


@pytest.fixture
def logging_command() -> Iterator[None]:
    """A command that logs messages as the product's code does, and prints JSON."""
    before = structlog.get_config()

    @click.command(NAME)
    @as_json
    def run(as_json: bool) -> None:
        structlog.get_logger("web").info("signed_in", user="ann")
        structlog.get_logger("sign_in").warning("sign_in_refused", user="\x1b[31mann", password="hunter2-secret")
        echo_json({"as_json": as_json})

    main.add_command(run)
    yield
    del main.commands[NAME]
    structlog.configure(**before)


@pytest.mark.usefixtures("logging_command")
def test_a_command_prints_only_its_json_to_standard_output():
    """A warning is printed to standard error, without control characters or secrets; messages of level `info` are
    not printed.
    """
    result = command({}, NAME, "--json")

    assert (result.code, result.json) == (0, {"as_json": True})
    (line,) = result.err.splitlines()
    assert "sign_in_refused" in line
    assert "\x1b" not in line
    assert "hunter2" not in line
