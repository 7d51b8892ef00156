"""Runs `replays-ingest COMMAND` in this process with the given variables, and returns its exit code, output and
errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from ingest.cli.main import main


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command(env: Mapping[str, str], *arguments: str) -> CommandResult:
    """Runs a command. Unhandled exceptions of the command are raised."""
    result = CliRunner().invoke(main, arguments, env={**env, "COLUMNS": "250"}, catch_exceptions=False)
    return CommandResult(result.exit_code, result.stdout, result.stderr)
