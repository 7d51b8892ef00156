"""`python -m tests.mutation`: plants each bug in a copy of the reader and shows which test detects it.

Two methods are tried on every bug: the unit tests of the core, and a number of simulated worlds. If a bug escapes
both methods, the tests have a gap, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.kit.paths import ROOT
from tests.mutation.mutants import MUTANTS, Mutant

UNIT_TESTS = ("tests/unit/core", "tests/unit/reader/test_runtime.py")
PARSER_TESTS = "tests/unit/core/parse"  # No bug is planted in the code that these tests cover.
COPIED_PATHS = ("ingest", "tasks", "tests/kit", *UNIT_TESTS)
TEST_SECONDS_MAX = 30  # A test that takes longer than this counts as hanging, and its name is reported.
RUN_SECONDS_MAX = 90.0


class Verdict(NamedTuple):
    """What each method found for one bug; an empty string means that the method did not detect the bug.

    `unit`: the first unit test that failed. `simulation`: the invariants that simulated worlds violated.
    """

    mutant: Mutant
    unit: str
    simulation: str

    @property
    def killed(self) -> bool:
        return bool(self.unit or self.simulation)


def plant(mutant: Mutant, into: Path) -> None:
    """Writes the bug into the copy.

    The original text must occur exactly once, or the list of mutants is out of date.
    """
    name = mutant.file if mutant.file.startswith("tasks/") else f"ingest/{mutant.file}"
    file = into / name
    text = file.read_text()
    count = text.count(mutant.before)
    if count != 1:
        raise SystemExit(f"{mutant.bug!r}: its text occurs {count} times in {name}, not once")
    file.write_text(text.replace(mutant.before, mutant.after))


def copy(into: Path) -> None:
    for name in COPIED_PATHS:
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, into / name)
        else:
            shutil.copytree(ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for package in ("tests", "tests/unit", "tests/unit/reader"):
        (into / package / "__init__.py").touch()


def run(where: Path, arguments: Sequence[str], seconds_max: float = RUN_SECONDS_MAX) -> tuple[int, str]:
    """Returns (exit code, output). If a bug makes the tests hang, they are killed after a timeout, and the exit
    code is -1.
    """
    environment = {**os.environ, "PYTHONPATH": str(where), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=where,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds_max,
        )
    except subprocess.TimeoutExpired:
        return -1, ""
    return result.returncode, result.stdout + result.stderr


def unit_tests(where: Path) -> str:
    """Runs the unit tests, and returns the first test that fails, or an empty string."""
    code, output = run(
        where,
        ["-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:celery", "-p", "no:xdist",
         "--hypothesis-seed=0", f"--timeout={TEST_SECONDS_MAX}", "--timeout-method=signal",
         f"--ignore={PARSER_TESTS}", *UNIT_TESTS],
    )  # fmt: skip
    if code == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) \S*?([\w.]+\.py)(?:::(\S+))?", output, re.MULTILINE)
    return (
        "the clock (it hangs)" if code == -1 else (failed.group(2) or failed.group(1)) if failed else "collection"
    )


def simulated_worlds(where: Path, seeds: int) -> str:
    """Runs simulated worlds, and returns the invariants that they violated, the most frequent first."""
    code, output = run(where, ["-m", "ingest.testing.simulation", "--start", "0", "--seeds", str(seeds), "--json"])
    if code == 0:
        return ""
    if code == -1:
        return "the clock (it hangs)"
    try:
        broken = json.loads(output)["broken"]
    except ValueError:
        return "crash"
    return ", ".join(sorted(broken, key=broken.get, reverse=True))


def judge(mutant: Mutant, seeds: int) -> Verdict:
    """Plants one bug and tries both methods on it."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        where = Path(name)
        copy(where)
        plant(mutant, where)
        return Verdict(mutant, unit_tests(where), simulated_worlds(where, seeds))


def passes_without_bugs(seeds: int) -> bool:
    """Returns whether both methods pass when no bug is planted; if not, their failures would prove nothing."""
    with tempfile.TemporaryDirectory(prefix="healthy-") as name:
        where = Path(name)
        copy(where)
        return not (unit_tests(where) or simulated_worlds(where, seeds))


def main(arguments: list[str] | None = None) -> int:
    """Tries every bug, and returns exit code 1 if a bug survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="simulated worlds per bug")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="only bugs whose name contains this text")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.bug]
    if not passes_without_bugs(options.seeds):
        print("the tests fail without any bug: make them pass first")
        return 2
    print("| bug | file | unit test that kills it | invariants that break in simulated worlds |")
    print("| --- | --- | --- | --- |", flush=True)
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(lambda mutant: judge(mutant, options.seeds), chosen):
            verdicts.append(verdict)
            mutant = verdict.mutant
            unit = verdict.unit or ("none" if verdict.killed else "**SURVIVES**")
            print(f"| {mutant.bug} | `{mutant.file}` | {unit} | {verdict.simulation or 'none'} |", flush=True)
    alive = [verdict for verdict in verdicts if not verdict.killed]
    both = sum(bool(verdict.unit and verdict.simulation) for verdict in verdicts)
    print(
        f"\n{len(verdicts) - len(alive)} of {len(verdicts)} bugs killed, {both} of them by both methods, "
        f"in {time.monotonic() - started:.0f} s"
    )
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
