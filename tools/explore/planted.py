"""Plants safety bugs, one at a time, in a copy of the code, which is then explored in a separate process.

The planted bugs test whether the explorer detects safety bugs. Each bug replaces a piece of code that occurs
exactly once, and violates one of these guarantees: no item is lost, nothing is reported before it is durable, a
new owner cuts the same batches, and no batch is forgotten.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
COPIED_PATHS = ("ingest/core", "ingest/__init__.py", "tasks", "tools/__init__.py", "tools/explore")
RUN_SECONDS_MAX = 600.0


class Bug(NamedTuple):
    """A bug: its description, the text before and after, and the smallest world in which it is found (`--world`,
    `--faults`, `--expiry`).
    """

    name: str
    file: str
    before: str
    after: str
    world: str
    faults: int
    expiry: bool = False


BUGS = (
    Bug(
        "commits an offset that is one too high",
        "ingest/core/ledger.py",
        "line.committable = done.stop",
        "line.committable = done.stop + 1",
        "2",
        0,
    ),
    Bug(
        "settles a batch when its blobs are durable",
        "ingest/core/flight.py",
        "if len(self.stages) > 1:",
        "if len(self.stages) > 2:",
        "1",
        0,
    ),
    Bug(
        "starts a chord before its cut is recorded",
        "ingest/core/partition.py",
        "Flight(batch, stages, Phase.RECORDING, since=now, until=until)",
        "Flight(batch, stages, Phase.WAITING, since=now, until=until)",
        "1",
        0,
    ),
    Bug(
        "drops a revoked partition without draining it",
        "ingest/core/pipeline.py",
        "owned.release_by is not None and (now >= owned.release_by or owned.drained)",
        "owned.release_by is not None",
        "1",
        1,
    ),
    Bug(
        "never retries a parked batch",
        "ingest/core/pipeline.py",
        "if now >= flight.until and flight.phase is not Phase.WAITING:",
        "if now >= flight.until and flight.phase not in (Phase.WAITING, Phase.PARKED):",
        "1",
        1,
    ),
    Bug(
        "releases a partition before the response to its last commit",
        "ingest/core/partition.py",
        "return not working and self.commits.idle and committable in (None, self.commits.committed)",
        "return not working",
        "1",
        1,
    ),
    Bug(
        "accepts completions of older epochs",
        "ingest/core/pipeline.py",
        "if flight is not None and epoch in (None, flight.batch.epoch):",
        "if flight is not None:",
        "1",
        1,
    ),
    Bug(
        "accepts messages of older epochs",
        "ingest/core/pipeline.py",
        "if owned is None or owned.epoch != event.epoch or event.offset < owned.position:",
        "if owned is None or event.offset < owned.position:",
        "2",
        1,
    ),
    Bug(
        "takes a message twice",
        "ingest/core/pipeline.py",
        "if owned is None or owned.epoch != event.epoch or event.offset < owned.position:",
        "if owned is None or owned.epoch != event.epoch:",
        "2",
        1,
    ),
    Bug(
        "does not resend a commit that a late commit may have overwritten",
        "ingest/core/commits.py",
        "            self._stored = None",
        "            pass",
        "1",
        1,
    ),
    Bug(
        "drops the batches in flight when messages expire",
        "ingest/core/pipeline.py",
        "if owned is not None and event.resumed_at >= owned.position:",
        "if owned is not None and event.resumed_at < 0:",
        "1",
        1,
        expiry=True,
    ),
    Bug(
        "drops the rejects of projects that are not shed",
        "ingest/core/rejects.py",
        "return counted is not None and counted.shed",
        "return counted is not None",
        "2",
        0,
    ),
    Bug(
        "flushes the halves of a batch before their boundary is stored",
        "ingest/core/commits.py",
        "self.recorded_until = min(self.recorded_until, start)",
        "pass",
        "4",
        1,
    ),
    Bug(
        "commits the end of the log although earlier messages have not been processed yet",
        "ingest/core/partition.py",
        "self.end.position <= self.position <= self.end.end",
        "self.position <= self.end.end",
        "1",
        0,
    ),
    Bug(
        "cuts a part of a planned range at shutdown",
        "ingest/core/batching.py",
        "return self._cut(CutReason.DRAIN, now) if self._messages and not self._plan else None",
        "return self._cut(CutReason.DRAIN, now) if self._messages else None",
        "2",
        2,
    ),
    Bug(
        "reports every chord as done",
        "tasks/staging.py",
        "CompletionKind.FAILED if failure else CompletionKind.DONE",
        "CompletionKind.DONE",
        "staging",
        1,
    ),
)


@dataclass(frozen=True, slots=True)
class ExplorationResult:
    """The explorer's result for a copy of the code. `broken` is empty if there is no violation; `trace` is the
    counterexample.
    """

    code: int
    broken: str
    trace: tuple[str, ...]


class OutdatedPatch(Exception):
    """The code that a planted bug replaces has changed, so the planted bug must be rewritten."""


def copy(into: Path) -> None:
    """Copies the code that the explorer needs."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED_PATHS:
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, into / name)
        else:
            shutil.copytree(ROOT / name, into / name, ignore=ignore)


def plant(bug: Bug, into: Path) -> None:
    """Plants the bug in a copy of the code. Raises OutdatedPatch."""
    file = into / bug.file
    text = file.read_text()
    if text.count(bug.before) != 1:
        raise OutdatedPatch(
            f"{bug.name!r}: its text occurs {text.count(bug.before)} times in {bug.file}, not once"
        )
    file.write_text(text.replace(bug.before, bug.after))


def explored(where: Path, world: str, faults: int, *, expiry: bool = False) -> ExplorationResult:
    """Runs the explorer on the copy of the code."""
    options = ["--world", world, "--faults", str(faults), *(["--expiry"] if expiry else [])]
    done = subprocess.run(
        [sys.executable, "-m", "tools.explore", "--json", *options],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return ExplorationResult(done.returncode, done.stdout + done.stderr, ())
    found = json.loads(lines[-1])
    return ExplorationResult(done.returncode, found["broken"], tuple(found["trace"]))


def found(bug: Bug) -> ExplorationResult:
    """Plants the bug in a copy of the code and explores the copy."""
    with tempfile.TemporaryDirectory(prefix="planted-") as name:
        copy(Path(name))
        plant(bug, Path(name))
        return explored(Path(name), bug.world, bug.faults, expiry=bug.expiry)
