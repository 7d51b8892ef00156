"""Runs `replays-ingest COMMAND` with the given environment variables, and returns its exit code, standard output
and standard error.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from ingest.cli.main import main
from tests.kit.paths import ROOT


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command(env: Mapping[str, str], *arguments: str) -> CommandResult:
    """Runs a command in this process. Exceptions that the command does not handle propagate to the caller."""
    result = CliRunner().invoke(main, arguments, env={**env, "COLUMNS": "250"}, catch_exceptions=False)
    return CommandResult(result.exit_code, result.stdout, result.stderr)


def on_terminal(env: Mapping[str, str], answer: str, *arguments: str) -> str:
    """Runs the command in a terminal, answers its prompt with `answer`, and returns the output."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest.cli", *arguments],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        os.write(ours, f"{answer}\n".encode())
        return process.communicate(timeout=60)[0]
    finally:
        os.close(ours)
        os.close(theirs)


def without_terminal(env: Mapping[str, str], *arguments: str, seconds_max: float = 60.0) -> CommandResult:
    """Runs the command in its own process, with pipes for its output and with no other REPLAYS_* variables.

    Raises TimeoutExpired if the command does not end.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("REPLAYS_")}
    result = subprocess.run(
        [sys.executable, "-m", "ingest.cli", *arguments],
        env={**plain, "PYTHONPATH": str(ROOT), "COLUMNS": "250", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )
    return CommandResult(result.returncode, result.stdout, result.stderr)
