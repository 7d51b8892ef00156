"""Sinks for real workers in tests: they append received items to files, and follow a script in a file.

`celery -A tests.kit.scripted_sinks worker` is the real fleet, except for the destination of items.
In `REPLAYS_TEST_SINKS`: `<sink>.jsonl` gets a line at the start and at the end of every call, and `<sink>.do`
contains the action:

    ok | slow <seconds> | stuck | transient | scattered | die | refuse <part of a row id>

`scattered`: a call with at least four items fails for a quarter of the items, so each retry has fewer items, until
a call has fewer than four and succeeds.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.celery import app
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.sinks.base import Report, Sink
from tasks.tools import WorkerContext
from tasks.wire import DeadLetter, Item, Row

__all__ = ["app"]


def name_of(item: Item) -> str | int:
    """Returns the name of an item in the lines of `<sink>.jsonl`."""
    if isinstance(item, Row):
        return item.id
    return item.offset if isinstance(item, DeadLetter) else item.name


class FileSink:
    """A sink that writes to one file."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._log = directory / f"{name}.jsonl"
        self._script = directory / f"{name}.do"

    def write(self, items: Sequence[Item], token: str, deadline_seconds: float) -> None:
        """Follows the script; an item is durable once its line says `kept`."""
        names = [name_of(item) for item in items]
        self._note("began", token, names)
        verb, _, argument = (self._script.read_text() if self._script.exists() else "ok").partition(" ")
        if verb == "slow":
            time.sleep(float(argument))
        elif verb == "stuck":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # A C library may block signals.
            time.sleep(120)
        elif verb == "transient":
            raise TransientSinkError(f"{self.name} is away")
        elif verb == "scattered" and len(names) >= 4:
            left = tuple(range(len(names) // 4))
            self._note("kept", token, names[len(left) :])
            raise TransientSinkError(f"{self.name} is unlucky", failed=left)
        elif verb == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif verb == "refuse" and any(argument in str(name) for name in names):
            raise PermanentSinkError(f"{self.name} does not like something")
        self._note("kept", token, names)

    def _note(self, what: str, token: str, names: Sequence[str | int]) -> None:
        line = json.dumps({"what": what, "token": token, "names": names, "pid": os.getpid(), "at": time.time()})
        with self._log.open("a") as log:
            log.write(line + "\n")

    def examine(self, items: Sequence[Item], deadline_seconds: float) -> None:
        """Does nothing: a file accepts every write, so a refusal is always caused by the item."""

    def check(self) -> Report:
        """Reports that the file is available, as it always is."""
        return Report(str(self._log))

    def close(self) -> None:
        """Nothing to close."""


def scripted(self: WorkerContext, name: str) -> Sink[Any]:
    """Replaces `WorkerContext.sink`: every sink of a worker is a file sink."""
    return FileSink(name, Path(os.environ["REPLAYS_TEST_SINKS"]))


WorkerContext.sink = scripted  # type: ignore[method-assign]
