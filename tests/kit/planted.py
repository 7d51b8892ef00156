"""A copy of the code with a bug in it, explored in a process of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kit.paths import ROOT
from tests.mutation.__main__ import plant, run
from tests.mutation.mutants import Mutant

SECONDS_MAX = 300.0  # a few on an idle machine
COPIED = ("ingest/core", "ingest/__init__.py", "tasks", "tools/__init__.py", "tools/explore")


@dataclass(frozen=True, slots=True)
class Explored:
    """How the explorer ended. `broken` is empty when it found nothing; `story` is its counterexample."""

    code: int
    broken: str
    story: tuple[str, ...]


def copy(into: Path) -> None:
    """What the explorer needs of the code."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED:
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, into / name)
        else:
            shutil.copytree(ROOT / name, into / name, ignore=ignore)


def explored(mutant: Mutant | None, into: Path, arguments: Sequence[str]) -> Explored:
    """Plants the bug, if any, and runs `python -m tools.explore --json` with these arguments."""
    copy(into)
    if mutant is not None:
        plant(mutant, into)
    code, output = run(into, ["-m", "tools.explore", "--json", *arguments], SECONDS_MAX)
    lines = output.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return Explored(code, output, ())
    found = json.loads(lines[-1])
    return Explored(code, found["broken"], tuple(found["story"]))
