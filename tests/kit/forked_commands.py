"""Runs commands in forks of one process that has imported their modules: a start costs milliseconds, not a second.

A fork runs the same function as the program's script, with its own environment, arguments and streams.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.kit.paths import ROOT

SECONDS_MAX = 30
# None of these modules reads a setting on import.
LOADED = (
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "confluent_kafka",
    "flower.command",
    "ingest.operate.check",
    "ingest.reader.process",
    "ingest.web.server",
    "kombu.transport.redis",
    "tasks.celery",
    "tasks.control",
    "tasks.flower.start",
    "tasks.flush",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """Result of a command."""

    exit_code: int
    stdout: str
    stderr: str


class ForkedCommands:
    """`run` starts a command and waits for its end."""

    def __enter__(self) -> Self:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLAYS_")}
        self._parent = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env=kept,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._parent.communicate(timeout=SECONDS_MAX)

    def run(self, *words: str, **environment: str) -> Ended:
        """The first word is the program: `celery` or `replays-ingest`."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps([words, environment]) + "\n")
        self._parent.stdin.flush()
        return Ended(**json.loads(self._parent.stdout.readline()))


def _serve() -> None:
    """The parent of the forks: reads and writes one line per command."""
    for module in LOADED:
        importlib.import_module(module)
    import celery.__main__

    import ingest.cli.main

    programs = {"celery": celery.__main__.main, "replays-ingest": ingest.cli.main.main}
    for line in sys.stdin:
        words, environment = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            child = os.fork()
            if child == 0:
                _become(programs[words[0]], words, environment, out, err)
            _, status = os.waitpid(child, 0)
            ended = {
                "exit_code": os.waitstatus_to_exitcode(status),
                "stdout": out.read_text(),
                "stderr": err.read_text(),
            }
        print(json.dumps(ended), flush=True)


def _become(program: Any, words: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    """The fork: runs the program and never returns. SIGALRM ends a program that hangs."""
    import signal

    signal.alarm(SECONDS_MAX)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(environment)
    sys.argv = words
    code = 70
    try:
        program()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
